"""Which samples a tar file in the WebDataset layout holds, and where: told from its headers, nothing is unpacked.

A sample is a run of files of one name that differ in what follows its first dot: `000017.jpg`, `000017.cls`. Worker
processes import this module: it needs the standard library and NumPy.
"""

import itertools
import operator
import os
import stat
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from typing import NamedTuple

import numpy as np

from ddpm_cli.data.formats import kind_of
from ddpm_cli.io.openers import nonblocking
from ddpm_cli.io.text import printable

NO_LABEL = -1  # the sample has no .cls member
BAD_LABEL = -2  # or one that is not a whole number from 0 on

_BLOCK = 512  # bytes; everything in a tar file begins at a multiple of this
_MOST_HEADERS = 2**17  # bytes of what stands before a member's content; a hostile header may claim any size
_MOST_GLOBAL = 256  # values that hold for all members: each of them gets a copy
_BEGINNING = 2048  # bytes of an image's file that count for its checksum: the buffer has them already
_MOST_DIGITS = 18  # of a label: what fits int64
_MOST_KINDS = 32  # of what is left out, told apart
_SHOWN = 100  # characters of a name in a message
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Shard(NamedTuple):
    """A tar file, and what tells it from a later version of itself."""

    path: str
    size: int  # bytes
    mtime_ns: int


class Member(NamedTuple):
    """A file in a shard, by where its content is."""

    shard: Shard
    offset: int
    size: int  # bytes


class Indexed(NamedTuple):
    """What there is in a shard."""

    # int64 [N, 4]: where each sample's image begins in the file, its length in bytes, the label, and a checksum.
    table: np.ndarray
    left_out: dict[str, int]  # members that are neither an image nor its label, counted by kind


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Where N images lie: `starts[s]` up to `starts[s + 1]` in `shards[s]`, each `sizes` bytes from `offsets` on."""

    shards: Sequence[Shard]
    starts: np.ndarray  # int64 [shards + 1]
    offsets: np.ndarray  # int64 [N]
    sizes: np.ndarray  # int64 [N]

    def __len__(self) -> int:
        return len(self.offsets)

    def member(self, image: int) -> Member:
        """Where one of the images is."""
        shard = int(np.searchsorted(self.starts, image, side="right")) - 1
        return Member(self.shards[shard], int(self.offsets[image]), int(self.sizes[image]))


def shard_at(path: str) -> Shard:
    """The shard that a path leads to. Raises OSError if there is none that can be read, ValueError if it is no file."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    return Shard(path, status.st_size, status.st_mtime_ns)


def open_shard(shard: Shard) -> FileIO:
    """The file, unbuffered. Raises OSError if it cannot be opened or is not the one it was."""
    file = FileIO(shard.path, opener=nonblocking)
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != shard[1:]:
        file.close()
        raise OSError(f"{printable(shard.path)} has changed since it was indexed: start again")
    return file


def index_shard(shard: Shard, extensions: Sequence[str]) -> Indexed:
    """Where the image of each sample is in the file, and what else there is.

    The image is the member with the first of `extensions` that the sample has; samples without one are left out. The
    label is in the member `cls`, in decimal; see NO_LABEL and BAD_LABEL. The checksum is a CRC-32 of the image's name,
    length, time and beginning: to read all of it would take as long as training on it.

    Raises ValueError saying what is wrong with a file that is no whole tar file, OSError if it cannot be read.
    """
    rows, left_out = [], Counter()
    with open_shard(shard) as raw, _Bounded(raw) as file:
        for sample in _samples(file, {*extensions, "cls"}, left_out):
            extension = next((extension for extension in extensions if extension in sample), None)
            for other in sample.keys() - {extension, "cls" if extension else None}:
                left_out[f".{other}"] += 1
            if extension is not None:
                image = sample[extension]
                rows.append((image.offset, image.size, _label(sample.get("cls")), image.checksum))
    return Indexed(np.array(rows, np.int64).reshape(-1, 4), _few_kinds(left_out))


def _few_kinds(left_out: Counter[str]) -> dict[str, int]:
    """The commonest kinds, and how many there are of all others; names in a shard may be anything."""
    few = dict(left_out.most_common(_MOST_KINDS))
    rest = left_out.total() - sum(few.values())
    return few | ({"of other kinds": rest} if rest else {})


def member_name(member: Member) -> str:
    """The name of a member, as it may be shown; for messages: it takes a search."""
    try:
        with open_shard(member.shard) as raw, _Bounded(raw) as file:
            return printable(
                next(found.name[:_SHOWN] for found in _files(file, Counter()) if found.offset_data == member.offset)
            )
    except (OSError, ValueError, StopIteration):
        return f"the member at byte {member.offset}"


