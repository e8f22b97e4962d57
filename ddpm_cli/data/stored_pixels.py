"""Images in a file of the cache: read as they are needed, and each compared with its checksum.

The file is a .npy file with something behind its array: the CRC-32 of every image, and the SHA-256 of those and of the
file's name, so that no file passes for another one.
"""

import hashlib
import io
import math
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddpm_cli.data import cache_files
from ddpm_cli.data.fingerprint import image_checksums
from ddpm_cli.io.text import printable

_AT_A_TIME = 2**24  # bytes read at a time where all are


class DamagedCacheError(OSError):
    """A file of the cache that does not hold what was put there; the message names it."""


class StoredPixels:
    """uint8 `[N, C, H, W]`, or `[N, bytes]`, like an array that only takes arrays of indices.

    Read, not mapped into memory: a file that shrinks under a map, or a disk that fails, kills the process (SIGBUS).

    Raises FileNotFoundError if there is no such file, DamagedCacheError if it does not hold images of this `shape` with
    their checksums, OSError if it is none or cannot be read.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path = path
        self.shape = shape
        self._file = cache_files.opened(path)
        cache_files.hold(self._file)
        self._one_at_a_time = threading.Lock()
        header = npy_header(shape)
        self._start = len(header)
        whole = self._start + self.nbytes + len(trailer(path, np.zeros(len(self), np.uint32)))
        if os.fstat(self._file.fileno()).st_size != whole or self._file.read(len(header)) != header:
            raise DamagedCacheError(f"{printable(str(path))} is incomplete, or from an earlier version")
        self._file.seek(self._start + self.nbytes)
        found = self._file.read(whole)
        self.checksums = np.frombuffer(found, "<u4", len(self)).astype(np.uint32)
        if found != trailer(path, self.checksums):
            raise DamagedCacheError(f"{printable(str(path))} is damaged")

    @property
    def nbytes(self) -> int:
        """The bytes of an array of these images."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 `[B, C, H, W]`: the images of int64 `[B]` indices.

        Raises DamagedCacheError for one that is not what it was, OSError if the file cannot be read.
        """
        if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype != np.int64:
            raise TypeError(f"images in a cache are had by int64 [B] arrays of their indices, not by {indices!r}")
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        try:
            for place, image in enumerate(indices.tolist()):
                self._read(image, pixels[place : place + 1])
        except DamagedCacheError as error:
            raise DamagedCacheError(f"{error}; remove that file and start again to decode the images again") from error
        return pixels

    def all(self) -> np.ndarray:
        """uint8 `[N, C, H, W]`: every image, in memory, as long as which the file is held. Raises as `__getitem__`."""
        pixels = np.empty(self.shape, np.uint8)
        for first, part in self.parts():
            pixels[first : first + len(part)] = part
        weakref.finalize(pixels, self._file.close)
        return pixels

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Every image, in arrays of some of them after another, each with the index of its first."""
        step = max(1, _AT_A_TIME // math.prod(self.shape[1:]))
        for first in range(0, len(self), step):
            part = np.empty((min(step, len(self) - first), *self.shape[1:]), np.uint8)
            self._read(first, part)
            yield first, part

    def _read(self, first: int, pixels: np.ndarray) -> None:
        """Fill `pixels` with the images from `first` on."""
        with self._one_at_a_time:
            self._file.seek(self._start + first * math.prod(self.shape[1:]))
            self._file.readinto(pixels.reshape(-1).data)
        wrong = np.flatnonzero(image_checksums(pixels) != self.checksums[first : first + len(pixels)])
        if len(wrong) > 0:
            raise DamagedCacheError(
                f"{printable(str(self.path))} is damaged: image {first + int(wrong[0])} is not what was decoded"
            )


def npy_header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of uint8 in this shape begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def trailer(path: Path, checksums: np.ndarray) -> bytes:
    """What the file at `path` ends with, by the uint32 `[N]` checksums of its images."""
    content = checksums.astype("<u4").tobytes()
    return content + hashlib.sha256(path.name.encode() + content).digest()
