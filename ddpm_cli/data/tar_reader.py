"""Images that stay in tar files: each is read and decoded when a batch asks for it.

Worker processes import this module: of ours it needs only what imports no torch.
"""

import contextlib
import functools
import logging
import math
import threading
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_cli.data.decode import DecodingError, decode_bytes
from ddpm_cli.data.decoding_memory import MOST, LargeImageError, check_file_size, most_at_a_time
from ddpm_cli.data.framing import MIDDLE, window
from ddpm_cli.data.reading import AS_STORED, Reading
from ddpm_cli.data.tar_index import Member, TarIndex, member_name, open_shard
from ddpm_cli.data.worker_pool import WorkerDiedError, WorkerPool, share_of_cpus
from ddpm_cli.io.text import printable

MOST_OPEN = 64  # shards, per process
CHUNKS_PER_WORKER = 4  # of a batch: few messages, and no worker is long at work when the others are done
MOST_IN_A_ROW = 100  # bad images that are passed over in search of a good one

log = logging.getLogger(__name__)


class TarReader:
    """uint8 `[N, channels, H, W]`, like an array that only takes arrays of indices.

    Decoded by `workers` processes (-1: one per CPU, shared by the ranks on this machine; 0: by whoever asks), not
    threads: those need Python's lock for a quarter of the time, which they take from the training loop.

    An image that cannot be decoded raises OSError, or with `skip_bad` gives its place to the next good one, in the
    order of the set and of the same class where there are `labels` `[N]`. That is always the same one.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        index: TarIndex,
        size: tuple[int, int],
        channels: int,
        *,
        workers: int,
        skip_bad: bool = False,
        labels: np.ndarray | None = None,
        reading: Reading = AS_STORED,
    ):
        workers = share_of_cpus(workers)
        self.index = index
        self.shape = (len(index), channels, *size)
        self.skip_bad = skip_bad
        self.labels = labels
        mosts = most_at_a_time(workers), MOST
        self._replacements: dict[int, int] = {}  # of each bad image that was met
        self._apart: np.ndarray | None = None  # bool [N]: of two kinds, which one an image is of
        some, one = (functools.partial(decode_members, size, channels, most, reading=reading) for most in mosts)
        self._pool = WorkerPool(some, workers)
        # For the images of which several at a time might take more memory than there is.
        self._alone = WorkerPool(one, min(workers, 1))
        self._chunks = max(1, CHUNKS_PER_WORKER * workers)
        self._one_at_a_time = threading.Lock()
        weakref.finalize(self, self._pool.close)
        weakref.finalize(self, self._alone.close)

    @property
    def nbytes(self) -> int:
        """What an array of these images would take."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 `[B, channels, H, W]`: the images of int64 `[B]` indices; of longer pictures the middle.

        Raises OSError for an image that cannot be decoded, a shard that cannot be read or has changed, processes that
        die.
        """
        return self.at(indices, np.full(len(indices), MIDDLE))

    def at(self, indices: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The same, but of pictures that are read with crop "random" the windows at these places, float `[B]`."""
        if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype != np.int64:
            raise TypeError(f"images in shards are had by int64 [B] arrays of their indices, not by {indices!r}")
        with self._one_at_a_time:
            wanted = [self._replacements.get(image, image) for image in indices.tolist()]
            pixels, bad = self._read(np.array(wanted, np.int64), places)
            for position, reason in bad:
                pixels[position] = self._replacement(int(indices[position]), places[position : position + 1], reason)
            return pixels

    def keep_apart(self, images: np.ndarray) -> None:
        """From now on none of these images (int64 `[n]`) takes the place of another one, nor another one theirs."""
        self._apart = np.zeros(len(self), bool)
        self._apart[images] = True

    def _read(self, indices: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """The images, and for those that cannot be decoded their positions among `indices` and what is wrong."""
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        order = np.argsort(indices)  # as they lie on the disk
        members = [
            (self.index.member(image), place)
            for image, place in zip(indices[order].tolist(), places[order].tolist(), strict=True)
        ]
        step = max(1, -(-len(members) // self._chunks))
        tasks = [(first, members[first : first + step]) for first in range(0, len(members), step)]
        bad, large = [], []
        try:
            for pool, jobs in ((self._pool, tasks), (self._alone, large)):
                with contextlib.closing(pool.map(jobs)) as results:
                    for (_, chunk), decoded in results:
                        first = decoded.first
                        pixels[order[first : first + len(chunk)]] = decoded.pixels
                        bad += [(int(order[place]), reason) for place, reason in decoded.bad]
                        large += [(place, chunk[place - first : place - first + 1]) for place in decoded.large]
        except WorkerDiedError as death:
            raise OSError(
                f"a process decoding images {death}. When memory runs out, the system kills processes: use fewer "
                "data.workers, or data.workers=0 to decode without processes"
            ) from death
        return pixels, sorted(bad)

    def _replacement(self, bad_image: int, place: np.ndarray, reason: str) -> np.ndarray:
        """uint8 `[channels, H, W]`: the image that takes the place of a bad one; says so the first time."""
        member = self.index.member(bad_image)
        what = f"{printable(member.shard.path)}: {member_name(member)}: {printable(reason)}"
        if not self.skip_bad:
            raise OSError(f"{what}; data.on_bad=skip trains on another image in its place")
        for other in self._following(bad_image):
            pixels, bad = self._read(np.array([other], np.int64), place)
            if not bad:
                self._replacements[bad_image] = other
                log.warning(f"skipped  {what}")
                return pixels[0]
        raise OSError(f"{what}; the next {MOST_IN_A_ROW} images cannot be decoded either")

    def _following(self, image: int) -> list[int]:
        """The images that come after one, and after the last the first ones; of its class and kind, if it has one."""
        kinds = [kind for kind in (self.labels, self._apart) if kind is not None]
        if not kinds:
            return [(image + ahead) % len(self) for ahead in range(1, min(MOST_IN_A_ROW + 1, len(self)))]
        alike = np.flatnonzero(np.logical_and.reduce([kind == kind[image] for kind in kinds]))
        place = int(np.searchsorted(alike, image))
        return np.roll(alike, -place)[1 : MOST_IN_A_ROW + 1].tolist()


class Decoded(NamedTuple):
    """What a process has made of members `first`, `first + 1`, ... of a batch."""

    first: int
    pixels: np.ndarray  # uint8 [n, channels, H, W]
    bad: list[tuple[int, str]]  # which of them could not be decoded, counted as `first` is, and why
    large: list[int]  # which of them take more memory than there is for one of several processes


def decode_members(
    size: tuple[int, int],
    channels: int,
    most: int,
    first: int,
    members: Sequence[tuple[Member, float]],
    *,
    reading: Reading = AS_STORED,
) -> Decoded:
    """The images that `members` are, each decoded within `most` bytes of memory, at a place along its longer side.

    Raises OSError if a shard cannot be read or has changed, DecodingError if memory runs out.
    """
    decoded = Decoded(first, np.zeros((len(members), channels, *size), np.uint8), [], [])
    for place, (member, along) in enumerate(members):
        name = printable(member.shard.path)
        try:
            check_file_size(member.size, most)
            content = _content(member)
            picture = decode_bytes(content, size, channels, most - member.size, reading, name=name)
            decoded.pixels[place] = window(picture, size, along)
        except LargeImageError as error:
            if error.needed + member.size <= MOST:
                decoded.large.append(first + place)
            else:
                decoded.bad.append((first + place, str(error)))
        except ValueError as error:
            decoded.bad.append((first + place, str(error)))
        except MemoryError as error:
            raise DecodingError(f"out of memory at {name}; use fewer data.workers") from error
    return decoded


_opened = functools.lru_cache(maxsize=MOST_OPEN)(open_shard)  # what falls out is closed


def _content(member: Member) -> bytes:
    try:
        file = _opened(member.shard)
        file.seek(member.offset)
        content = file.read(member.size)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{printable(member.shard.path)}: {error.strerror}") from error
    if len(content) < member.size:
        raise OSError(f"{printable(member.shard.path)} has been shortened since it was indexed")
    return content
