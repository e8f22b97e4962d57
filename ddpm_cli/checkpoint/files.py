"""One file of a checkpoint, which may come from anywhere: opened only if it is a plain file of a sensible size."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import safetensors

from ddpm_cli.checkpoint.metadata import (
    HEADER_KEY,
    MOST_HEADER,
    MOST_TEXT,
    SMALL_HEADER,
    CheckpointError,
    Metadata,
    parse,
)
from ddpm_cli.config.errors import shown

Shapes = dict[str, tuple[int, ...]]  # of tensors by name


def size_of(file: Path) -> int:
    """Bytes of a file of a checkpoint; links, which might lead outside, and pipes, which never end, are refused."""
    try:
        found = os.lstat(file)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise CheckpointError(f"{file} {'is missing' if missing else f'cannot be read: {error.strerror}'}") from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{file} is damaged: not a plain file")
    return found.st_size


def fingerprint(file: Path) -> str:
    """SHA-256 of a file of a checkpoint, in hexadecimal.

    Raises:
        CheckpointError: if it cannot be read, or is not a plain file.
    """
    size_of(file)
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


def read_bytes(file: Path) -> bytes:
    """All of a file of JSON.

    Raises:
        CheckpointError: if it has more than `MOST_TEXT` bytes, or cannot be read.
    """
    if size_of(file) > MOST_TEXT:
        raise CheckpointError(f"{file} is damaged: larger than {MOST_TEXT} bytes")
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def read_text(file: Path) -> str:
    """As `read_bytes`, of UTF-8."""
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


@contextlib.contextmanager
def opened(file: Path, *, header_only: bool = False) -> Iterator[safetensors.safe_open]:
    """A safetensors file whose header is of a sensible size; the library checks the rest of it.

    Args:
        header_only: no tensor will be read: none of the file is mapped into memory.

    Raises:
        CheckpointError: naming the file.
    """
    length = size_of(file)
    try:
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        # The library takes up to 30 times its length in memory.
        data = length - 8 - header
        if data < 0 or header > max(SMALL_HEADER, min(data, max(MOST_HEADER, length // 16))):
            raise CheckpointError(f"{file} is damaged: a header of {header} bytes in a file of {length}")
        with safetensors.safe_open(file, "np" if header_only else "pt") as tensors:
            yield tensors
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged: {shown(str(error))}") from error


def shapes_in(tensors: safetensors.safe_open) -> Shapes:
    """The shapes of the tensors that would be read, without reading them."""
    names = tensors.keys()
    return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}


def metadata_in(file: Path) -> Metadata:
    """The description in the header of an EMA file.

    Raises:
        CheckpointError: if it has none, or an invalid one.
    """
    with opened(file, header_only=True) as tensors:
        header = tensors.metadata() or {}
    if HEADER_KEY not in header:
        raise CheckpointError(f"{file} is not an EMA file of ddpm-cli: its header has no description")
    return parse(header[HEADER_KEY], file)
