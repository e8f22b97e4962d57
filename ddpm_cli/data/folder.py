"""Any folder of images as an `ImageSet`: decoded once, before training, into a cache that later runs reuse."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_cli.data.cache_files import cache_directory
from ddpm_cli.data.cache_limit import GIB
from ddpm_cli.data.decode import FORMATS, decode_into
from ddpm_cli.data.decode_once import MIB, pixels_of, read_or_decode, report
from ddpm_cli.data.decoded_cache import DecodedCache
from ddpm_cli.data.formats import EXTENSIONS
from ddpm_cli.data.image_set import Flip, ImageSet, check_flip
from ddpm_cli.data.labels import class_folders, folder_labels
from ddpm_cli.data.options import (
    Background,
    check_cache,
    check_extensions,
    check_on_bad,
    check_workers,
    height_width,
    reading,
    treatment,
)
from ddpm_cli.data.reading import Crop
from ddpm_cli.data.scan import Found, find_images, kinds_text, without
from ddpm_cli.io.text import printable

FOLDERS_SHOWN = 5  # class folders without an image, by name


# It is long because of its options, which are those of its YAML file.
def folder(
    path: str,
    *,
    image_size: int | Sequence[int] = 64,
    channels: int = 3,
    flip: Flip = "horizontal",
    num_classes: int | None = None,
    extensions: Sequence[str] | None = EXTENSIONS,
    follow_links: bool = False,
    value_range: Sequence[float] | None = None,
    background: Background = "white",
    crop: Crop = "center",
    on_bad: Literal["stop", "skip"] = "stop",
    workers: int = -1,
    cache_dir: str | None = None,
    cache_gb: float = 50.0,
    memory_mb: int = 2048,
) -> ImageSet:
    """Every image in `path` and the folders below it, at `image_size` (int or [H, W]).

    Images are files whose names end in one of `extensions`; with None (as in our YAML file), everything that the
    decoder reads: files with the usual names of these formats, and files of other names with such content. Everything
    else is counted by kind in the set's `left_out`, including the output of our own commands (runs, previews, samples),
    which is never an input. `value_range` [low, high] are the values in the files that become black and white (None:
    those of the format). Transparent pixels are laid over `background`, a colour; "keep" keeps alpha as a fourth
    channel, "ignore" drops it. `crop` says what is shown of an image of another aspect ratio: the middle ("center"), a
    part along the longer side, another one each time ("random", of a part up to twice as long as what is shown, which
    takes twice the space), or all of it, with the background around it ("pad").

    Images are decoded once, by `workers` processes (-1: one per CPU; 0: in this process), into a .npy file in
    `cache_dir` (default: ddpm-cli in $XDG_CACHE_HOME or ~/.cache), which is reused as long as names, sizes and times of
    the images stay the same. A set of at most `memory_mb` MiB is held in memory; a larger one is read from that file as
    it is needed. Every image that is read from the file is compared with its checksum: if one differs at the start, all
    are decoded again. The files in `cache_dir` together take at most `cache_gb` GiB: the least recently used are
    removed, which is logged, but none that a process is using.

    All images that cannot be used are found before training: images that cannot be decoded or read, and links that lead
    nowhere or out of the folder (`follow_links` follows the latter). With `on_bad` "stop" they end the run. With "skip"
    they are left out, as if they had never existed, and listed in the set's `skipped`. Undecodable images are listed
    beside the .npy file and not tried again.

    With `num_classes` the images have labels: every folder directly in `path` with an image in it or below it is a
    class, numbered from 0 in natural order of the names (2 before 10). Classes that have lost all their images to
    "skip" are counted too, so that a number always means the same class.

    Raises FileNotFoundError or ValueError for a `path` that is no folder of images, ValueError for another number of
    class folders than `num_classes` or images outside them, ValueError listing the images that cannot be used (with
    "skip" only if there are no others), OSError if the cache cannot be written or decoding cannot continue.
    """
    size = height_width(image_size)
    how = reading(channels, value_range, background, crop)
    check_flip(flip)
    check_on_bad(on_bad)
    check_workers(workers)
    check_cache(memory_mb, cache_gb)
    if not path:
        raise ValueError("path is empty; the current folder is '.'")
    root = os.path.abspath(os.path.expanduser(path))
    found = _find_images(root, extensions, follow_links)
    # Known from the names: before hours of decoding.
    classes = _classes(found, root, num_classes) if num_classes is not None and found.images else ()
    most = int(cache_gb * GIB)
    cache = DecodedCache(cache_directory(cache_dir), os.path.realpath(root), size, channels, how, most)
    cached, undecodable = read_or_decode(
        cache, found.images, decode_into, root, workers=workers, memory=memory_mb * MIB, called=root
    )
    bad = sorted([*found.bad, *undecodable])
    if bad and (cached is None or on_bad == "stop"):
        raise ValueError(report(bad, root, cache.bad_path(found.images), all_bad=cached is None))
    assert cached is not None, root
    good = without(found.images, undecodable)
    labels = None if num_classes is None else folder_labels((file.name for file in good), classes)
    return ImageSet(
        pixels_of(cached, cache),
        printable(os.path.basename(root)),
        flip=flip,
        skipped=tuple(image.line(root) for image in bad),
        left_out=kinds_text(found.left_out),
        remarks=() if labels is None else _on_classes(found, classes, labels),
        labels=labels,
        class_names=tuple(printable(folder) for folder in classes),
        checksums=cached.checksums,
        random_crop=crop == "random",
        treatment=treatment(how, size),
    )


def _find_images(root: str, extensions: Sequence[str] | None, follow_links: bool) -> Found:
    """As `find_images`; raises FileNotFoundError or ValueError for what is no folder of images."""
    if extensions is not None:
        check_extensions(extensions)
    if not Path(root).exists():
        raise FileNotFoundError(f"no such folder of images: {printable(root)} (data.path)")
    if not os.path.isdir(root):
        raise ValueError(f"data.path must be a folder of images, but {printable(root)} is a file")
    found = find_images(root, extensions=extensions, follow_links=follow_links)
    if not found.images and not found.bad:
        names = None if extensions is None else ", ".join(f".{extension}" for extension in extensions)
        none = f"no file in it is {', '.join(FORMATS)}" if names is None else f"no file in it ends in {names}"
        there = f"; left out: {kinds_text(found.left_out)}" if found.left_out else ""
        raise ValueError(f"no images in {printable(root)}: {none}{there}")
    return found


def _classes(found: Found, root: str, num_classes: int) -> tuple[str, ...]:
    images, bad = ([image.name for image in some] for some in (found.images, found.bad))
    return class_folders(images, bad, root, num_classes)


def _on_classes(found: Found, classes: Sequence[str], labels: np.ndarray) -> tuple[str, ...]:
    """Remarks on folders that are no class, and on classes without an image."""
    remarks = []
    none = [printable(name) for name in found.folders if name not in classes]
    if none:
        more = ["..."] if len(none) > FOLDERS_SHOWN else []
        listed = ", ".join(none[:FOLDERS_SHOWN] + more)
        remarks.append(f"classes  left out: {len(none):,} without an image: {listed}")
    counts = np.bincount(labels, minlength=len(classes))
    for number in np.flatnonzero(counts == 0).tolist():
        remarks.append(f"classes  {number}: {printable(classes[number])} has no usable image")
    return tuple(remarks)
