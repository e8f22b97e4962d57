"""Files that survive a power cut: what has been written is on the disk before the next step relies on it.

Every call that changes the file system is one of `os`, in the order it is written here: a rename promises nothing about
what the renamed file holds, and neither a new file nor a rename is safe before its directory has been flushed.
"""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_space(directory: Path, needed: int) -> None:
    """Raise OSError unless `needed` bytes are free: better known before writing than in the middle of it."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        message = f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        raise OSError(errno.ENOSPC, message, str(directory))


def make_directory(path: Path) -> None:
    """Make a directory, and those it lies in where they are missing, durably. Raises FileExistsError if it is there."""
    if not path.parent.is_dir():
        with suppress(FileExistsError):  # another process has just made it
            make_directory(path.parent)
    os.mkdir(path)
    sync(path.parent)


def write_new(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file that was not there, and flush it; its entry in the directory is not yet durable.

    Returns:
        Its size in bytes and its SHA-256, of what was handed over for writing.
    """
    digest, size = hashlib.sha256(), 0
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)) as descriptor:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            while len(chunk) > 0:
                chunk = chunk[os.write(descriptor, chunk) :]
        os.fsync(descriptor)
    return size, digest.hexdigest()


def replace(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Give a file new content, durably: a reader, or a process killed half-way, sees the old or the new one.

    Args:
        content: all of it, or its pieces, which may be read from the old one.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    write_new(temporary, [content] if isinstance(content, bytes) else content)
    os.replace(temporary, path)
    sync(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename within one directory, durably."""
    os.rename(source, target)
    sync(source.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; links are removed, not followed."""
    for name in os.listdir(path):
        entry = path / name
        if stat.S_ISDIR(os.lstat(entry).st_mode):
            remove_tree(entry)
        else:
            os.unlink(entry)
    os.rmdir(path)


def sync(path: Path) -> None:
    """Flush a directory, that is the names in it, to the disk."""
    if os.name == "nt":  # Windows flushes names by itself and does not open directories
        return
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of the file; errors name the file, also one of closing it."""
    with errors_naming(path):
        descriptor = os.open(path, flags, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Add the name of a file to an OSError that does not know it, as of one that was raised for its descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
