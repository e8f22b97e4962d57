"""Images that stay in tar files: each is read and decoded when a batch asks for it.

Worker processes import this module: of ours it needs only what imports no torch.
"""

import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ddpm_cli.data.decode import decode_bytes
from ddpm_cli.data.tar_index import Shard, member_at, open_shard
from ddpm_cli.data.worker_pool import ProcessDiedError, WorkerPool, cpus
from ddpm_cli.io.text import printable

MOST_BYTES = 2**28  # of one image's file: a hostile tar may claim any size
MOST_OPEN = 64  # shards, per process
CHUNKS_PER_WORKER = 4  # of a batch: few messages, and no worker is long at work when the others are done
MOST_IN_A_ROW = 100  # bad images that are passed over in search of a good one

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Places:
    """Where N images lie: `starts[s]` up to `starts[s + 1]` in `shards[s]`, each `sizes` bytes from `offsets` on."""

    shards: Sequence[Shard]
    starts: np.ndarray  # int64 [shards + 1]
    offsets: np.ndarray  # int64 [N]
    sizes: np.ndarray  # int64 [N]

    def member(self, index: int) -> "Member":
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return Member(self.shards[shard], int(self.offsets[index]), int(self.sizes[index]))


class Member(NamedTuple):
    """A file in a tar file, by where its content is."""

    shard: Shard
    offset: int
    size: int


class ShardPixels:
    """uint8 `[N, channels, H, W]`, like an array that only takes arrays of indices.

    Decoded by `workers` processes (-1: one per CPU, shared by the ranks on this machine; 0: by whoever asks), not
    threads: those need Python's lock for a quarter of the time, which they take from the training loop.

    An image that cannot be decoded raises OSError, or with `skip_bad` gives its place to the next good one, in the
    order of the set and of the same class where there are `labels` `[N]`. That is always the same one.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        places: Places,
        size: tuple[int, int],
        channels: int,
        *,
        workers: int,
        skip_bad: bool = False,
        labels: np.ndarray | None = None,
    ):
        self.places = places
        self.shape = (len(places.offsets), channels, *size)
        self.skip_bad = skip_bad
        self.labels = labels
        self._instead: dict[int, int] = {}  # of each bad image that was met
        self._decode = functools.partial(decode_members, size, channels)
        self._processes = None if workers == 0 else WorkerPool(self._decode, share_of_cpus(workers))
        self._chunks = 1 if workers == 0 else CHUNKS_PER_WORKER * share_of_cpus(workers)
        self._one_at_a_time = threading.Lock()
        if self._processes is not None:
            weakref.finalize(self, self._processes.close)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        return self.size  # if it were an array

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 `[B, channels, H, W]`: the images of int64 `[B]` indices.

        Raises OSError for an image that cannot be decoded, a shard that cannot be read or has changed, processes that
        die.
        """
        if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype != np.int64:
            raise TypeError(f"images in shards are had by int64 [B] arrays of their indices, not by {indices!r}")
        with self._one_at_a_time:
            pixels, bad = self._read(
                np.array([self._instead.get(index, index) for index in indices.tolist()], np.int64)
            )
            for position, reason in bad:
                pixels[position] = self._good_instead(int(indices[position]), reason)
            return pixels

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """The images, and for those that cannot be decoded their positions among `indices` and what is wrong."""
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        order = np.argsort(indices)  # as they lie on the disk
        members = [self.places.member(index) for index in indices[order].tolist()]
        step = max(1, -(-len(members) // self._chunks))
        tasks = [(first, members[first : first + step]) for first in range(0, len(members), step)]
        bad = []
        with contextlib.closing(self._results(tasks)) as results:
            for first, decoded, undecodable in results:
                pixels[order[first : first + len(decoded)]] = decoded
                bad += [(int(order[place]), reason) for place, reason in undecodable]
        return pixels, sorted(bad)

    def _results(self, tasks: list[tuple]) -> Generator["Decoded", None, None]:
        if self._processes is None:
            yield from (self._decode(*task) for task in tasks)
            return
        try:
            with contextlib.closing(self._processes.map(tasks)) as results:
                for _, result in results:
                    yield result
        except ProcessDiedError as death:
            raise OSError(
                f"a process decoding images {death}. Where memory runs out the system kills processes: fewer "
                "data.workers need less, data.workers=0 decodes without processes"
            ) from death

    def _good_instead(self, index: int, reason: str) -> np.ndarray:
        """The image `[channels, H, W]` that takes the place of a bad one; says so the first time."""
        member = self.places.member(index)
        what = f"{printable(member.shard.path)}: {member_at(member.shard, member.offset)}: {printable(reason)}"
        if not self.skip_bad:
            raise OSError(f"{what}; data.on_bad=skip trains on another image in its place")
        for other in self._following(index):
            pixels, bad = self._read(np.array([other], np.int64))
            if not bad:
                self._instead[index] = other
                log.warning(f"skipped  {what}")
                return pixels[0]
        raise OSError(f"{what}; nor can any of the next {MOST_IN_A_ROW} images be decoded")

    def _following(self, index: int) -> list[int]:
        """The images that come after one, and after the last the first ones; of its class, if it has one."""
        if self.labels is None:
            return [(index + ahead) % len(self) for ahead in range(1, min(MOST_IN_A_ROW + 1, len(self)))]
        alike = np.flatnonzero(self.labels == self.labels[index])
        place = int(np.searchsorted(alike, index))
        return np.roll(alike, -place)[1 : MOST_IN_A_ROW + 1].tolist()


class Decoded(NamedTuple):
    """What a process has made of members `first`, `first + 1`, ... of a batch."""

    first: int
    pixels: np.ndarray  # uint8 [n, channels, H, W]
    bad: list[tuple[int, str]]  # which of them could not be decoded, counted as `first` is, and why


def decode_members(size: tuple[int, int], channels: int, first: int, members: Sequence[Member]) -> Decoded:
    """The images that `members` are. Raises OSError if a shard cannot be read or has changed, or memory runs out."""
    pixels = np.zeros((len(members), channels, *size), np.uint8)
    bad = []
    for place, member in enumerate(members):
        try:
            pixels[place] = decode_bytes(_content(member), size, channels, name=printable(member.shard.path))
        except ValueError as error:
            bad.append((first + place, str(error)))
    return Decoded(first, pixels, bad)


_opened = functools.lru_cache(maxsize=MOST_OPEN)(open_shard)  # what falls out is closed


def _content(member: Member) -> bytes:
    if member.size > MOST_BYTES:
        raise ValueError(f"{member.size:,} bytes are too many for an image")
    try:
        file = _opened(member.shard)
        file.seek(member.offset)
        content = file.read(member.size)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{printable(member.shard.path)}: {error.strerror}") from error
    if len(content) < member.size:
        raise OSError(f"{printable(member.shard.path)} has become shorter")
    return content


def share_of_cpus(workers: int) -> int:
    """The number of processes that `workers` stands for: -1 is this rank's share of the CPUs, at least one."""
    return max(1, cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if workers == -1 else workers
