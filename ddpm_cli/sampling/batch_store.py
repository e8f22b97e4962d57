"""Batches of records of equal size, written to the disk as they are made, so that a long run can be resumed.

A hidden folder holds

    identity.json   everything that the records depend on: only a run with the same identity resumes here
    ONE FILE EACH   for each kind of record: record i of all N at its place
    done            a byte for each batch, 1 once its records are on the disk
    lock            held by the process that started or resumed the run

Several processes write to the same files, each its own batches. Batches that are not marked as done are made again.
"""

import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ddpm_cli.config.compare import all_differences
from ddpm_cli.config.errors import shown
from ddpm_cli.io import durable, lock, plain_files

IDENTITY_FILE = "identity.json"
DONE_FILE = "done"
LOCK_FILE = "lock"

MOST_IDENTITY = 2**20  # bytes of JSON; ours has 3 kB
MOST_BATCHES = 2**26
FLUSH_SECONDS = 1.0  # the most that a killed process loses; flushing more often would slow down the sampling


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Lock a folder while inside. Afterwards nothing remains of a run that has finished, or made nothing.

    Args:
        busy: the beginning of the message if another process holds it.

    Raises:
        BlockingIOError: if another process holds it; the message says which.
        ValueError: if something in it is a link, or not a plain file.
    """
    with suppress(FileExistsError):
        os.mkdir(folder)
    try:
        for path in (folder, *folder.iterdir()):
            if path.is_symlink():
                raise ValueError(f"{path} is a link; unfinished samples must be in their own directory")
            if not path.is_dir() and plain_files.size(path) > MOST_BATCHES and path.name == DONE_FILE:
                raise ValueError(f"{path} is incomplete; remove {folder} to start over")
        try:
            release = lock.acquire(folder / LOCK_FILE)
        except BlockingIOError as error:
            raise BlockingIOError(f"{busy}: {error}") from error
        try:
            yield
        finally:
            try:
                if not (folder / IDENTITY_FILE).exists() or not any(_done(folder)):
                    with suppress(OSError):  # the next run clears what remains
                        clear(folder)
            finally:
                release()
    finally:
        with suppress(OSError):
            os.rmdir(folder)


def resumes(folder: Path, identity: dict, *, what: str, n: int, batch_size: int, records: Mapping[str, int]) -> bool:
    """Whether a run of this identity can be resumed in a locked folder; False: there is nothing to resume.

    Args:
        what: what the folder holds, in messages.
        n, batch_size, records: as of `BatchStore`.

    Raises:
        ValueError: if the run there has another identity, or its files are incomplete.
    """
    kept = identity_in(folder / IDENTITY_FILE)
    if kept is None or not any(_done(folder)):
        return False
    check_same(what, kept, identity, f"choose another directory, or remove {folder} to start over")
    for name, size in _sizes(n, batch_size, records).items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(f"{folder / name} is incomplete; remove {folder} to start over")
        durable.unshare(folder / name)
    return True


def create(folder: Path, identity: dict, *, n: int, batch_size: int, records: Mapping[str, int]) -> None:
    """Create the files of a new run in a locked folder that holds no other run.

    Raises:
        ValueError: for too many batches.
        OSError: if the files cannot be created.
    """
    sizes = _sizes(n, batch_size, records)
    if sizes[DONE_FILE] > MOST_BATCHES:
        raise ValueError(f"at most {MOST_BATCHES:,} batches; use a larger batch_size")
    for name, size in sizes.items():
        with durable.errors_naming(folder / name), open(folder / name, "xb") as file:
            file.truncate(size)
            durable.flush(file.fileno(), folder / name)
    durable.replace(folder / IDENTITY_FILE, json.dumps(identity, indent=2).encode())
    durable.sync(folder.parent)


def _sizes(n: int, batch_size: int, records: Mapping[str, int]) -> dict[str, int]:
    return {name: n * size for name, size in records.items()} | {DONE_FILE: math.ceil(n / batch_size)}


class BatchStore:
    """The records in a folder, for a process to read and add to.

    Args:
        folder: of a run that has been started.
        n: how many records of each kind there will be.
        batch_size: records in every batch but the last.
        records: for each kind, by the name of its file, the bytes of one record.

    Raises:
        OSError: if it cannot be read and written.
    """

    def __init__(self, folder: Path, *, n: int, batch_size: int, records: Mapping[str, int]):
        self.folder = folder
        self.n = n
        self.batch_size = batch_size
        self.records = dict(records)
        self._unmarked: list[int] = []  # batches that have been written, but may not be on the disk yet
        self._flushed = time.monotonic()
        self._files = {name: open(folder / name, "r+b", buffering=0) for name in (*records, DONE_FILE)}  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.flush()
        except OSError:
            if error is None:
                raise
        finally:
            for file in self._files.values():
                file.close()

    @property
    def missing(self) -> list[range]:
        """The batches that are not done, as the indices of their records."""
        return [self._batch(number) for number, done in enumerate(_done(self.folder)) if not done]

    @property
    def finished(self) -> int:
        """How many records are done, in all processes."""
        return sum(len(self._batch(number)) for number, done in enumerate(_done(self.folder)) if done)

    def _batch(self, number: int) -> range:
        first = number * self.batch_size
        return range(first, min(first + self.batch_size, self.n))

    def keep(self, indices: range, content: Mapping[str, memoryview]) -> None:
        """Write a batch. It counts as done once flushed, at the latest when the store is closed.

        Args:
            indices: of its records.
            content: for each kind all its records, one after another.
        """
        for name, data in content.items():
            with durable.errors_naming(self.folder / name):
                _write(self._files[name], indices.start * self.records[name], data.cast("B"))
        self._unmarked.append(indices.start // self.batch_size)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Flush the written batches to the disk, and mark them as done."""
        if not self._unmarked:
            return
        for name in self.records:
            durable.flush(self._files[name].fileno(), self.folder / name)
        done = self._files[DONE_FILE]
        with durable.errors_naming(self.folder / DONE_FILE):
            for number in self._unmarked:
                _write(done, number, memoryview(b"\1"))
        durable.flush(done.fileno(), self.folder / DONE_FILE)
        self._unmarked.clear()
        self._flushed = time.monotonic()

    def read_into(self, name: str, indices: range, buffer: memoryview) -> None:
        """Fill a buffer with the records of one kind in a contiguous range."""
        file, buffer = self._files[name], buffer.cast("B")
        with durable.errors_naming(self.folder / name):
            file.seek(indices.start * self.records[name])
            read = file.readinto(buffer) if len(indices) > 0 else 0
        assert read == buffer.nbytes, (read, indices)


