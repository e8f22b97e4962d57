"""A set of training images, all of one size, which every source of images returns and training takes."""

import functools
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from ddpm_cli.data.fingerprint import fingerprint, image_checksums
from ddpm_cli.data.shuffle import Blocks

Flip = Literal["none", "horizontal", "both"]


class Pixels(Protocol):
    """uint8 `[N, C, H, W]`: a NumPy array, or an object that reads the requested images from where they are."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 `[B, C, H, W]`: the images at these int64 `[B]` indices."""
        ...


@runtime_checkable
class LongerPixels(Protocol):
    """`Pixels` of images that are longer than what is shown of them: by default the middle."""

    def at(self, indices: np.ndarray, places: np.ndarray) -> np.ndarray:
        """uint8 `[B, C, H, W]`: the part of each image at a place along its longer side, float `[B]` in [0, 1)."""
        ...


def check_flip(flip: object) -> None:
    """Raise ValueError unless it is one of `Flip`."""
    if flip not in get_args(Flip):
        was = {True: "; for true write horizontal", False: "; for false write none"}
        hint = was[flip] if isinstance(flip, bool) else ""
        raise ValueError(f"flip must be one of {', '.join(get_args(Flip))}, got {flip!r}{hint}")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Training images, and how they are augmented.

    `pixels` is uint8 `[N, C, H, W]`, in memory or read when needed. `flip` says whether images are flipped at random,
    left to right ("horizontal") or upside down too ("both"); with `random_crop`, a random window of a longer image is
    shown.

    `skipped` has a line "path: reason" for every image that had to be left out, `left_out` counts other files by kind
    ("6 .heic, 3 .txt"), `treatment` says how the images were processed, and `remarks` are shown before training.
    `labels` int64 `[N]` gives each image's class in `class_names`, from 0; None: no labels. `blocks` says how the
    images are stored, if that should determine the order in which they are read. `checksums` uint32 `[N]` has a number
    for each image that changes when the image does; it may be omitted for pixels in memory.

    Raises ValueError if `pixels` is not uint8, not four-dimensional, or empty; if `labels` is of another type or
    length, or exceeds `class_names`; for `class_names` without `labels`; for `blocks` that hold other images; for
    `checksums` of another type or length; for another `flip`; and for `random_crop` of `pixels` that are not longer.
    """

    pixels: Pixels
    name: str
    flip: Flip = "none"
    skipped: tuple[str, ...] = ()  # "path: reason" of each bad image
    left_out: str = ""  # files that are no images, counted by kind
    remarks: tuple[str, ...] = ()  # on the whole set
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()  # of class 0, 1, ...
    blocks: Blocks | None = None  # None: any image can be read as fast after any other
    checksums: np.ndarray | None = None
    random_crop: bool = False
    treatment: str = ""

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
        if self.checksums is not None:
            self._check_type("checksums", self.checksums, np.uint32)
        check_flip(self.flip)
        if self.random_crop and not isinstance(self.pixels, LongerPixels):
            raise ValueError(f"{self.name}: random_crop needs pixels of which more is there than is shown")

    def _check_labels(self, labels: np.ndarray) -> None:
        self._check_type("labels", labels, np.int64)
        low, high = labels.min(), labels.max()
        if low < 0 or high >= len(self.class_names):
            raise ValueError(f"{self.name}: there are {len(self.class_names)} class_names, but labels {low} to {high}")

    def _check_type(self, what: str, array: np.ndarray, dtype: type) -> None:
        if array.dtype != dtype or array.shape != (len(self),):
            expected = f"{np.dtype(dtype)} [{len(self)}]"
            raise ValueError(f"{self.name}: {what} must be {expected}, got {array.dtype} {list(array.shape)}")

    def __len__(self) -> int:
        return len(self.pixels)

    @functools.cached_property
    def fingerprint(self) -> dict[str, str] | None:
        """As `data.fingerprint.fingerprint`; None for images that are not in memory and have no `checksums`."""
        checksums = self.checksums
        if checksums is None and isinstance(self.pixels, np.ndarray):
            checksums = image_checksums(self.pixels)
        if checksums is None:
            return None
        return fingerprint(self.shape, checksums, self.labels, None if self.blocks is None else self.blocks.starts)

    def numbered_as(self, class_names: tuple[str, ...]) -> "ImageSet":
        """The same images with classes numbered in this order, if these are its classes; otherwise the set unchanged.

        A run keeps the class numbers that it started with, whatever numbers the classes would get today.
        """
        known, wanted = self.class_names, class_names
        if self.labels is None or known == wanted or sorted(known) != sorted(wanted) or len(set(known)) < len(known):
            return self
        number = np.array([wanted.index(name) for name in known], np.int64)
        return replace(self, labels=number[self.labels], class_names=wanted)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width
