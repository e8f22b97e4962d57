"""A directory that appears complete, or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddpm_cli.io import durable, lock

LOCK_FILE = ".lock"


@contextmanager
def made_whole(final: Path) -> Iterator[Path]:
    """Inside, a new directory to write to; it gets its name at the end, durably, and is removed if there is an error.

    What a process that was killed has left of one is removed first. The files and folders in it have to be flushed by
    whoever writes them.

    Raises:
        FileExistsError: if there is anything of that name.
        BlockingIOError: if another process is writing it.
        OSError: if it cannot be made.
    """
    _check_absent(final)
    temporary = final.with_name(f".{final.name}.tmp")
    if final.parent.exists() and not final.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final.parent))
    made = durable.absent(final.parent)
    try:
        if made:
            with suppress(FileExistsError):  # another process has just made it
                durable.make_directory(final.parent)
        with suppress(FileExistsError):
            os.mkdir(temporary)
        if temporary.is_symlink() or not temporary.is_dir():
            raise FileExistsError(errno.EEXIST, "is not a directory that was being written", str(temporary))
        release = lock.acquire(temporary / LOCK_FILE)
        try:
            yield from _written(temporary, final)
        finally:
            release()
    except BaseException:
        durable.remove_empty([temporary])  # not one that another process is writing: its lock lies in it
        durable.remove_empty(made)
        raise


def _written(temporary: Path, final: Path) -> Iterator[Path]:
    locks = (LOCK_FILE, LOCK_FILE + lock.EXISTS)
    try:
        _check_absent(final)  # again, now that no other process can make it
        for name in os.listdir(temporary):
            if name not in locks:
                _remove(temporary / name)
        yield temporary
        durable.sync(temporary)
        durable.move(temporary, final)
    except BaseException:
        with suppress(OSError):
            if not temporary.exists():  # it bears its name, but that was never announced
                durable.move(final, temporary)
            durable.remove_tree(temporary)
        raise
    for name in locks:
        (final / name).unlink(missing_ok=True)


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "exists already; choose another name", str(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        durable.remove_tree(path)
    else:
        os.unlink(path)
