"""How the numbers that an image file holds become grey, colours, and transparency.

Worker processes import this module: it needs only PIL and NumPy.
"""

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]  # red, green, blue, each from 0 to 255
Crop = Literal["center", "random", "pad"]

WHITE: Colour = (255, 255, 255)
_TILE = 1024  # pixels a side: what is converted at a time, so that what lies between two modes takes no memory


class Reading(NamedTuple):
    """How image files are read."""

    # The numbers that become black and white, with what lies outside clipped; None: the least and the greatest that the
    # format has: 255, for 16-bit grey 65,535. Colours of 16 bits are read as 8.
    value_range: tuple[float, float] | None = None
    # What is laid under what is transparent; or it is kept as a fourth channel, or shown as if it were not transparent.
    background: Colour | Literal["keep", "ignore"] = WHITE
    # What of a picture of another shape is shown: its middle; as much as has room in `framing.Windows`; all of it.
    crop: Crop = "center"


AS_STORED = Reading()


def mode_of(channels: int) -> str:
    """What PIL calls pictures of 1, 3 or 4 channels."""
    return {1: "L", 3: "RGB", 4: "RGBA"}[channels]


def converted(image: Image.Image, mode: str, reading: Reading) -> Image.Image:
    """The picture in `mode`, L, RGB or RGBA: more than 8 bits are scaled, what is transparent is as `reading` says.

    Raises:
        ValueError: for numbers of which it is not known which are black and white.
    """
    value_range = reading.value_range
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        hidden = image.info.get("transparency")  # of 16-bit grey: the number that is transparent
        deep_mode = "LA" if isinstance(hidden, int) else "L"
        image = _in_tiles(image, deep_mode, lambda tile: _eight_bits(tile, value_range, hidden))
        value_range = None
    if image.has_transparency_data and isinstance(reading.background, tuple):
        background = reading.background
        return _in_tiles(image, mode, lambda tile: _laid_over(tile, background, value_range).convert(mode))
    if image.mode != mode:
        image = image.convert(mode)
    return image if value_range is None else _in_range(image, value_range)


def over(pixels: np.ndarray, colour: Colour) -> np.ndarray:
    """uint8 `[..., 3, H, W]` from uint8 `[..., 4, H, W]`: red, green, blue and alpha, laid over a colour."""
    alpha = pixels[..., 3:, :, :].astype(np.uint16)
    below = np.array(colour, np.uint16)[:, None, None]
    return ((pixels[..., :3, :, :] * alpha + below * (255 - alpha) + 127) // 255).astype(np.uint8)


def _in_tiles(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `convert` makes of the picture, pixel by pixel, in `mode`."""
    made = Image.new(mode, image.size)
    for left, top in itertools.product(range(0, image.width, _TILE), range(0, image.height, _TILE)):
        box = (left, top, min(left + _TILE, image.width), min(top + _TILE, image.height))
        made.paste(convert(image.crop(box)), box)
    return made


def _laid_over(image: Image.Image, colour: Colour, value_range: tuple[float, float] | None) -> Image.Image:
    image = image.convert("RGBA")
    if value_range is not None:
        image = _in_range(image, value_range)
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def _in_range(image: Image.Image, value_range: tuple[float, float]) -> Image.Image:
    """Grey and colours of 8 bits by `value_range`; alpha stays."""
    table, bands = _scaled(np.arange(256), value_range).tolist(), len(image.getbands())
    same = list(range(256))
    return image.point(table * 3 + same if bands == 4 else table * bands)


def _eight_bits(image: Image.Image, value_range: tuple[float, float] | None, hidden: object) -> Image.Image:
    """Mode L from more bits, by value: PIL's own conversion would clip everything above 255 to white.

    Mode LA where `hidden` is a number: what has it is transparent.
    """
    stored = np.asarray(image)
    grey = Image.fromarray(_of_eight_bits(stored, image.mode) if value_range is None else _checked(stored, value_range))
    if not isinstance(hidden, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(stored == hidden, 0, 255).astype(np.uint8))))


def _checked(stored: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    if not np.isfinite(stored).all():
        raise ValueError("pixels that are not finite numbers")
    return _scaled(stored, value_range)


def _of_eight_bits(stored: np.ndarray, mode: str) -> np.ndarray:
    if mode == "F":
        raise ValueError("floating-point pixels have no known range; set data.value_range=[LOW,HIGH]")
    grey = stored.astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(
            f"integer pixels from {grey.min()} to {grey.max()} do not fit 16 bits; "
            "set data.value_range=[LOW,HIGH] to the values of black and white"
        )
    return ((grey + 128) // 257).astype(np.uint8)


def _scaled(stored: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """uint8, 0 for the lower and 255 for the upper end of `value_range`, rounded to nearest."""
    low, high = value_range
    return ((stored.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
