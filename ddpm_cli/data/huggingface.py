"""Tables of images, from the Hugging Face Hub or this disk, as an `ImageSet`: decoded once, like a folder."""

import os
from collections.abc import Sequence
from typing import Literal

from ddpm_cli.data.cache_files import cache_directory
from ddpm_cli.data.cache_limit import GIB
from ddpm_cli.data.dataset_columns import as_stored, image_column, labels_in
from ddpm_cli.data.dataset_rows import Rows, decode_rows, row_name
from ddpm_cli.data.dataset_table import open_table
from ddpm_cli.data.decode_once import MIB, pixels_of, read_or_decode, report
from ddpm_cli.data.decoded_cache import DecodedCache
from ddpm_cli.data.image_file import ImageFile
from ddpm_cli.data.image_set import Flip, ImageSet, check_flip
from ddpm_cli.data.options import (
    Background,
    check_cache,
    check_on_bad,
    check_workers,
    height_width,
    reading,
    treatment,
)
from ddpm_cli.data.reading import Crop
from ddpm_cli.io.text import printable


# It is long because of its options, which are those of its YAML file.
def huggingface(
    dataset: str,
    *,
    subset: str | None = None,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    download: bool = False,
    image_size: int | Sequence[int] = 64,
    channels: int = 3,
    flip: Flip = "horizontal",
    num_classes: int | None = None,
    value_range: Sequence[float] | None = None,
    background: Background = "white",
    crop: Crop = "center",
    on_bad: Literal["stop", "skip"] = "stop",
    workers: int = -1,
    cache_dir: str | None = None,
    cache_gb: float = 50.0,
    memory_mb: int = 2048,
) -> ImageSet:
    """All images in a data set that the datasets package reads.

    `dataset` is a name on the Hub, or the path of parquet or arrow files, of the output of `save_to_disk`, or of a
    folder of images with its metadata. Its `subset` and `split` are read, and the columns `image` and, with
    `num_classes`, `label` (None: the only column of that kind). A data set of the Hub is read from the package's own
    cache; it is downloaded only with `download`. The other options are those of `folder`, and images that cannot be
    used are treated as there.

    Raises as `folder`, and ValueError if the package is missing, or there is no such subset, split or column.
    """
    size = height_width(image_size)
    how = reading(channels, value_range, background, crop)
    check_flip(flip)
    check_on_bad(on_bad)
    check_workers(workers)
    check_cache(memory_mb, cache_gb)
    if label is not None and num_classes is None:
        raise ValueError(f"label={label} has no effect without num_classes, the number of its classes")
    table, remarks = open_table(dataset, subset, split, download=download)
    column = image_column(table, image)
    labels = None if num_classes is None else labels_in(table, label, num_classes)
    if len(table) == 0:
        raise ValueError(f"split {split} of {printable(dataset)} has no rows")
    called = f"{dataset}/{split}"
    origin = repr(("datasets", table._fingerprint, column))  # which changes with all that the table is made of
    cache = DecodedCache(cache_directory(cache_dir), origin, size, channels, how, int(cache_gb * GIB))
    files = [ImageFile(row_name(row), 0, 0) for row in range(len(table))]
    cached, bad = read_or_decode(
        cache,
        files,
        decode_rows,
        Rows(as_stored(table, column), column, called),
        workers=workers,
        memory=memory_mb * MIB,
        called=called,
    )
    if bad and (cached is None or on_bad == "stop"):
        raise ValueError(report(bad, called, cache.bad_path(files), all_bad=cached is None))
    assert cached is not None, called
    names = {image.name for image in bad}
    good = [row for row, file in enumerate(files) if file.name not in names]
    return ImageSet(
        pixels_of(cached, cache),
        printable(_last_name(dataset)),
        flip=flip,
        skipped=tuple(image.line(called) for image in bad),
        remarks=remarks,
        labels=None if labels is None else labels.numbers[good],
        class_names=() if labels is None else labels.class_names,
        checksums=cached.checksums,
        random_crop=crop == "random",
        treatment=treatment(how, size),
    )


def _last_name(dataset: str) -> str:
    name = os.path.basename(os.path.abspath(os.path.expanduser(dataset)))
    return name.removesuffix(".parquet").removesuffix(".arrow")
