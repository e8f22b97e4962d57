"""A set of training images, all of one size: what every source of images gives, and training takes."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ddpm_cli.data.shuffle import Blocks


class Pixels(Protocol):
    """uint8 `[N, C, H, W]`: a NumPy array, or what reads the images that it is asked for from where they are."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 `[B, C, H, W]`: the images of these int64 `[B]` indices."""
        ...


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Training images: `pixels` uint8 `[N, C, H, W]` (in memory, a memory map, or read when they are asked for), and
    whether to flip them at random.

    `skipped` has a line "path: reason" for every image that should be here and had to be left out. `labels` int64 `[N]`
    says which of `class_names` each image is in, from 0; it is None where nothing is to be known of classes. `blocks`
    says how the images are stored, where that should decide in which order they are read.

    Raises ValueError where `pixels` is not uint8, not four-dimensional, or empty; where `labels` is of another type or
    length, or leads beyond `class_names`; for `class_names` without `labels`; and for `blocks` that hold other images.
    """

    pixels: Pixels
    name: str
    flip: bool
    skipped: tuple[str, ...] = ()  # "path: reason" of each bad image that was left out
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()  # of class 0, 1, ...
    blocks: Blocks | None = None  # None: any image can be read as fast after any other

    def __post_init__(self):
        dtype, shape = self.pixels.dtype, self.pixels.shape
        if dtype != np.uint8 or len(shape) != 4:
            raise ValueError(f"{self.name}: pixels must be uint8 [N, C, H, W], got {dtype} {list(shape)}")
        if 0 in shape:
            raise ValueError(f"{self.name}: no pixels in an array of shape {list(shape)}")
        if self.labels is not None:
            self._check_labels(self.labels)
        elif self.class_names:
            raise ValueError(f"{self.name}: there are {len(self.class_names)} class_names, but no labels")
        if self.blocks is not None and (self.blocks.starts[0], self.blocks.starts[-1]) != (0, len(self)):
            first, last = self.blocks.starts[[0, -1]]
            raise ValueError(f"{self.name}: blocks from {first} to {last} do not hold {len(self)} images")

    def _check_labels(self, labels: np.ndarray) -> None:
        if labels.dtype != np.int64 or labels.shape != (len(self),):
            raise ValueError(
                f"{self.name}: labels must be int64 [{len(self)}], got {labels.dtype} {list(labels.shape)}"
            )
        low, high = labels.min(), labels.max()
        if low < 0 or high >= len(self.class_names):
            raise ValueError(f"{self.name}: there are {len(self.class_names)} class_names, but labels {low} to {high}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width
