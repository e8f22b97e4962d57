"""A lock file that one process holds at a time; a process that is refused is told who holds it.

Where the system has locks (flock), it takes one back however the process ends; the file only says whose it is. Where a
file system has none, the lock is that a file exists (`SoftFileLock`): what a dead process has left of it is taken over
on its own machine, and has to be removed on any other.
"""

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from ddpm_cli.io import durable
from ddpm_cli.io.text import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

EXISTS = ".held"  # ends the name of the file whose existence is the lock
# How a file system says that it has no flock.
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_TAKEOVER_SECONDS = 0.5  # for the library to find that the holder is dead, and to try again
_MOST_RECORD = 4096  # bytes


def acquire(path: Path) -> Callable[[], None]:
    """Take the lock of a file; returns a function that releases it. The end of the process releases it too.

    The file stays, unless there is nothing else in its directory.

    Raises:
        BlockingIOError: if another process holds it: says which, on which machine, and what to do about a dead one.
        OSError: if the file cannot be made.
    """
    if fcntl is None:
        return _acquired(FileLock(path))
    made = not path.exists()
    try:
        return _flock(path)
    except OSError as error:
        if made and not isinstance(error, BlockingIOError):
            path.unlink(missing_ok=True)
        if error.errno not in _NO_FLOCK:
            raise
        marker = path.with_name(f"{path.name}{EXISTS}")
        durable.say_weaker(
            path.parent,
            "has no locks",
            error,
            f"{marker.name} keeps other processes out instead; remove it after a process killed on another machine",
        )
    return _acquired(SoftFileLock(marker))


def _flock(path: Path) -> Callable[[], None]:
    assert fcntl is not None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            if _locked(descriptor, path):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    with suppress(OSError):  # on a full disk nobody learns who holds it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, os.fsencode(f"{os.getpid()}\n{socket.gethostname()}\n{path.parent.absolute()}\n"))

    def release() -> None:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            if os.listdir(path.parent) == [path.name]:
                os.unlink(path)
        os.close(descriptor)

    return release


def _locked(descriptor: int, path: Path) -> bool:
    """Lock an open file; False if `path` is, or now has become, another file.

    Raises:
        BlockingIOError: if another process holds it.
    """
    assert fcntl is not None
    try:
        with durable.errors_naming(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # how some file systems say the same
        if os.fstat(descriptor).st_nlink == 1 or not _held_elsewhere(path):
            raise _refusal(path) from None
        durable.unshare(path)
        return False
    found = os.fstat(descriptor)
    if found.st_nlink > 1:  # a copy of its directory (`cp -al`) has the same file, and would have the same lock
        durable.unshare(path)
        return False
    try:
        return os.path.samestat(found, os.lstat(path))
    except FileNotFoundError:
        return False


def _held_elsewhere(path: Path) -> bool:
    """Whether the holder of a file with several names works in another directory, by its record."""
    with suppress(OSError, IndexError):
        return not os.path.samefile(_record(path)[2], path.parent)
    return False


def _acquired(lock: BaseFileLock) -> Callable[[], None]:
    try:
        lock.acquire(timeout=_TAKEOVER_SECONDS)
    except Timeout:
        raise _refusal(Path(lock.lock_file)) from None
    return lock.release


def _refusal(path: Path) -> BlockingIOError:
    try:
        pid, host, *_ = _record(path)
        holder = f"process {int(pid)} on {printable(host[:200].partition('?')[0])}"
    except (OSError, ValueError):  # none, or on Windows one that cannot be read while it is locked
        holder = "another process"
    return BlockingIOError(f"{path} is held by {holder}; if it no longer runs, remove the file")


def _record(path: Path) -> list[str]:
    """The content of a lock file: the holder's process id, its machine, and possibly more."""
    with open(path, "rb") as file:
        return os.fsdecode(file.read(_MOST_RECORD)).splitlines()
