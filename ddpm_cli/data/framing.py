"""Which part of a picture is shown at a given size, where its shape is another.

    center    the picture is scaled to cover the size, and its middle is shown
    random    it is scaled likewise, and a window somewhere along its longer side is shown, anew each time: kept is all
              of it, up to LONGEST times what is shown, about its middle
    pad       it is scaled to fit into the size, with the background on both sides

Worker processes import this module: it needs only PIL and NumPy.
"""

import math

import numpy as np
from PIL import Image

from ddpm_cli.data.reading import Crop, Reading

LONGEST = 2  # of what is kept for windows: this many of them, side by side
MIDDLE = 0.5  # of the places that a window may have, in [0, 1)
_SIDES = np.dtype("<u2")  # what is kept before the pixels of such a picture: its height and width


def scaled_size(extent: tuple[int, int], width: int, height: int, crop: Crop) -> tuple[int, int]:
    """Width and height of what is made of a picture, of which (width, height) is `extent`, to show `width` x `height`.

    With pad it may be less than that on one side, with random it may be more.
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
    """What of a picture of `extent` becomes `width` x `height` pixels: left, top, right, bottom."""
    return (0, 0, *extent) if crop == "pad" else centre(extent, width, height)


def centre(extent: tuple[float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """The largest box of the shape of `width` x `height` about the centre of `extent`: left, top, right, bottom."""
    scale = min(extent[0] / width, extent[1] / height)
    margin_x = max(0.0, (extent[0] - width * scale) / 2)  # rounding must not put the box outside the picture
    margin_y = max(0.0, (extent[1] - height * scale) / 2)
    return margin_x, margin_y, extent[0] - margin_x, extent[1] - margin_y


def padded(image: Image.Image, size: tuple[int, int], reading: Reading) -> Image.Image:
    """An image of `size` (H, W) with a picture in its middle, and the background around it."""
    height, width = size
    colour = reading.background if isinstance(reading.background, tuple) else (0, 0, 0)
    alpha = 0 if reading.background == "keep" else 255
    whole = Image.new("RGBA", (width, height), (*colour, alpha)).convert(image.mode)
    whole.paste(image, (round((width - image.width) / 2), round((height - image.height) / 2)))
    return whole


# Windows -------------------------------------------------------------------------------------------------------------


def window(picture: np.ndarray, size: tuple[int, int], place: float) -> np.ndarray:
    """uint8 `[C, H, W]` of `size` (H, W) out of uint8 `[C, h, w]`; `place` in [0, 1) says where along the longer side.

    All places there are, to the pixel, are as likely as `place` is uniform.
    """
    height, width = size
    top, left = (math.floor(place * (there - shown + 1)) for there, shown in zip(picture.shape[1:], size, strict=True))
    return picture[:, top : top + height, left : left + width]


def slot_bytes(channels: int, size: tuple[int, int]) -> int:
    """How many bytes a picture is given that windows of `size` (H, W) are shown of."""
    return 2 * _SIDES.itemsize + LONGEST * channels * size[0] * size[1]


def packed(picture: np.ndarray, size: tuple[int, int]) -> bytes:
    """A uint8 picture `[C, h, w]` in `slot_bytes`: its height and width, its pixels, zeros."""
    content = np.array(picture.shape[1:], _SIDES).tobytes() + picture.tobytes()
    return content.ljust(slot_bytes(len(picture), size), b"\0")


def unpacked(slot: np.ndarray, channels: int) -> np.ndarray:
    """uint8 `[C, h, w]`: the picture that `packed` has put into a slot."""
    first = 2 * _SIDES.itemsize
    height, width = slot[:first].view(_SIDES).tolist()
    return slot[first : first + channels * height * width].reshape(channels, height, width)
