"""Decoded images kept on disk, so that a folder is decoded once.

There are two kinds of files, each complete by itself: `KEY.npy` holds the pixels of a list of good images, followed by
the checksums that `stored_pixels.py` compares; `KEY.bad.json` names the images of a list that cannot be decoded. KEY is
a hash of the names, sizes and times of the images in the list. So a list from which bad images were skipped has the
same file after the bad images have been removed.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ddpm_cli.data import cache_files
from ddpm_cli.data.cache_limit import make_room
from ddpm_cli.data.decode import DecodingError
from ddpm_cli.data.framing import slot_bytes
from ddpm_cli.data.image_file import BadImage, ImageFile
from ddpm_cli.data.reading import AS_STORED, Reading
from ddpm_cli.data.stored_pixels import DamagedCacheError, StoredPixels, npy_header, trailer
from ddpm_cli.io import durable
from ddpm_cli.io.text import printable

DECODE_VERSION = 2  # part of the key: raise it when `decode` gives other pixels for the same file
_NAMES = re.compile(r"\d+x\d+x[134]-[0-9a-f]{32}\.npy")  # of the files
_LONGEST_REASON = 1000  # bytes of JSON for an image's error, with the punctuation around it

log = logging.getLogger(__name__)


class Cached(NamedTuple):
    """Decoded images, and the CRC-32 of each."""

    pixels: np.ndarray | StoredPixels  # uint8 [N, *shape of an item], in memory or still on the disk
    checksums: np.ndarray  # uint32 [N]


@dataclass(frozen=True)
class DecodedCache:
    """Images below `root`, decoded to uint8 `[channels, H, W]` with `size` (H, W), and kept in `directory`.

    `root` is the real path of a folder, or another text that distinguishes lists of equal names and sizes. If `reading`
    asks for windows of longer images, an image is kept as a slot of bytes: see `framing.packed`. The files there take
    at most `most` bytes (None: no limit), unless files in use take more.
    """

    directory: Path
    root: str
    size: tuple[int, int]
    channels: int
    reading: Reading = AS_STORED
    most: int | None = None

    def read(self, files: Sequence[ImageFile], memory: int) -> Cached | None:
        """The decoded `files`, in memory if they take at most `memory` bytes; None if they have to be decoded.

        They have to be if the cache does not have exactly these images, or if they have changed, which is logged.
        Raises OSError if there is something other than a file in their place.
        """
        try:
            path = self._path(files, "npy")
            stored = StoredPixels(path, self._shape(files))
            if self.most is not None:
                self._make_room(self.most, keep=[path])
            return Cached(stored.all() if stored.nbytes <= memory else stored, stored.checksums)
        except FileNotFoundError:
            return None
        except DamagedCacheError as error:
            log.warning(f"cache    {error}: decoding the images again")
            return None

    def read_bad(self, files: Sequence[ImageFile]) -> list[BadImage]:
        """The images among `files` that are known to be undecodable."""
        names = {file.name for file in files}
        most = sum(12 * len(name) + _LONGEST_REASON for name in names)  # JSON may escape a character by as many bytes
        content = cache_files.read(self.bad_path(files), most + _LONGEST_REASON)
        try:
            bad = [BadImage(name, reason) for name, reason in json.loads(content or b"[]")]
            return bad if all(image.name in names for image in bad) else []
        except (ValueError, TypeError, RecursionError):  # damaged: the images are decoded again
            return []

    def bad_path(self, files: Sequence[ImageFile]) -> Path:
        """The path of the list of `files` that cannot be decoded."""
        return self._path(files, "bad.json")

    def write(
        self, files: Sequence[ImageFile], decode_into: Callable[[str, int], tuple[np.ndarray, list[BadImage]]]
    ) -> list[BadImage]:
        """Keep the good images that `decode_into(file, offset)` writes for `files`, one after another.

        It returns the checksums of all of them, uint32 `[N]`, and the bad ones, as this does. Whatever is raised,
        nothing half-written remains. Raises OSError naming the directory if it cannot be written.
        """
        start = len(npy_header(self._shape(files)))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            cache_files.remove_abandoned(self.directory)
            if self.most is not None:
                self._make_room(self.most, needed=math.prod(self._shape(files)))
            durable.check_space(self.directory, math.prod(self._shape(files)))
            with cache_files.temporary(self.directory) as file:
                # Plain writes, not a memory map: on a full disk a map kills the process (SIGBUS) where a write raises.
                file.truncate(start + math.prod(self._shape(files)))
                checksums, bad = decode_into(file.name, start)
                self._write_bad(files, [image for image in bad if image.lasting])
                self._write_good(files, bad, file, start, checksums)
        except DecodingError:
            raise
        except OSError as error:
            raise OSError(
                f"cannot write the image cache in {printable(str(self.directory))} ({error.strerror or error}): "
                "choose another data.cache_dir"
            ) from error
        return bad

    def _make_room(self, most: int, *, needed: int = 0, keep: Sequence[Path] = ()) -> None:
        make_room(self.directory, most, names=_NAMES, key="data.cache_gb", needed=needed, keep=keep)

    def _write_bad(self, files: Sequence[ImageFile], bad: list[BadImage]) -> None:
        if bad:
            reasons = [[image.name, image.reason] for image in bad]
            cache_files.write(self.bad_path(files), json.dumps(reasons, indent=0).encode())
        else:
            self.bad_path(files).unlink(missing_ok=True)  # its list has turned out wrong

    def _write_good(
        self, files: Sequence[ImageFile], bad: list[BadImage], file: BinaryIO, start: int, checksums: np.ndarray
    ) -> None:
        """Turn `file`, which has room for all of `files` from byte `start` on, into the .npy file of the good ones."""
        bad_names = {image.name for image in bad}
        kept = [place for place, image in enumerate(files) if image.name not in bad_names]
        if not kept:
            return
        good = [files[place] for place in kept]
        _close_gaps(file, start, self.image_bytes, kept)
        path, header = self._path(good, "npy"), npy_header(self._shape(good))
        assert len(header) == start, header  # NumPy leaves room for any number of images
        file.seek(0, os.SEEK_END)
        file.write(trailer(path, checksums[kept]))
        file.seek(0)
        file.write(header)
        cache_files.put_in_place(file, path)

    @property
    def image_bytes(self) -> int:
        """The bytes of one image."""
        return math.prod(self._shape_of_one)

    @property
    def _shape_of_one(self) -> tuple[int, ...]:
        if self.reading.crop == "random":
            return (slot_bytes(self.channels, self.size),)
        return (self.channels, *self.size)

    def _shape(self, files: Sequence[ImageFile]) -> tuple[int, ...]:
        return (len(files), *self._shape_of_one)

    def _path(self, files: Sequence[ImageFile], suffix: str) -> Path:
        height, width = self.size
        return self.directory / f"{height}x{width}x{self.channels}-{_key(self.root, files, self.reading)}.{suffix}"


def _key(root: str, files: Sequence[ImageFile], reading: Reading) -> str:
    """32 hex digits that change with the list of images, with any of the files, and with the way they are decoded."""
    # The path counts too: archives unpack with equal times, and frames often have equal names and sizes.
    how = (DECODE_VERSION, root, *([] if reading == AS_STORED else [tuple(reading)]))
    digest = hashlib.sha256(repr(how).encode())
    for file in files:
        digest.update(repr(tuple(file)).encode())  # repr escapes the parts of a name that are not UTF-8
    return digest.hexdigest()[:32]


def _close_gaps(file: BinaryIO, start: int, size: int, kept: Sequence[int]) -> None:
    """Keep only the items `kept` of an array of items of `size` bytes, which starts at byte `start` of `file`."""
    for place, old_place in enumerate(kept):
        if place < old_place:
            file.seek(start + size * old_place)
            item = file.read(size)
            file.seek(start + size * place)
            file.write(item)
    file.truncate(start + size * len(kept))
