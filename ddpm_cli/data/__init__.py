"""Images to train on: sets of uint8 arrays, the order of their batches, and their way to the device.

image_set.py      what a source gives and training takes: pixels, labels, how they are stored
loader.py         batch n of the endless stream, prepared ahead of its use
holdout.py        which images are held out
shuffle.py        the order of images that are stored in blocks

Sources, each a function that a YAML file names and that returns an `ImageSet`; options.py checks their common options:

datasets.py       digits, MNIST, Fashion-MNIST, CIFAR-10 in memory; archives.py downloads and unpacks them
folder.py         any folder of pictures: scan.py finds them, labels.py makes classes of its folders
huggingface.py    tables of the datasets package: dataset_table.py opens them, dataset_columns.py finds pictures and
                  labels, dataset_rows.py reads the rows
webdataset.py     tar files, read while training: tar_index.py finds the images, index_cache.py keeps their places,
                  tar_reader.py reads and decodes them

decode.py         one picture: reading.py says how numbers become colours and transparency, framing.py which part is
                  shown
decode_once.py    the pictures of folders and tables, before training: decoded_cache.py keeps the pixels, windows.py
                  shows parts of them
worker_pool.py    the decoding processes, which import no torch
cache_files.py    files in the cache directory: complete or absent
"""
