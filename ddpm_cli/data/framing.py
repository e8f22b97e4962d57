"""Which part of an image is shown at a given size, if its aspect ratio is another.

    center    the image is scaled to cover the size, and its middle is shown
    random    it is scaled likewise, and a window along its longer side is shown, another one each time; the image is
              kept whole, or its middle up to LONGEST times what is shown
    pad       it is scaled to fit into the size, with the background on both sides

Worker processes import this module: it needs only PIL and NumPy.
"""

import math

import numpy as np
from PIL import Image

from ddpm_cli.data.reading import Crop, Reading

LONGEST = 2  # the kept part of an image is at most this many windows long
MIDDLE = 0.5  # the middle of the places that a window may have, in [0, 1)
_SIDES = np.dtype("<u2")  # of the height and width, which are stored before the pixels of such an image


def scaled_size(extent: tuple[int, int], width: int, height: int, crop: Crop) -> tuple[int, int]:
    """Width and height to which an image of size `extent`, (width, height), is scaled to show `width` x `height`.

    With pad one side may be smaller than that, with random it may be larger.
    """
    if crop == "center":
        return width, height
    scales = width / extent[0], height / extent[1]
    if crop == "pad":
        scale = min(scales)
        return min(width, max(1, round(extent[0] * scale))), min(height, max(1, round(extent[1] * scale)))
    scale = max(scales)
    sides = round(extent[0] * scale), round(extent[1] * scale)
    return min(max(width, sides[0]), LONGEST * width), min(max(height, sides[1]), LONGEST * height)


def box_in(extent: tuple[float, float], width: int, height: int, crop: Crop) -> tuple[float, float, float, float]:
    """The part of an image of `extent` that becomes `width` x `height` pixels: left, top, right, bottom."""
    return (0, 0, *extent) if crop == "pad" else centre(extent, width, height)


def centre(extent: tuple[float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """The largest box of the shape of `width` x `height` about the centre of `extent`: left, top, right, bottom."""
    scale = min(extent[0] / width, extent[1] / height)
    margin_x = max(0.0, (extent[0] - width * scale) / 2)  # rounding must not put the box outside the image
    margin_y = max(0.0, (extent[1] - height * scale) / 2)
    return margin_x, margin_y, extent[0] - margin_x, extent[1] - margin_y


def padded(image: Image.Image, size: tuple[int, int], reading: Reading) -> Image.Image:
    """An image in the middle of another of `size` (H, W), with the background around it."""
    height, width = size
    colour = reading.background if isinstance(reading.background, tuple) else (0, 0, 0)
    alpha = 0 if reading.background == "keep" else 255
    whole = Image.new("RGBA", (width, height), (*colour, alpha)).convert(image.mode)
    whole.paste(image, (round((width - image.width) / 2), round((height - image.height) / 2)))
    return whole


# Windows -------------------------------------------------------------------------------------------------------------


def window(picture: np.ndarray, size: tuple[int, int], place: float) -> np.ndarray:
    """uint8 `[C, H, W]` of `size` (H, W) out of uint8 `[C, h, w]`; `place` in [0, 1) says where along the longer side.

    If `place` is uniform, all positions, to the pixel, are equally likely.
    """
    height, width = size
    top, left = (math.floor(place * (there - shown + 1)) for there, shown in zip(picture.shape[1:], size, strict=True))
    return picture[:, top : top + height, left : left + width]


def slot_bytes(channels: int, size: tuple[int, int]) -> int:
    """The bytes reserved for an image of which windows of `size` (H, W) are shown."""
    return 2 * _SIDES.itemsize + LONGEST * channels * size[0] * size[1]


def packed(picture: np.ndarray, size: tuple[int, int]) -> bytes:
    """A uint8 image `[C, h, w]` as `slot_bytes` bytes: its height and width, its pixels, zeros."""
    content = np.array(picture.shape[1:], _SIDES).tobytes() + picture.tobytes()
    return content.ljust(slot_bytes(len(picture), size), b"\0")


def unpacked(slot: np.ndarray, channels: int) -> np.ndarray:
    """uint8 `[C, h, w]`: the image that `packed` put into a slot."""
    first = 2 * _SIDES.itemsize
    height, width = slot[:first].view(_SIDES).tolist()
    return slot[first : first + channels * height * width].reshape(channels, height, width)
