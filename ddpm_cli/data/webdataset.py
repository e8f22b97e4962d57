"""Tar files in the WebDataset layout as one `ImageSet`: for sets that fit neither memory nor a decoded cache."""

import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from ddpm_cli.data.cache_files import cache_directory
from ddpm_cli.data.image_set import Flip, ImageSet, check_flip
from ddpm_cli.data.index_cache import IndexCache, index_shards
from ddpm_cli.data.options import (
    Background,
    check_extensions,
    check_on_bad,
    check_workers,
    height_width,
    reading,
    treatment,
)
from ddpm_cli.data.reading import Crop
from ddpm_cli.data.scan import kinds_text
from ddpm_cli.data.shuffle import Blocks
from ddpm_cli.data.tar_index import BAD_LABEL, NO_LABEL, Shard, TarIndex, member_name
from ddpm_cli.data.tar_reader import TarReader
from ddpm_cli.io.text import printable

MOST_SHARDS = 10**6  # that braces may stand for

_BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


# It is long because of its options, which are those of its YAML file.
def webdataset(
    path: str,
    *,
    image_size: int | Sequence[int] = 64,
    channels: int = 3,
    flip: Flip = "horizontal",
    num_classes: int | None = None,
    extensions: Sequence[str] = ("jpg", "jpeg", "png", "webp", "bmp"),
    value_range: Sequence[float] | None = None,
    background: Background = "white",
    crop: Crop = "center",
    window: int = 16,
    on_bad: Literal["stop", "skip"] = "stop",
    workers: int = -1,
    cache_dir: str | None = None,
) -> ImageSet:
    """Every sample with an image in the tar files of `path`: a folder, one of them, a glob, or `a-{000..127}.tar`.

    The image of a sample is its file with the first of `extensions` that it has, scaled and cropped to `image_size`
    (int or [H, W]) as `folder` does, by `workers` processes (-1: one per CPU; 0: none) when it is needed. Only where
    each image lies is found out beforehand, and kept in `cache_dir` for as long as the tar file stays the same; in
    memory that takes 20 bytes an image, and its label 8. With `num_classes` the label is the number in the sample's
    file `.cls`. What else is in the tar files is counted in the set's `left_out`; `value_range`, `background` and
    `crop` are as for `folder`.

    An epoch goes through the shards in a random order and shuffles the images of `window` of them at a time (the set's
    `blocks`), so that reading stays within few files. Every rank goes through the same window and reads its part of
    each batch: together they read every image once, but all of them open every shard, and a disk that is best at
    reading from end to end sees short reads all over the window. Images that are alike are best not stored together:
    a run sees no others for as long as their window lasts.

    What cannot be decoded is met only while training. With `on_bad` "stop" it ends the run; with "skip" the next image
    of the set (of its class) is trained on in its place, and the log says so once.

    Raises FileNotFoundError or ValueError for a `path` that leads to no tar files, ValueError listing those that are
    none, damaged or cut short, for labels that are missing or not below `num_classes`, and for images nowhere; OSError
    if the cache cannot be written.
    """
    size = height_width(image_size)
    how = reading(channels, value_range, background, crop)
    check_flip(flip)
    check_on_bad(on_bad)
    check_workers(workers)
    check_extensions(extensions)
    if window < 1:
        raise ValueError(f"window must be at least 1 (tar files shuffled together), got {window}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    paths, name = _find(path)
    cache = IndexCache(cache_directory(cache_dir) / "shards", tuple(extension.lower() for extension in extensions))
    indexed = index_shards(paths, cache, workers)
    index, labels, checksums = _combined([(shard, found.table) for shard, found in indexed])
    left_out = sum((Counter(found.left_out) for _, found in indexed), Counter())
    if len(index) == 0:
        there = f"; left out: {kinds_text(left_out)}" if left_out else ""
        raise ValueError(
            f"no images in the tar files at {printable(path)}: no member ends in .{', .'.join(extensions)}{there}"
        )
    if num_classes is None:
        left_out[".cls"] += int(np.count_nonzero(labels != NO_LABEL))
        labels = None
    else:
        _check_labels(labels, num_classes, index)
    return ImageSet(
        TarReader(index, size, channels, workers=workers, skip_bad=on_bad == "skip", labels=labels, reading=how),
        name,
        flip=flip,
        left_out=kinds_text(+left_out),
        labels=labels,
        class_names=tuple(map(str, range(num_classes or 0))),
        blocks=Blocks(index.starts, window),
        checksums=checksums,
        random_crop=crop == "random",
        treatment=treatment(how, size),
    )


def _combined(tables: Sequence[tuple[Shard, np.ndarray]]) -> tuple[TarIndex, np.ndarray, np.ndarray]:
    """Where the images of all shards lie, those without any left out; their labels int64 and checksums uint32 `[N]`."""
    tables = [(shard, table) for shard, table in tables if len(table) > 0]
    rows = np.concatenate([np.empty((0, 4), np.int64), *(table for _, table in tables)])
    starts = np.cumsum([0, *(len(table) for _, table in tables)])
    # Copies, so that the columns that are not used are not kept: there may be many millions of rows.
    offsets, sizes = np.ascontiguousarray(rows[:, :2].T)
    index = TarIndex([shard for shard, _ in tables], starts, offsets, sizes)
    return index, np.ascontiguousarray(rows[:, 2]), rows[:, 3].astype(np.uint32)


def _find(path: str) -> tuple[list[str], str]:
    """The tar files that `path` stands for, by name, and what the set is called.

    Raises FileNotFoundError or ValueError if there are none.
    """
    if not path:
        raise ValueError("path is empty; the current folder is '.'")
    if "://" in path or path.startswith("pipe:"):
        raise ValueError(f"path must be on this machine, {printable(path)} is not: download the tar files first")
    path = os.path.abspath(os.path.expanduser(path))
    shown = printable(path)
    if os.path.isdir(path):
        paths = glob.glob("*.tar", root_dir=path)
        if not paths:
            raise FileNotFoundError(f"no tar files in {shown} (data.path): no file in it ends in .tar")
        return sorted(os.path.join(path, name) for name in paths), printable(os.path.basename(path))
    if os.path.exists(path):
        paths = [path]
    elif _BRACES.search(path):
        if math.prod(len(numbers) for numbers in _numbers(path)) > MOST_SHARDS:
            raise FileNotFoundError(f"{shown} (data.path) matches more than {MOST_SHARDS:,} files")
        paths = list(_expanded(path))
    elif glob.has_magic(path):
        paths = sorted(glob.glob(path))
    else:
        raise FileNotFoundError(f"no such folder or tar file: {shown} (data.path)")
    if not paths:
        raise FileNotFoundError(f"{shown} (data.path) matches no file")
    return paths, printable(os.path.basename(os.path.dirname(paths[0])))


def _numbers(pattern: str) -> list[range]:
    """What each pair of braces stands for."""
    return [range(int(first), int(last) + 1) for first, last in _BRACES.findall(pattern)]


def _expanded(pattern: str) -> Iterator[str]:
    """`a-{08..11}.tar` is a-08.tar, a-09.tar, a-10.tar and a-11.tar."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    first, last = braces.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: braces.start()]}{number:0{len(first)}}{pattern[braces.end() :]}")


def _check_labels(labels: np.ndarray, num_classes: int, index: TarIndex) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong) == 0:
        return
    member = index.member(int(wrong[0]))
    what = {NO_LABEL: "has no .cls", BAD_LABEL: "has a .cls that is not a whole number from 0 up"}
    label = int(labels[wrong[0]])
    raise ValueError(
        f"num_classes is {num_classes}, but {len(wrong):,} of {len(labels):,} samples have no label from 0 to "
        f"{num_classes - 1}, e.g. the one of {member_name(member)} in "
        f"{printable(member.shard.path)} {what.get(label, f'has {label}')}"
    )
