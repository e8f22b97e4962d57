"""The images of training batch n, and how they get to the device.

Batch n depends only on (seed, n), so a resumed run sees the same batches as an uninterrupted one, and no position is
stored.
"""

import functools
import itertools
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.holdout import others
from ddpm_cli.data.image_set import Flip, ImageSet, LongerPixels
from ddpm_cli.data.shuffle import WindowedShuffle
from ddpm_cli.io.images import from_uint8
from ddpm_cli.runtime.seeds import generator

# By `flip`: the names of the random streams that decide about flips, one for each direction.
_MIRRORED: dict[Flip, tuple[str, ...]] = {
    "none": (),
    "horizontal": ("flip",),
    "both": ("flip", "flip top to bottom"),
}
PREFETCHED = 2  # batches prepared while one trains: one hides the time of reading, the second its variation


class Batch(NamedTuple):
    """One process's part of a training batch, on the CPU."""

    indices: Tensor  # int64 [part], of these images in the set
    pixels: Tensor | None  # uint8 [part, C, H, W]; None: the caller has all images already
    # bool [part, n]: which images are mirrored, in n ways: none, left to right, or that and top to bottom.
    flips: Tensor
    labels: Tensor | None  # int64 [part]; None: the set has none

    def pin_memory(self) -> "Batch":
        """The same in pinned memory, from which the copy to a GPU does not block the CPU."""
        return Batch._make(None if tensor is None else tensor.pin_memory() for tensor in self)

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`; does not wait for it."""
        return Batch._make(None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self)


class BatchLoader:
    """The endless stream of training batches: epoch after epoch, each in another order, cut every `batch_size` images.

    No image is dropped: a batch may start in one epoch and end in the next (or several later, if the set is smaller
    than a batch). Of `world_size` processes that train together, each loads its part of every batch.

    Args:
        held_out: int64, increasing: images of the set that are in no batch; None: all are in the stream.
        repeat: the number of different batches, which are repeated; 0: unlimited.

    Raises ValueError for a batch_size below 1, or one that `world_size` does not divide.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        held_out: np.ndarray | None = None,
        repeat: int = 0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size % world_size != 0:
            raise ValueError(f"batch_size {batch_size} cannot be divided among {world_size} processes")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.repeat = repeat
        size = batch_size // world_size
        # The order is one of the images that are trained on, which have their own indices there.
        self._kept = None if held_out is None or len(held_out) == 0 else others(images, held_out)
        self.part = slice(rank * size, (rank + 1) * size)  # of every batch: what is loaded here
        # Two are enough: steps come in order, and a batch seldom spans more than two epochs.
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    @property
    def count(self) -> int:
        """How many images an epoch has."""
        return len(self.images) if self._kept is None else len(self._kept)

    @property
    def epoch_images(self) -> int:
        """How many different images there are in the stream: with `repeat` at most those of so many batches."""
        return min(self.count, self.repeat * self.batch_size) if self.repeat > 0 else self.count

    @property
    def trained(self) -> np.ndarray:
        """int64 `[count]`, increasing: the images of the set that are in the stream."""
        return np.arange(len(self.images)) if self._kept is None else self._kept

    def _shuffle(self, epoch: int) -> np.ndarray | WindowedShuffle:
        """The order of an epoch's images: its slices are int64 `[n]`, and may end early where a window ends."""
        blocks, kept = self.images.blocks, self._kept
        if blocks is not None:
            if kept is not None:
                blocks = replace(blocks, starts=np.searchsorted(kept, blocks.starts))
            return WindowedShuffle(blocks, self.seed, "order", epoch)
        return torch.randperm(self.count, generator=generator(self.seed, "order", epoch)).numpy()

    def indices(self, step: int) -> np.ndarray:
        """int64 `[batch_size]`: the images in batch `step` (from 0)."""
        position = (step % self.repeat if self.repeat > 0 else step) * self.batch_size
        parts = []
        missing = self.batch_size
        while missing > 0:
            epoch, start = divmod(position, self.count)
            part = self._order(epoch)[start : start + missing]
            parts.append(part)
            position += len(part)
            missing -= len(part)
        indices = np.concatenate(parts)
        return indices if self._kept is None else self._kept[indices]

    def flips(self, step: int) -> Tensor:
        """bool `[batch_size, n]`: which images of batch `step` are mirrored, in each of the n ways of `augment`."""
        drawn = [
            torch.rand(self.batch_size, generator=generator(self.seed, purpose, step)) < 0.5
            for purpose in _MIRRORED[self.images.flip]
        ]
        return torch.stack(drawn, dim=1) if drawn else torch.zeros(self.batch_size, 0, dtype=torch.bool)

    def places(self, step: int) -> np.ndarray:
        """float32 `[batch_size]` in [0, 1): the place of the window that is shown of each image of batch `step`."""
        return torch.rand(self.batch_size, generator=generator(self.seed, "crop", step)).numpy()

    def batch(self, step: int, *, pixels: bool = True) -> Batch:
        """This process's part of batch `step`, with `pixels` as they are stored, or without."""
        indices = self.indices(step)[self.part]
        labels = self.images.labels
        return Batch(
            indices=torch.from_numpy(indices),
            pixels=torch.from_numpy(self._pixels(indices, step, self.part)) if pixels else None,
            flips=self.flips(step)[self.part],
            labels=None if labels is None else torch.from_numpy(labels[indices]),
        )

    def _pixels(self, indices: np.ndarray, step: int, part: slice) -> np.ndarray:
        """uint8 `[part, C, H, W]`: the images of a part of batch `step`, cropped but not flipped."""
        pixels = self.images.pixels
        if not self.images.random_crop:
            return np.asarray(pixels[indices])
        assert isinstance(pixels, LongerPixels), pixels
        return pixels.at(indices, self.places(step)[part])

    def first_images(self, count: int) -> np.ndarray:
        """uint8 `[n, C, H, W]`: the first `count` images of the stream, flipped as there; all of a smaller set."""
        wanted = min(count, self.count)
        found = np.empty((wanted, *self.images.shape), np.uint8)
        for step, first in enumerate(range(0, wanted, self.batch_size)):
            part = slice(0, min(self.batch_size, wanted - first))
            shown = torch.from_numpy(self._pixels(self.indices(step)[part], step, part))
            found[first : first + part.stop] = mirrored(shown, self.flips(step)[part]).numpy()
        return found

    def prefetch(
        self, first_step: int, *, pixels: bool = True, pin_memory: bool = False
    ) -> Generator[Batch, None, None]:
        """This process's part of batch `first_step` and of all later ones, prepared ahead by a thread.

        Closing the generator ends the thread. Errors in the thread are raised here; MemoryError becomes an OSError
        that says where.
        """

        def prepare(step: int) -> Batch:
            try:
                batch = self.batch(step, pixels=pixels)
                return batch.pin_memory() if pin_memory else batch
            except MemoryError as error:
                raise OSError(
                    f"{self.images.name}: out of memory while a batch of images was read; use fewer data.workers, "
                    "smaller images or a smaller data.memory_mb, if the data set has these options"
                ) from error

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            pending = deque(thread.submit(prepare, first_step + ahead) for ahead in range(PREFETCHED))
            for step in itertools.count(first_step + PREFETCHED):
                batch = pending.popleft().result()
                pending.append(thread.submit(prepare, step))
                yield batch


def augment(pixels: Tensor, flips: Tensor) -> Tensor:
    """float32 `[B, C, H, W]` in [-1, 1] from uint8 `pixels`, mirrored where `flips` `[B, n]` says so.

    It runs on the device of its arguments, so that only a quarter of the bytes have to be copied there.
    """
    return from_uint8(mirrored(pixels, flips))


def mirrored(pixels: Tensor, flips: Tensor) -> Tensor:
    """`[B, C, H, W]` mirrored where `flips`, bool `[B, n]` with n <= 2, is True.

    The first column mirrors left to right, the second top to bottom.
    """
    for column, dimension in zip(flips.unbind(1), (-1, -2), strict=False):
        pixels = torch.where(column[:, None, None, None], pixels.flip(dimension), pixels)
    return pixels