def _write(file: io.FileIO, offset: int, content: memoryview) -> None:
    file.seek(offset)
    while len(content) > 0:
        content = content[file.write(content) :]


def identity_in(file: Path) -> dict | None:
    """The identity in a file that a run wrote; None if there is none. Raises ValueError if the file is not ours."""
    try:
        found = json.loads(plain_files.read(file, MOST_IDENTITY))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        reason = shown(str(error))
        raise ValueError(f"{file} is not of ddpm-cli ({reason}); remove {file.parent} to start over") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not of ddpm-cli; remove {file.parent} to start over")
    return found


def check_same(what: str, kept: dict, identity: dict, advice: str) -> None:
    """Raise ValueError, with a line for each difference, unless two identities are the same."""
    changed = all_differences(kept, json.loads(json.dumps(identity)))
    if changed:
        listed = "".join(f"\n  {line}" for line in changed)
        raise ValueError(f"{what} of another configuration:{listed}\n  {advice}")


def clear(folder: Path) -> None:
    """Remove the files of a run that has finished, or made nothing, from its folder."""
    for path in folder.iterdir():
        if path.name in (LOCK_FILE, LOCK_FILE + lock.EXISTS):
            continue
        if path.is_dir():
            durable.remove_tree(path)
        else:
            path.unlink()


def _done(folder: Path) -> bytes:
    try:
        return plain_files.read(folder / DONE_FILE, MOST_BATCHES)
    except FileNotFoundError:
        return b""
