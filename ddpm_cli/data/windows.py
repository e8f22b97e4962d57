"""Pictures that are longer than what is shown of them: their middle, or a window at any place (data.crop=random)."""

import numpy as np

from ddpm_cli.data.framing import MIDDLE, unpacked, window
from ddpm_cli.data.stored_pixels import StoredPixels


class Windows:
    """uint8 `[N, C, H, W]` out of pictures, each in a slot, that may be longer on one side: by itself their middle.

    Args:
        slots: uint8 `[N, slot_bytes]`, in memory or on the disk.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, slots: np.ndarray | StoredPixels, channels: int, size: tuple[int, int]):
        self.slots = slots
        self.shape = (len(slots), channels, *size)

    @property
    def nbytes(self) -> int:
        """What the pictures take."""
        return self.slots.nbytes

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 `[B, C, H, W]`: the middle of the pictures of these int64 `[B]` indices."""
        return self.at(indices, np.full(len(indices), MIDDLE))

    def at(self, indices: np.ndarray, places: np.ndarray) -> np.ndarray:
        """uint8 `[B, C, H, W]`: a window of each, at these places, float `[B]` in [0, 1), along its longer side."""
        _, channels, height, width = self.shape
        pixels = np.empty((len(indices), channels, height, width), np.uint8)
        for image, slot, place in zip(pixels, self.slots[indices], places.tolist(), strict=True):
            image[:] = window(unpacked(slot, channels), (height, width), place)
        return pixels
