"""Files in the cache directory, which several runs may use at once: each is complete, or absent.

A file gets its name once it is on the disk. Before that it is a temporary file, which its writer removes or, if the
writer has been killed, a later one.
"""

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Generator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from ddpm_cli.io import durable
from ddpm_cli.io.openers import nonblocking
from ddpm_cli.io.text import printable

try:
    import fcntl
except ImportError:  # Windows, which removes no file that is open
    fcntl = None

_REMOVE_IT = "remove it, or choose another data.cache_dir"
ABANDONED_SECONDS = 24 * 3600  # a temporary file is written to all the time, unless its writer has been killed


def cache_directory(cache_dir: str | None) -> Path:
    """The directory of the caches: `cache_dir` if it is given, else ddpm-cli in $XDG_CACHE_HOME or ~/.cache."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "ddpm-cli"


def opened(path: Path) -> FileIO:
    """Open a file of the cache for reading, unbuffered. Raises FileNotFoundError or, for what is no file, OSError."""
    try:
        file = FileIO(path, opener=nonblocking)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        raise OSError(f"cannot read {printable(str(path))} ({error.strerror}): {_REMOVE_IT}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{printable(str(path))} is not a regular file: {_REMOVE_IT}")
    return file


def hold(file: FileIO) -> None:
    """Mark a file of the cache as used now, and protect it from `remove_unused` while it is open here."""
    with contextlib.suppress(OSError):  # a cache that only somebody else may write, or a disk without locks
        if fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(file.name)


def remove_unused(path: Path) -> bool:
    """Remove a file of the cache; returns False if a process holds it, or if that cannot be determined."""
    try:
        with FileIO(path, "r+") as file:
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        if fcntl is None:
            path.unlink()
    except OSError:
        return False
    return True


def read(path: Path, most: int) -> bytes | None:
    """The content of a file of the cache; None if it is missing or larger than `most` bytes. Raises as `opened`."""
    try:
        with opened(path) as file:
            content = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
    except FileNotFoundError:
        return None
    return content if content is not None and len(content) <= most else None


@contextlib.contextmanager
def temporary(directory: Path) -> Generator[BinaryIO, None, None]:
    """A new file, open for reading and writing, which is removed after the block unless it has been put in place."""
    path = directory / f"ddpm-cli-{secrets.token_hex(4)}.tmp"
    try:
        with open(path, "xb+") as file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def put_in_place(file: BinaryIO, path: Path) -> None:
    """Give an open file its final name, durably: its content is on the disk before the name is."""
    file.flush()
    durable.flush(file.fileno(), path)
    os.replace(file.name, path)
    durable.sync(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write a file, durably, replacing an earlier one."""
    with temporary(path.parent) as file:
        file.write(content)
        put_in_place(file, path)


def remove_abandoned(directory: Path) -> None:
    """Remove the temporary files of runs that were killed (SIGKILL), which can be large."""
    for path in directory.glob(f"ddpm-cli-{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
