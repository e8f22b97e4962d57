"""Checks of the options that sources of images share, made before anything is read."""

from collections.abc import Sequence
from typing import Literal, get_args

from ddpm_cli.data.reading import WHITE, Colour, Crop, Reading

Background = Literal["white", "black", "keep", "ignore"] | Sequence[int]
_COLOURS: dict[str, Colour] = {"white": WHITE, "black": (0, 0, 0)}
_SHOWN_AS = {"keep": "transparency in a fourth channel", "ignore": "transparency ignored"}
_CROPPED_AS = {
    "center": "cropped at the centre",
    "random": "cropped at random along the longer side, anew each time",
    "pad": "whole",
}


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


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is train or test."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")


def check_on_bad(on_bad: str) -> None:
    """Raise ValueError unless `on_bad` is stop or skip."""
    if on_bad not in ("stop", "skip"):
        raise ValueError(f"on_bad must be stop or skip, got {on_bad!r}")


def check_workers(workers: int) -> None:
    """Raise ValueError unless `workers` is a number of processes, or -1."""
    if workers < -1:
        raise ValueError(f"workers must be -1 (one per CPU), 0 (none) or a number of processes, got {workers}")


def check_cache(memory_mb: int, cache_gb: float) -> None:
    """Raise ValueError if either is negative."""
    for name, amount in (("memory_mb", memory_mb), ("cache_gb", cache_gb)):
        if not amount >= 0:
            raise ValueError(f"{name} must be 0 or more, got {amount}")


def reading(channels: int, value_range: Sequence[float] | None, background: Background, crop: Crop) -> Reading:
    """How files are read, with these options.

    Raises:
        ValueError: unless `value_range` increases, `background` is a colour, keep or ignore, `crop` is known, and
            `channels` is 1 or 3, or 4 if transparency is kept.
    """
    if crop not in get_args(Crop):
        raise ValueError(f"crop must be one of {', '.join(get_args(Crop))}, got {crop!r}")
    below = _background(background)
    if below == "keep":
        if channels != 4:
            raise ValueError(f"channels must be 4 with background=keep, which keeps transparency, got {channels!r}")
    elif channels == 4:
        raise ValueError("channels must be 1 (grey) or 3 (RGB), got 4; with background=keep it is 4")
    else:
        check_channels(channels)
    if below == "ignore" and crop == "pad":
        raise ValueError("crop=pad needs a background, and background=ignore has none: choose a colour")
    if value_range is None:
        return Reading(background=below, crop=crop)
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise ValueError(f"value_range must be [low, high], the values of black and white, got {list(value_range)}")
    return Reading((float(value_range[0]), float(value_range[1])), below, crop)


def _background(background: Background) -> Colour | Literal["keep", "ignore"]:
    if isinstance(background, str):
        if background == "keep" or background == "ignore":
            return background
        if background in _COLOURS:
            return _COLOURS[background]
    elif isinstance(background, Sequence) and len(background) == 3 and all(map(_is_brightness, background)):
        return background[0], background[1], background[2]
    raise ValueError(
        f"background must be white, black, [red, green, blue] from 0 to 255, keep or ignore, got {background!r}"
    )


def _is_brightness(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def treatment(how: Reading, image_size: tuple[int, int]) -> str:
    """One line that says how images are processed."""
    height, width = image_size
    fills = "scaled to fit into" if how.crop == "pad" else "scaled to cover"
    said = f"{fills} {height} x {width}, {_CROPPED_AS[how.crop]}; "
    if isinstance(how.background, str):
        return said + _SHOWN_AS[how.background]
    names = {colour: name for name, colour in _COLOURS.items()}
    colour = names.get(how.background, str(list(how.background)))
    around = "around them and " if how.crop == "pad" else ""
    return f"{said}{colour} {around}behind transparent pixels"


def check_extensions(extensions: Sequence[str]) -> None:
    """Raise ValueError unless `extensions` is a list of file extensions without the dot."""
    if isinstance(extensions, str) or not extensions or not all(extensions):
        raise ValueError(
            f"extensions must be a list of file extensions without the dot, such as [png,jpg], got {extensions!r}"
        )
