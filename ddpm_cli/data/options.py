"""What sources of images check of the options that they share, before they read anything."""

from collections.abc import Sequence
from typing import Literal

from ddpm_cli.data.decode import Reading


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
    """Raise ValueError unless `split` is a part of a well-known set."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")


def check_on_bad(on_bad: str) -> None:
    """Raise ValueError unless `on_bad` says what to do about an image that cannot be decoded."""
    if on_bad not in ("stop", "skip"):
        raise ValueError(f"on_bad must be stop or skip, got {on_bad!r}")


def check_workers(workers: int) -> None:
    """Raise ValueError unless `workers` is a number of processes, or -1."""
    if workers < -1:
        raise ValueError(f"workers must be -1 (one per CPU), 0 (none) or a number of processes, got {workers}")


def reading(value_range: Sequence[float] | None, alpha: Literal["white", "ignore"]) -> Reading:
    """How files are to be read. Raises ValueError unless `value_range` rises, and `alpha` says what is done with it."""
    if alpha not in ("white", "ignore"):
        raise ValueError(f"alpha must be white or ignore, got {alpha!r}")
    if value_range is None:
        return Reading(alpha=alpha)
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise ValueError(f"value_range must be [low, high], what becomes black and white, got {list(value_range)}")
    return Reading((float(value_range[0]), float(value_range[1])), alpha)


def check_extensions(extensions: Sequence[str]) -> None:
    """Raise ValueError unless `extensions` is a list of what follows the dot in the names of images."""
    if isinstance(extensions, str) or not extensions or not all(extensions):
        raise ValueError(
            f"extensions must be a list of what follows the dot in the names of images, got {extensions!r}"
        )
