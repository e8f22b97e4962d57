"""Checks that the sizes of a U-Net fit each other, before any layer is made."""

import math
from collections.abc import Sequence

MOST_BASE_CHANNELS = 2**16


def level_sizes(image_size: int | Sequence[int], levels: int) -> list[int]:
    """Shorter side of each level in pixels, from the image's down.

    Raises:
        ValueError: if the image cannot be halved this often; the message names sizes that can.
    """
    if levels < 1:
        raise ValueError("channel_mults needs at least one level")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    factor = 2 ** (levels - 1)
    for side in (height, width):
        if side < 1:
            raise ValueError(f"image_size must be positive, got {side}")
        if side % factor != 0:
            below, above = side // factor * factor, (side // factor + 1) * factor
            would_do = f"{below} or {above}" if below > 0 else f"{above}"
            raise ValueError(
                f"image_size {side} cannot be halved {levels - 1} times, as {levels} channel_mults need; "
                f"{would_do} would do"
            )
    return [min(height, width) // 2**level for level in range(levels)]


def check_counts(**counts: int) -> None:
    """Raise ValueError for a count below 1, by its name."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_base_channels(base_channels: int) -> None:
    """Raise ValueError for a number of channels that the time embedding cannot have."""
    if base_channels > MOST_BASE_CHANNELS:  # before a table of its size is made
        raise ValueError(f"base_channels must be at most {MOST_BASE_CHANNELS}, got {base_channels}")
    if base_channels % 2 != 0:
        raise ValueError(
            f"base_channels must be even, for the sines and cosines of the time embedding, got {base_channels}"
        )


def check_levels(
    widths: Sequence[int], resolutions: Sequence[int], attention_resolutions: Sequence[int], *, norm_groups: int
) -> None:
    """Raise ValueError for attention at a resolution that no level has, or channels that the groups do not divide."""
    for resolution in attention_resolutions:
        if resolution not in resolutions:
            raise ValueError(
                f"attention_resolutions has {resolution}, but this network has {list(resolutions)}: choose from these, "
                "or another image_size or channel_mults"
            )
    for width in widths:
        if width % norm_groups != 0:
            raise ValueError(f"norm_groups {norm_groups} does not divide the {width} channels of a level")


def check_heads(
    widths: Sequence[int],
    resolutions: Sequence[int],
    attention_resolutions: Sequence[int],
    *,
    num_heads: int,
    head_channels: int | None,
) -> None:
    """Raise ValueError for attention heads that do not divide the channels of a level."""
    if head_channels is None:
        for width in widths:
            if width % num_heads != 0:
                raise ValueError(f"num_heads {num_heads} does not divide the {width} channels of a level")
        return
    if num_heads != 1:
        raise ValueError(f"num_heads {num_heads} and head_channels {head_channels} set the same: leave out either")
    check_counts(head_channels=head_channels)
    # The coarsest level always has self-attention, between the way down and the way up.
    levels = list(zip(widths, resolutions, strict=True))
    attended = [level for level in levels if level[1] in attention_resolutions or level == levels[-1]]
    misfit = next(((width, side) for width, side in attended if width % head_channels != 0), None)
    if misfit is not None:
        common = math.gcd(*(width for width, _ in attended))
        would_do = ", ".join([str(n) for n in range(1, common + 1) if common % n == 0][-4:])
        raise ValueError(
            f"head_channels {head_channels} does not divide the {misfit[0]} channels of the level of {misfit[1]} "
            f"pixels; {would_do} would do"
        )


def check_details(
    *,
    dropout: float,
    norm_eps: float,
    time_freq_shift: int,
    time_scale: float,
    downsample_padding: str,
    resblock_updown: bool,
) -> None:
    """Raise ValueError for an option out of its range, or one that has no effect because of another."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout:g}")
    for name, value in (("norm_eps", norm_eps), ("time_scale", time_scale)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value:g}")
    if time_freq_shift not in (0, 1):
        raise ValueError(f"time_freq_shift must be 0 or 1, got {time_freq_shift}")
    if downsample_padding not in ("same", "symmetric"):
        raise ValueError(f"downsample_padding must be same or symmetric, got {downsample_padding!r}")
    if resblock_updown and downsample_padding != "same":
        raise ValueError(
            f"downsample_padding={downsample_padding} has no effect with resblock_updown=true, which halves by averages"
        )
