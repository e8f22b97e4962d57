"""The levels of a U-Net for images of another size than its YAML file was written for.

    depth       the image is halved for as long as both of its sides can be, and the shorter one does not come below
                what it is at the file's coarsest level
    channels    the coarsest levels keep the file's multiples; a level more has those of the first one, a level less is
                taken from behind the first one
    attention   at the same levels, counted from the coarsest, where the shorter side is below 64 pixels

At the size of the file this gives what is written in it. Nothing follows for a size of which odd sides allow less than
half of the halvings, or leave 64 pixels or more at the coarsest level, where attention sees every pixel at once: such a
size is refused with the next ones that would do.
"""

from collections.abc import Sequence

from ddpm_cli.config.errors import ConfigError

MOST_ATTENDED = 64  # pixels of the shorter side from which on attention takes too much


def channel_mults(image_size: object, coarsest: int, mults: Sequence[int]) -> list[int]:
    """The multiples of the channels of each level.

    Args:
        image_size: of one side, or [height, width], in pixels; anything else is left to be refused by who takes it.
        coarsest: the shorter side at the coarsest level of the file.
        mults: of the file.

    Raises:
        ConfigError: for a size that nothing follows for; names the next ones that something does.
    """
    sides = _sides(image_size)
    if sides is None:
        return list(mults)
    levels = _shorter_sides(sides, coarsest)
    if not levels:
        raise ConfigError(_refusal(sides, coarsest))
    more = len(levels) - len(mults)
    if more == 0:
        return list(mults)
    return [mults[0]] * more + list(mults) if more > 0 else [mults[0], *mults[1 - more :]]


def attention_resolutions(image_size: object, coarsest: int, resolutions: Sequence[int]) -> list[int]:
    """The levels with self-attention, by their shorter side; arguments as of `channel_mults`."""
    sides = _sides(image_size)
    levels = _shorter_sides(sides, coarsest) if sides is not None else []
    if not levels:
        return list(resolutions)
    places = [(resolution // coarsest).bit_length() - 1 for resolution in resolutions]  # from the coarsest on
    sides = [levels[-1 - place] for place in places if place < len(levels)]
    return [side for side in sides if side < MOST_ATTENDED]


def levels_text(model: dict) -> str:
    """ "levels of 96, 48, 24, 12 pixels, attention at 24, 12": of a U-Net's options; empty for another network's."""
    size, mults, attended = (model.get(key) for key in ("image_size", "channel_mults", "attention_resolutions"))
    sides = _sides(size)
    if sides is None or not isinstance(mults, list) or not isinstance(attended, list):
        return ""
    levels = ", ".join(str(min(sides) // 2**level) for level in range(len(mults)))
    return f"levels of {levels} pixels" + (f", attention at {', '.join(map(str, attended))}" if attended else "")


def _shorter_sides(sides: tuple[int, int], coarsest: int) -> list[int]:
    """The shorter side of each level; empty if the size allows too few levels."""
    found = _halved(sides, coarsest)
    wanted = (found[0] // coarsest).bit_length() - 1  # halvings, were the sides a power of 2
    return found if found[-1] < MOST_ATTENDED and 2 * (len(found) - 1) >= wanted else []


def _halved(sides: tuple[int, int], coarsest: int) -> list[int]:
    """The shorter side of each level, halved as often as possible."""
    height, width = sides
    found = [min(sides)]
    while height % 2 == 0 and width % 2 == 0 and found[-1] // 2 >= coarsest:
        height, width = height // 2, width // 2
        found.append(min(height, width))
    return found


def _refusal(sides: tuple[int, int], coarsest: int) -> str:
    """The message for a size that allows too few levels, with the next possible sizes below and above."""
    halvings = len(_halved(sides, coarsest)) - 1
    coarse = " x ".join(str(side >> halvings) for side in sides)
    sizes = " or ".join(_text(size) for size in _next(sides, coarsest) if size is not None)
    return (
        f"data.image_size: {_text(sides)} can be halved only {halvings} times, to {coarse} pixels: too few levels; use "
        f"{sizes}, or set model.channel_mults and model.attention_resolutions"
    )


def _next(sides: tuple[int, int], coarsest: int) -> list[tuple[int, int] | None]:
    """The nearest possible smaller and larger sizes: multiples of the smallest power of 2 that allows enough levels."""
    found: list[tuple[int, int] | None] = []
    for more in (0, 1):
        powers = (2**k for k in range(1, max(sides).bit_length() + 1))
        rounded = (tuple((side + more * (power - 1)) // power * power for side in sides) for power in powers)
        found.append(next(((h, w) for h, w in rounded if min(h, w) > 0 and _shorter_sides((h, w), coarsest)), None))
    return found


def _text(sides: tuple[int, int]) -> str:
    height, width = sides
    return f"{height}" if height == width else f"[{height},{width}]"


def _sides(image_size: object) -> tuple[int, int] | None:
    if isinstance(image_size, int) and image_size > 0:
        return image_size, image_size
    if isinstance(image_size, Sequence) and not isinstance(image_size, str) and len(image_size) == 2:
        height, width = image_size
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    return None
