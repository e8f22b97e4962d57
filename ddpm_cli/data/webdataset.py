"""Tar files in the WebDataset layout as one `ImageSet`: for sets that fit neither memory nor a decoded cache."""

import contextlib
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from ddpm_cli.data.decoded_cache import cache_directory, put_in_place, remove_abandoned, temporary
from ddpm_cli.data.image_set import ImageSet, check_channels, height_width
from ddpm_cli.data.shuffle import Blocks
from ddpm_cli.data.tar_index import BAD_LABEL, NO_LABEL, Shard, index_shard, member_at, shard_at
from ddpm_cli.data.tar_reader import Places, ShardPixels, share_of_cpus
from ddpm_cli.data.worker_pool import ProcessDiedError, WorkerPool
from ddpm_cli.io.text import printable

INDEX_VERSION = 1  # part of the key: raise it when `index_shard` finds something else in the same file
FEW_BYTES = 2**28  # of shards to be indexed: this many are indexed here, processes take half a second to start
MOST_SHARDS = 10**6  # that braces may stand for
SHOWN = 10  # of shards that cannot be used: there may be thousands

_BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


def webdataset(
    path: str,
    *,
    image_size: int | Sequence[int] = 64,
    channels: int = 3,
    flip: bool = True,
    num_classes: int | None = None,
    extensions: Sequence[str] = ("jpg", "jpeg", "png", "webp", "bmp"),
    window: int = 16,
    on_bad: Literal["stop", "skip"] = "stop",
    workers: int = -1,
    cache_dir: str | None = None,
) -> ImageSet:
    """Every sample with an image in the tar files of `path`: a folder, one of them, a glob, or `a-{000..127}.tar`.

    The image of a sample is its file with the first of `extensions` that it has, scaled and cropped to `image_size`
    (int or [H, W]) as `folder` does, by `workers` processes (-1: one per CPU; 0: none) when it is needed. Only where
    each image lies is found out beforehand, and kept in `cache_dir` for as long as the tar file stays the same; in
    memory that takes 16 bytes an image, and its label 8. With `num_classes` the label is the number in the sample's
    file `.cls`.

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
    check_channels(channels)
    _check_settings(extensions, window, on_bad, workers, num_classes)
    paths, name = _find(path)
    tables = _indices(paths, tuple(extension.lower() for extension in extensions), workers, cache_directory(cache_dir))
    shards = [shard for shard, table in tables if len(table) > 0]
    if not shards:
        raise ValueError(
            f"no images in the shards at {printable(path)}: no file in them ends in .{', .'.join(extensions)}"
        )
    rows = np.concatenate([table for _, table in tables])
    starts = np.cumsum([0, *(len(table) for _, table in tables if len(table) > 0)])
    places = Places(shards, starts, *np.ascontiguousarray(rows[:, :2].T))
    labels = None
    if num_classes is not None:
        labels = np.ascontiguousarray(rows[:, 2])
        _check_labels(labels, num_classes, places)
    return ImageSet(
        ShardPixels(places, size, channels, workers=workers, skip_bad=on_bad == "skip", labels=labels),
        name,
        flip=flip,
        labels=labels,
        class_names=() if num_classes is None else tuple(map(str, range(num_classes))),
        blocks=Blocks(starts, window),
    )


def _check_settings(extensions: Sequence[str], window: int, on_bad: str, workers: int, num_classes: int | None) -> None:
    if isinstance(extensions, str) or not extensions or not all(extensions):
        raise ValueError(
            f"extensions must be a list of what follows the dot in the names of images, got {extensions!r}"
        )
    if window < 1:
        raise ValueError(f"window must be at least 1 (shards shuffled at a time), got {window}")
    if on_bad not in ("stop", "skip"):
        raise ValueError(f"on_bad must be stop or skip, got {on_bad!r}")
    if workers < -1:
        raise ValueError(f"workers must be -1 (one per CPU), 0 (none) or a number of processes, got {workers}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


def _find(path: str) -> tuple[list[str], str]:
    """The tar files that `path` stands for, by name, and what the set is called.

    Raises FileNotFoundError or ValueError if there are none.
    """
    if not path:
        raise ValueError("path is empty; the current folder is '.'")
    if "://" in path or path.startswith("pipe:"):
        raise ValueError(f"path must lead to files of this machine, {printable(path)} does not: fetch the shards first")
    path = os.path.abspath(os.path.expanduser(path))
    shown = printable(path)
    if os.path.isdir(path):
        paths = glob.glob("*.tar", root_dir=path)
        if not paths:
            raise FileNotFoundError(f"no tar files in {shown} (data.path): none of its files ends in .tar")
        return sorted(os.path.join(path, name) for name in paths), printable(os.path.basename(path))
    if os.path.exists(path):
        paths = [path]
    elif _BRACES.search(path):
        paths = list(itertools.islice(_expanded(path), MOST_SHARDS + 1))
    elif glob.has_magic(path):
        paths = sorted(glob.glob(path))
    else:
        raise FileNotFoundError(f"no such folder or tar file: {shown} (data.path)")
    if not 0 < len(paths) <= MOST_SHARDS:
        found = f"more than {MOST_SHARDS:,} files" if paths else "no file"
        raise FileNotFoundError(f"{shown} (data.path) stands for {found}")
    return paths, printable(os.path.basename(os.path.dirname(paths[0])))


def _expanded(pattern: str) -> Iterator[str]:
    """`a-{08..11}.tar` is a-08.tar, a-09.tar, a-10.tar and a-11.tar."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    first, last = braces.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: braces.start()]}{number:0{len(first)}}{pattern[braces.end() :]}")


