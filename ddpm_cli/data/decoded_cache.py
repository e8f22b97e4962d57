"""Decoded images kept on disk, so that a folder is decoded once.

There are two kinds of files, each complete and true by itself: `KEY.npy` holds the pixels of a list of images, all of
them good; `KEY.bad.json` says which images of a list cannot be decoded. KEY stands for the names, sizes and times of
the images in the list. So the images that are left when the bad ones are skipped are found again when the bad ones have
been removed.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddpm_cli.data.bad_images import BadImage
from ddpm_cli.data.decode import DecodingError
from ddpm_cli.data.scan import ImageFile
from ddpm_cli.io import durable

DECODE_VERSION = 2  # part of the key: raise it when `decode` gives other pixels for the same file
BLOCK = 16 * 2**20  # bytes moved at a time
ABANDONED_SECONDS = 24 * 3600  # a temporary file is written to all the time, unless its writer has been killed
MIB = 2**20


@dataclass(frozen=True)
class Cache:
    """Images below `root`, decoded to uint8 `[channels, H, W]` with `size` (H, W), as they are kept in `directory`."""

    directory: Path
    root: str
    size: tuple[int, int]
    channels: int

    def read(self, files: Sequence[ImageFile]) -> np.ndarray | None:
        """uint8 `[len(files), channels, H, W]`, read-only and on disk; None if exactly these images are not here."""
        shape = self._shape(files)
        header = _npy_header(shape)
        try:
            with open(self._path(files, "npy"), "rb") as file:
                length = os.fstat(file.fileno()).st_size
                if file.read(len(header)) != header or length != len(header) + math.prod(shape):
                    return None
                return np.memmap(file, np.uint8, "r", offset=len(header), shape=shape)
        except OSError:
            return None

    def read_bad(self, files: Sequence[ImageFile]) -> list[BadImage]:
        """The images among `files` of which it is known that they cannot be decoded."""
        names = {file.name for file in files}
        try:
            bad = [BadImage(name, reason) for name, reason in json.loads(self.bad_path(files).read_bytes())]
            return bad if all(image.name in names for image in bad) else []
        except (OSError, ValueError, TypeError):  # none, or damaged: the images are decoded again
            return []

    def bad_path(self, files: Sequence[ImageFile]) -> Path:
        """Where it is kept which of `files` cannot be decoded."""
        return self._path(files, "bad.json")

    def write(self, files: Sequence[ImageFile], decode_into: Callable[[str, int], list[BadImage]]) -> list[BadImage]:
        """Keep what `decode_into(file, offset)` writes for `files`: one image after another, the good ones anyway.

        Returns the bad ones, as it does. Whatever goes wrong, and whatever is raised, nothing half-written remains.
        Raises OSError naming the directory if it cannot be written.
        """
        start = len(_npy_header(self._shape(files)))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.directory)
            durable.check_space(self.directory, math.prod(self._shape(files)))
            with temporary(self.directory) as file:
                # Plain writes, not a memory map: on a full disk a map kills the process (SIGBUS) where a write raises.
                file.truncate(start + math.prod(self._shape(files)))
                bad = decode_into(file.name, start)
                self._write_bad(files, [image for image in bad if image.lasting])
                self._write_good(files, bad, file, start)
        except DecodingError:
            raise
        except OSError as error:
            raise OSError(
                f"cannot write the image cache in {self.directory} ({error.strerror or error}): "
                "choose another data.cache_dir"
            ) from error
        return bad

    def _write_bad(self, files: Sequence[ImageFile], bad: list[BadImage]) -> None:
        if not bad:
            self.bad_path(files).unlink(missing_ok=True)  # what is said there has turned out wrong
            return
        with temporary(self.directory) as file:
            file.write(json.dumps([[image.name, image.reason] for image in bad], indent=0).encode())
            put_in_place(file, self.bad_path(files))

    def _write_good(self, files: Sequence[ImageFile], bad: list[BadImage], file: BinaryIO, start: int) -> None:
        """Make of `file`, which has room for all of `files` from byte `start` on, the .npy file of the good ones."""
        good = without(files, bad)
        if not good:
            return
        bad_names = {image.name for image in bad}
        gaps = [position for position, image in enumerate(files) if image.name in bad_names]
        _close_gaps(file, start, self.channels * math.prod(self.size), gaps, len(files))
        header = _npy_header(self._shape(good))
        assert len(header) == start, header  # NumPy leaves room for any number of images
        file.seek(0)
        file.write(header)
        put_in_place(file, self._path(good, "npy"))

    def _shape(self, files: Sequence[ImageFile]) -> tuple[int, int, int, int]:
        return (len(files), self.channels, *self.size)

    def _path(self, files: Sequence[ImageFile], suffix: str) -> Path:
        height, width = self.size
        return self.directory / f"{height}x{width}x{self.channels}-{_key(self.root, files)}.{suffix}"


def cache_directory(cache_dir: str | None) -> Path:
    """Where caches lie: in `cache_dir` if that is given, else ddpm-cli in $XDG_CACHE_HOME or ~/.cache."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "ddpm-cli"


@contextlib.contextmanager
def temporary(directory: Path) -> Generator[BinaryIO, None, None]:
    """A new file, open for reading and writing, that is gone after the block unless it has been renamed."""
    path = directory / f"ddpm-cli-{secrets.token_hex(4)}.tmp"
    try:
        with open(path, "xb+") as file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove_abandoned(directory: Path) -> None:
    """Remove the temporary files of runs that were killed (SIGKILL), which can be large."""
    for path in directory.glob(f"ddpm-cli-{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def without(files: Sequence[ImageFile], bad: Sequence[BadImage]) -> list[ImageFile]:
    """Those of `files` that are not among `bad`, in their order."""
    names = {image.name for image in bad}
    return [file for file in files if file.name not in names]


def _key(root: str, files: Sequence[ImageFile]) -> str:
    """32 hex digits that change with the list of images, with any of the files, and with the way they are decoded."""
    # The place counts too: archives unpack with equal times, and equal names and sizes are common among frames.
    digest = hashlib.sha256(repr((DECODE_VERSION, os.path.realpath(root))).encode())
    for file in files:
        digest.update(repr(tuple(file)).encode())  # repr escapes what of a name is no UTF-8
    return digest.hexdigest()[:32]


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of uint8 in this shape begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _close_gaps(file: BinaryIO, start: int, size: int, gaps: list[int], count: int) -> None:
    """Take the positions `gaps` out of an array of `count` items of `size` bytes that is in `file` from `start` on."""
    end = start + size * (gaps[0] if gaps else count)
    for gap, following in zip(gaps, [*gaps, count][1:], strict=True):
        source, stop = start + size * (gap + 1), start + size * following
        while source < stop:
            file.seek(source)
            block = file.read(min(BLOCK, stop - source))
            assert block, (source, stop)
            file.seek(end)
            file.write(block)
            source, end = source + len(block), end + len(block)
    file.truncate(end)


def put_in_place(file: BinaryIO, path: Path) -> None:
    """Give an open file its final name, durably: what the name promises is on the disk before the name is."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)
    durable.sync(path.parent)
