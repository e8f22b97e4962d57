"""Held-out images, on which a model is evaluated and never trained.

Which images these are is a function of (seed, number of images). The set itself stays whole: its images keep their
indices, and its fingerprint covers all of them.
"""

from dataclasses import replace

import numpy as np
import torch

from ddpm_cli.data.image_set import ImageSet, Pixels
from ddpm_cli.data.tar_reader import TarReader
from ddpm_cli.runtime.seeds import generator


def hold_out(images: ImageSet, count: int, seed: int) -> np.ndarray:
    """The indices of the `count` images that runs with this seed hold out: int64 `[count]`, increasing.

    The images of a smaller `count` are among those of a larger one. From here on, no training image replaces a bad
    held-out image, or the other way round.

    Raises ValueError if no image is left to train on.
    """
    if not 0 <= count < len(images):
        raise ValueError(f"must be from 0 to {len(images) - 1}, of {len(images)} images, got {count}")
    order = torch.randperm(len(images), generator=generator(seed, "holdout")).numpy()
    chosen = np.sort(order[:count])
    if count > 0 and isinstance(images.pixels, TarReader):
        images.pixels.keep_apart(chosen)
    return chosen


def others(images: ImageSet, chosen: np.ndarray) -> np.ndarray:
    """int64 `[N - n]`, increasing: the indices of the images that are not `chosen` `[n]`."""
    left = np.ones(len(images), bool)
    left[chosen] = False
    return np.flatnonzero(left)


def selected(images: ImageSet, indices: np.ndarray) -> ImageSet:
    """The images at these int64 `[n]` indices, read from where they are; of longer images the middle."""
    return replace(
        images,
        pixels=_Selected(images.pixels, indices),
        labels=None if images.labels is None else images.labels[indices],
        checksums=None if images.checksums is None else images.checksums[indices],
        blocks=None,
        random_crop=False,
    )


class _Selected:
    """Some of the images of a set, as `Pixels`."""

    dtype = np.dtype(np.uint8)

    def __init__(self, pixels: Pixels, indices: np.ndarray):
        self.pixels = pixels
        self.indices = indices
        self.shape = (len(indices), *pixels.shape[1:])

    @property
    def nbytes(self) -> int:
        """The bytes of an array of these images."""
        return self.pixels.nbytes // len(self.pixels) * len(self)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        return self.pixels[self.indices[indices]]