def _indices(
    paths: list[str], extensions: tuple[str, ...], workers: int, cache: Path
) -> list[tuple[Shard, np.ndarray]]:
    """Every shard with what `index_shard` finds in it, now or when the shard was last met.

    Raises ValueError listing the shards that cannot be used, OSError if the cache cannot be written.
    """
    tables: dict[str, tuple[Shard, np.ndarray]] = {}
    new: list[tuple[Shard, tuple[str, ...]]] = []
    unusable: dict[str, str] = {}
    for path in paths:
        try:
            shard = shard_at(path)
        except (OSError, ValueError) as error:
            unusable[path] = _reason(error)
            continue
        kept = _kept(cache / "shards" / _key(shard, extensions))
        if kept is None:
            new.append((shard, extensions))
        else:
            tables[path] = shard, kept
    remove_abandoned(cache / "shards")
    # Nothing is indexed, which may take hours, that could not be used.
    with contextlib.closing(_index([] if unusable else new, workers)) as indexed:
        for shard, found in indexed:
            if isinstance(found, str):
                unusable[shard.path] = found
            else:
                tables[shard.path] = shard, found
                _keep(cache / "shards" / _key(shard, extensions), found)
    if unusable:
        raise ValueError(_report(unusable, paths))
    return [tables[path] for path in paths]


def _index(
    new: list[tuple[Shard, tuple[str, ...]]], workers: int
) -> Generator[tuple[Shard, np.ndarray | str], None, None]:
    """Each shard with what is in it, or what is wrong with it, as they come."""
    here = workers == 0 or sum(shard.size for shard, _ in new) <= FEW_BYTES
    with contextlib.ExitStack() as stack:
        results: Iterator[tuple[tuple, np.ndarray | str]]
        if here:
            results = ((task, index_or_reason(*task)) for task in new)
        else:
            pool = stack.enter_context(contextlib.closing(WorkerPool(index_or_reason, share_of_cpus(workers))))
            results = stack.enter_context(contextlib.closing(pool.map(new)))
        # disable=None: a progress bar on a terminal, nothing in a log.
        try:
            for (shard, _), found in tqdm(results, total=len(new), desc="indexing", unit="shard", disable=None):
                yield shard, found
        except ProcessDiedError as death:
            raise OSError(
                f"a process indexing {printable(death.task[0].path)} {death}; data.workers=0 indexes without processes"
            ) from death


def index_or_reason(shard: Shard, extensions: tuple[str, ...]) -> np.ndarray | str:
    """As `index_shard`, but what it raises is returned: what is wrong with the file."""
    try:
        return index_shard(shard, extensions)
    except (OSError, ValueError) as error:
        return _reason(error)


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _report(unusable: dict[str, str], paths: list[str]) -> str:
    lines = [f"{printable(path)}: {printable(reason)}" for path, reason in sorted(unusable.items())]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN:,} more"]
    return "\n  ".join([f"{len(unusable):,} of {len(paths):,} shards cannot be used:", *lines])


def _check_labels(labels: np.ndarray, num_classes: int, places: Places) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong) == 0:
        return
    member = places.member(int(wrong[0]))
    what = {NO_LABEL: "has no .cls", BAD_LABEL: "has a .cls that is no whole number from 0 on"}
    label = int(labels[wrong[0]])
    raise ValueError(
        f"num_classes is {num_classes}, but {len(wrong):,} of {len(labels):,} samples have no label from 0 to "
        f"{num_classes - 1}, e.g. the one of {member_at(member.shard, member.offset)} in "
        f"{printable(member.shard.path)} {what.get(label, f'has {label}')}"
    )


# What was found in a shard, kept: the SHA-256 of the rest, then the table's int64 -------------------------------------


def _key(shard: Shard, extensions: tuple[str, ...]) -> str:
    """32 hex digits that change with the shard, and with what is looked for in it."""
    what = (INDEX_VERSION, os.path.realpath(shard.path), shard.size, shard.mtime_ns, extensions)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _kept(path: Path) -> np.ndarray | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, table = content[:32], content[32:]
    if hashlib.sha256(table).digest() != digest:
        return None
    return np.frombuffer(table, "<i8").astype(np.int64, copy=False).reshape(-1, 3)


def _keep(path: Path, table: np.ndarray) -> None:
    content = table.astype("<i8").tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path.parent) as file:
            file.write(hashlib.sha256(content).digest() + content)
            put_in_place(file, path)
    except OSError as error:
        raise OSError(
            f"cannot write the index of the shards in {path.parent} ({error.strerror or error}): "
            "choose another data.cache_dir"
        ) from error
