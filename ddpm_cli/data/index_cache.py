"""The index of tar files, made once and kept in the cache as long as a file does not change.

Worker processes import this module: it imports only modules without torch.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm_cli.data import cache_files
from ddpm_cli.data.tar_index import Indexed, Shard, index_shard, shard_at
from ddpm_cli.data.worker_pool import WorkerDiedError, WorkerPool, share_of_cpus
from ddpm_cli.io.text import printable

INDEX_VERSION = 3  # part of the key: raise it when `index_shard` finds something else in the same file
FEW_BYTES = 2**28  # of tar files to be indexed: so few are indexed here, as processes take half a second to start
_BLOCK = 512  # bytes, of a tar file
_MOST_LEFT_OUT = 2**12  # bytes of JSON for what was left out; names of kinds are short, and few
SHOWN = 10  # tar files in a message: there may be thousands


@dataclass(frozen=True)
class IndexCache:
    """The results of `index_shard` for `extensions`, kept in `directory`: a SHA-256, a line of JSON, then int64.

    The SHA-256 is of the file's name and of everything after it. The JSON says what was left out.
    """

    directory: Path
    extensions: tuple[str, ...]

    def read(self, shard: Shard) -> Indexed | None:
        """The result of `index_shard`; None if it is missing or damaged.

        Raises OSError if there is something other than a file in its place.
        """
        path = self._path(shard)
        rows = shard.size // _BLOCK + 1  # a member takes at least one block
        content = cache_files.read(path, 32 + _MOST_LEFT_OUT + 32 * rows) or b""
        digest, kept = content[:32], content[32:]
        if _digest(path, kept) != digest:
            return None
        left_out, _, table = kept.partition(b"\n")
        return Indexed(np.frombuffer(table, "<i8").astype(np.int64, copy=False).reshape(-1, 4), json.loads(left_out))

    def write(self, shard: Shard, indexed: Indexed) -> None:
        """Keep the index of a tar file. Raises OSError naming the directory if it cannot be written."""
        content = json.dumps(indexed.left_out).encode() + b"\n" + indexed.table.astype("<i8").tobytes()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            cache_files.write(self._path(shard), _digest(self._path(shard), content) + content)
        except OSError as error:
            where, reason = printable(str(self.directory)), error.strerror or error
            raise OSError(
                f"cannot write the index of the tar files in {where} ({reason}): choose another data.cache_dir"
            ) from error

    def _path(self, shard: Shard) -> Path:
        """A file name that depends on the tar file and on what is looked for in it."""
        what = (INDEX_VERSION, os.path.realpath(shard.path), shard.size, shard.mtime_ns, self.extensions)
        return self.directory / hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _digest(path: Path, kept: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + kept).digest()


def index_shards(paths: Sequence[str], cache: IndexCache, workers: int) -> list[tuple[Shard, Indexed]]:
    """Every shard with what `index_shard` finds in it, now or when the shard was last met.

    Raises ValueError listing the shards that cannot be used, OSError if the cache cannot be written.
    """
    tables: dict[str, tuple[Shard, Indexed]] = {}
    new: list[Shard] = []
    unusable: dict[str, str] = {}
    for path in paths:
        try:
            shard = shard_at(path)
        except (OSError, ValueError) as error:
            unusable[path] = _reason(error)
            continue
        table = cache.read(shard)
        if table is None:
            new.append(shard)
        else:
            tables[path] = shard, table
    cache_files.remove_abandoned(cache.directory)
    # Before indexing, which may take hours.
    with contextlib.closing(_index([] if unusable else new, cache.extensions, workers)) as indexed:
        for shard, found in indexed:
            if isinstance(found, str):
                unusable[shard.path] = found
            else:
                tables[shard.path] = shard, found
                cache.write(shard, found)
    if unusable:
        raise ValueError(_report(unusable, len(paths)))
    return [tables[path] for path in paths]


def _index(
    shards: list[Shard], extensions: tuple[str, ...], workers: int
) -> Generator[tuple[Shard, Indexed | str], None, None]:
    """Each tar file with its index or its error, as they are found."""
    if sum(shard.size for shard in shards) <= FEW_BYTES:
        workers = 0
    tasks = [(shard, extensions) for shard in shards]
    with WorkerPool(_index_or_reason, share_of_cpus(workers)) as pool:
        try:
            # disable=None: a progress bar on a terminal, nothing in a log.
            for (shard, _), found in tqdm(
                pool.map(tasks), total=len(tasks), desc="indexing", unit="shard", disable=None
            ):
                yield shard, found
        except WorkerDiedError as death:
            raise OSError(
                f"a process indexing {printable(death.task[0].path)} {death}; data.workers=0 indexes without processes"
            ) from death


def _index_or_reason(shard: Shard, extensions: tuple[str, ...]) -> Indexed | str:
    """As `index_shard`, but an error is returned as text, not raised."""
    try:
        return index_shard(shard, extensions)
    except (OSError, ValueError) as error:
        return _reason(error)


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _report(unusable: dict[str, str], count: int) -> str:
    lines = [f"{printable(path)}: {printable(reason)}" for path, reason in sorted(unusable.items())]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN:,} more"]
    return "\n  ".join([f"{len(unusable):,} of {count:,} tar files cannot be used:", *lines])