class _Bounded(BufferedReader):
    """A file out of which tarfile reads no more than a member's headers may have, before `left` is set again."""

    left = _MOST_HEADERS

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise tarfile.ReadError("a header of an impossible size")
        self.left -= size
        return super().read(size)


class _Found(NamedTuple):
    """A plain file in a tar file."""

    key: str | None  # of its sample
    extension: str
    offset: int
    size: int
    beginning: bytes  # of its content
    checksum: int  # of its name, size, time and beginning


def _samples(file: _Bounded, wanted: set[str], left_out: Counter[str]) -> Iterator[dict[str, _Found]]:
    """The members of each sample that have a `wanted` extension, in lower case, by that; `left_out` counts the others.

    Of two alike the second is left out.
    """
    for key, run in itertools.groupby(_found(file, wanted, left_out), key=operator.attrgetter("key")):
        sample = {}
        for found in run:
            if key is None:
                left_out["hidden or without a suffix"] += 1
            elif found.extension in wanted and found.extension not in sample:
                sample[found.extension] = found
            else:
                left_out[kind_of(f"x.{found.extension}")] += 1
        yield sample


def _found(file: _Bounded, wanted: set[str], left_out: Counter[str]) -> Iterator[_Found]:
    """The plain files in a tar file; with the beginning of their content where their extension is `wanted`."""
    for member in _files(file, left_out):
        key, extension = _key_and_extension(member.name)
        beginning = b""
        if extension in wanted:
            file.seek(member.offset_data)
            beginning = file.read(min(member.size, _BEGINNING))
        checksum = zlib.crc32(beginning, zlib.crc32(repr((member.name, member.size, member.mtime)).encode()))
        yield _Found(key, extension, member.offset_data, member.size, beginning, checksum)


def _key_and_extension(name: str) -> tuple[str | None, str]:
    """What names the sample, folders included, and what comes after; no key for a hidden file, or one without a dot."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}/{stem}" if stem and extension else None, extension.lower()


def _files(file: _Bounded, left_out: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar file; links, devices and sparse files are left out and counted, folders passed over.

    Raises ValueError unless it is whole.
    """
    start = file.read(max(map(len, _COMPRESSED)))
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"compressed with {name}: decompress it first, as members are read in place")
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.TarFile(fileobj=file) as tar:
            place = -1
            while (member := tar.next()) is not None:
                if not place < tar.offset <= end:  # tarfile itself would go round for ever, and seeks anywhere
                    raise tarfile.ReadError(f"cut short or damaged at {printable(member.name[:_SHOWN])}")
                place = tar.offset
                vars(tar)["members"].clear()  # which would grow by a kilobyte for each
                if len(tar.pax_headers) > _MOST_GLOBAL:
                    raise tarfile.ReadError("too many global headers")
                file.left = _MOST_HEADERS
                if member.isreg() and not member.issparse():
                    _check_size(member, place)
                    yield member
                    file.left = _MOST_HEADERS
                elif not member.isdir():
                    left_out["links or devices"] += 1
            _check_end(file, tar.offset)
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise ValueError(f"not a complete tar file: {error}") from error


def _check_size(member: tarfile.TarInfo, following: int) -> None:
    """Raise ReadError unless the member's content fills the blocks up to byte `following`, where the next one begins.

    tarfile takes any size from an extended header: negative ones, and such as reach beyond the end of the file.
    """
    if member.size < 0 or member.offset_data + -(-member.size // _BLOCK) * _BLOCK != following:
        raise tarfile.ReadError(f"{printable(member.name[:_SHOWN])} has an impossible size, {member.size:,}")


def _check_end(file: _Bounded, offset: int) -> None:
    """Raise ReadError unless there is a block of zeros at `offset`.

    tarfile does without, and takes anything that is no header for the end: half of a file would pass for a whole one.
    """
    file.seek(offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise tarfile.ReadError(
            "cut short, or not yet fully written: the zeros at its end are missing "
            "(if nothing else is missing, `truncate -s +1024 FILE` adds them)"
        )
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"damaged: at byte {offset} there is neither a member nor the end of the file")


def _label(found: _Found | None) -> int:
    if found is None:
        return NO_LABEL
    text = found.beginning.strip()
    return int(text) if found.size <= _BEGINNING and text.isdigit() and len(text) <= _MOST_DIGITS else BAD_LABEL
