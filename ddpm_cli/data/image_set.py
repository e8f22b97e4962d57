"""A set of training images, all of one size, as one uint8 array; and what array sources need to get to that size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ddpm_cli.data.shuffle import Blocks

RESIZE_BATCH = 1024  # images turned to float at a time: 60,000 of them at 64 px would take 3 GB


class Pixels(Protocol):
    """uint8 `[N, C, H, W]`: a NumPy array, or what reads the images that it is asked for from where they are."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
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
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4:
            raise ValueError(
                f"{self.name}: pixels must be uint8 [N, C, H, W], got {self.pixels.dtype} {list(self.pixels.shape)}"
            )
        if self.pixels.size == 0:
            raise ValueError(f"{self.name}: no pixels in an array of shape {list(self.pixels.shape)}")
        if self.labels is not None:
            self._check_labels(self.labels)
        elif self.class_names:
            raise ValueError(f"{self.name}: there are {len(self.class_names)} class_names, but no labels")
        if self.blocks is not None and (self.blocks.starts[0], self.blocks.starts[-1]) != (0, len(self)):
            raise ValueError(
                f"{self.name}: blocks from {self.blocks.starts[0]} to {self.blocks.starts[-1]} do not hold "
                f"{len(self)} images"
            )

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


def height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) in pixels of an `image_size` as configs give it: one int for a square, or [H, W].

    Raises ValueError unless it is a positive int or two of them.
    """
    sides = [image_size, image_size] if isinstance(image_size, int) else image_size
    if isinstance(sides, Sequence) and len(sides) == 2 and all(_is_positive_int(side) for side in sides):
        return sides[0], sides[1]
    raise ValueError(f"image_size must be a positive int or [height, width], got {image_size!r}")


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_channels(channels: int) -> None:
    """Raise ValueError unless `channels` is 1 (grey) or 3 (RGB)."""
    if isinstance(channels, bool) or channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")


def resize(pixels: np.ndarray, image_size: int | Sequence[int]) -> np.ndarray:
    """uint8 `[N, C, H, W]` at `image_size` (int or [H, W]): antialiased bicubic, rounded; unchanged if the size fits.

    The whole picture is kept: another aspect ratio stretches it.
    """
    size = height_width(image_size)
    if pixels.shape[2:] == size:
        return pixels
    resized = np.empty((*pixels.shape[:2], *size), dtype=np.uint8)
    for start in range(0, len(pixels), RESIZE_BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + RESIZE_BATCH])).float()
        batch = F.interpolate(batch, size=size, mode="bicubic", antialias=True, align_corners=False)
        # Bicubic overshoots at edges, so it must be clamped before uint8 wraps it round.
        resized[start : start + RESIZE_BATCH] = batch.round().clamp(0, 255).byte().numpy()
    return resized


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 `[N, channels, H, W]` from uint8 `[N, 1 or 3, H, W]`: grey is repeated, RGB becomes ITU-R 601 luma.

    Raises ValueError for other numbers of channels than 1 and 3.
    """
    check_channels(channels)
    assert pixels.shape[1] in (1, 3), pixels.shape
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.repeat(3, axis=1)
    # 0.299 R + 0.587 G + 0.114 B in PIL's 16-bit fixed point, so that a folder and an array give the same grey.
    red, green, blue = (pixels[:, [channel]].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)
