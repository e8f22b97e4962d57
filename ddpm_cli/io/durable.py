"""Files that survive a power cut: what was written is on the disk before the next operation relies on it.

Every call that changes the file system is one of `os`, in the order it is written here: a rename promises nothing about
what the renamed file holds, and neither a new file nor a rename is safe before its directory has been flushed.

A file system that cannot flush (some on the network, some of FUSE) is no error: what is weaker there is said once.
"""

import errno
import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddpm_cli.io.text import printable

log = logging.getLogger("ddpm_cli")

CHUNK_BYTES = 2**20  # of a file that is copied
# How a file system says that it does not flush. A full or broken disk says something else.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_CANNOT_FLUSH_NAMES = _CANNOT_FLUSH | {errno.EBADF, errno.EISDIR, errno.EACCES}  # of a directory that is open to read
# A machine may know for so long that a name is not there (NFS: acdirmax) after another one has made it.
SHOWS_SECONDS = 60.0
POLL_SECONDS = 0.1

_said: set[str] = set()


def check_space(directory: Path, needed: int) -> None:
    """Raise OSError unless `needed` bytes are free, before writing rather than in the middle of it."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        message = f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        raise OSError(errno.ENOSPC, message, str(directory))


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, durably. Raises FileExistsError if it exists."""
    if not path.parent.is_dir():
        with suppress(FileExistsError):  # another process has just made it
            make_directory(path.parent)
    os.mkdir(path)
    sync(path.parent)


def write_new(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file, and flush it; its entry in the directory is not yet durable.

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
        flush(descriptor, path)
    return size, digest.hexdigest()


def replace(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Replace the content of a file, durably: readers, also after a kill, see the old or the new content.

    Args:
        content: all of it, or its pieces, which may be read from the old one.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    write_new(temporary, [content] if isinstance(content, bytes) else content)
    os.replace(temporary, path)
    sync(path.parent)


def unshare(path: Path) -> None:
    """Call before writing to a file in place: if other names share it (hard links, `cp -al`), make it a copy."""
    try:
        shared = os.lstat(path).st_nlink > 1
    except FileNotFoundError:
        return
    if shared:
        with open(path, "rb") as file:
            replace(path, iter(lambda: file.read(CHUNK_BYTES), b""))


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


def absent(path: Path) -> list[Path]:
    """The directories among this one and its parents that do not exist, innermost first, for `remove_empty`."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove created directories that are still empty, innermost first."""
    with suppress(OSError):
        for directory in directories:
            os.rmdir(directory)


def wait_for(*paths: Path) -> None:
    """Wait until files that a process on another machine has created are visible on this one.

    After SHOWS_SECONDS too: whoever opens them then says which is missing.
    """
    until = time.monotonic() + SHOWS_SECONDS
    for path in paths:
        while not path.exists() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            with suppress(OSError):
                os.listdir(path.parent)  # has a network file system look for what is new


# Flushing ------------------------------------------------------------------------------------------------------------


def flush(descriptor: int, path: Path) -> None:
    """Flush the content of a file to the disk."""
    try:
        with errors_naming(path):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
        say_weaker(path, "does not flush files", error, "a power cut may damage the newest files")


def sync(path: Path) -> None:
    """Flush a directory, which is the names in it, to the disk."""
    if os.name == "nt":  # Windows flushes names by itself and does not open directories
        return
    try:
        with _opened(path, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH_NAMES:
            raise
        say_weaker(path, "does not flush directories", error, "a power cut may undo the newest saves")


def say_weaker(path: Path, lacks: str, error: OSError, consequence: str) -> None:
    """Log, once in a process, what a file system lacks and what that means; only rank 0 does so."""
    if lacks not in _said and int(os.environ.get("RANK", "0")) == 0:
        log.warning(f"disk     {printable(str(path))}: this file system {lacks} ({error.strerror}): {consequence}")
    _said.add(lacks)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of the file; all errors name the file, also that of closing it."""
    with errors_naming(path):
        descriptor = os.open(path, flags, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Add the name of a file to an OSError without it, such as one that was raised for its descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
