"""Which levels a U-Net has for images of another size than the one that its YAML file was written for.

    depth       the image is halved for as long as both of its sides can be, and the shorter one does not come below
                what it is at the file's coarsest level
    channels    the coarsest levels keep the file's multiples; a level more has those of the first one, a level less is
                taken from behind the first one
    attention   at the same levels, counted from the coarsest, where the shorter side is below 64 pixels

At the size of the file this gives what is written in it. Nothing follows for a size of which odd sides allow less than
half of the halvings, or leave 64 pixels or more at the coarsest level, where attention sees every pixel at once: the
file's own values stand, and `UNet` says what would do.
"""

from collections.abc import Sequence

MOST_ATTENDED = 64  # pixels of the shorter side from which on attention takes too much


def channel_mults(image_size: object, coarsest: int, mults: Sequence[int]) -> list[int]:
    """The multiples of the channels of each level.

    Args:
        image_size: of one side, or [height, width], in pixels; anything else is left to be refused by who takes it.
        coarsest: the shorter side at the coarsest level of the file.
        mults: of the file.
    """
    levels = _shorter_sides(image_size, coarsest)
    more = len(levels) - len(mults)
    if not levels or more == 0:
        return list(mults)
    return [mults[0]] * more + list(mults) if more > 0 else [mults[0], *mults[1 - more :]]


def attention_resolutions(image_size: object, coarsest: int, resolutions: Sequence[int]) -> list[int]:
    """The levels with self-attention, by their shorter side; arguments as of `channel_mults`."""
    levels = _shorter_sides(image_size, coarsest)
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


def _shorter_sides(image_size: object, coarsest: int) -> list[int]:
    """Of each level; none where nothing follows."""
    sides = _sides(image_size)
    if sides is None:
        return []
    height, width = sides
    found = [min(height, width)]
    while height % 2 == 0 and width % 2 == 0 and found[-1] // 2 >= coarsest:
        height, width = height // 2, width // 2
        found.append(min(height, width))
    wanted = (found[0] // coarsest).bit_length() - 1  # halvings, were the sides a power of 2
    return found if found[-1] < MOST_ATTENDED and 2 * (len(found) - 1) >= wanted else []


def _sides(image_size: object) -> tuple[int, int] | None:
    if isinstance(image_size, int) and image_size > 0:
        return image_size, image_size
    if isinstance(image_size, Sequence) and not isinstance(image_size, str) and len(image_size) == 2:
        height, width = image_size
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    return None
