"""Spacings: which of the schedule's timesteps a reverse process visits if it takes fewer steps than T.

All but `leading` start at the t of x. Table 2 of Lin et al. 2023 compares the first three.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule

OPTIMIZED = "optimized"  # a spacing that is chosen for one model: see optimized_steps


def visited(
    schedule: NoiseSchedule, steps: int | Sequence[int] | None, spacing: str, first: int | None = None
) -> list[int]:
    """The timesteps visited, strictly decreasing; after the last one comes clean data (t = -1).

    Args:
        steps: how many; or the timesteps themselves, for which `spacing` has no effect; None: all of them.
        spacing: a name in `SPACINGS`.
        first: the t of x; None: T-1.

    Raises:
        ValueError: for too many or too few steps, or a list that is not of decreasing timesteps.
    """
    if first is not None and not 0 <= first < schedule.timesteps:
        raise ValueError(f"first must be between 0 and {schedule.timesteps - 1}, got {first}")
    if spacing == OPTIMIZED:
        if not isinstance(steps, Sequence):
            raise ValueError(
                f"{OPTIMIZED} timesteps are chosen for one model, by ddpm-sample, ddpm-eval and optimized_steps(); "
                "here choose spacing=trailing"
            )
    elif spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")
    top = schedule.timesteps - 1 if first is None else first
    if isinstance(steps, Sequence):
        return _checked(steps, top)
    steps = top + 1 if steps is None else steps
    if not 1 <= steps <= top + 1:
        there_are = f"the schedule's {top + 1}" if first is None else f"the {top + 1}"
        below = "" if first is None else f" up to first = {first}"
        raise ValueError(f"steps must be between 1 and {there_are} timesteps{below}, got {steps}")
    return SPACINGS[spacing](schedule, top, steps)


def linspace(schedule: NoiseSchedule, first: int, steps: int) -> list[int]:
    """From `first` to 0, both included, evenly spaced in t."""
    return torch.linspace(first, 0, steps, dtype=torch.float64).round().int().tolist()


def trailing(schedule: NoiseSchedule, first: int, steps: int) -> list[int]:
    """From `first` to about T / steps - 1, so that the step to clean data is as long as the others."""
    return [round((first + 1) * (steps - i) / steps) - 1 for i in range(steps)]


def leading(schedule: NoiseSchedule, first: int, steps: int) -> list[int]:
    """Multiples of T // steps, down to 0: what older samplers use, kept to reproduce them.

    It starts below `first`, while x is at `first`: the network is told that there is less noise than there is, and pure
    noise at T-1 is never visited. This is its known flaw (Lin et al. 2023, section 3.3).
    """
    stride = (first + 1) // steps
    return [i * stride for i in reversed(range(steps))]


def log_snr(schedule: NoiseSchedule, first: int, steps: int) -> list[int]:
    """From `first` to 0, both included, evenly spaced in the log signal-to-noise ratio, as far as t is fine enough.

    Pure noise counts as if it had the log-SNR of the t before it, the lowest that is finite.
    """
    table = schedule.log_snr[: first + 1].cpu().double()
    lowest = first - 1 if table[first] == -math.inf and first > 0 else first
    times = [first]
    for i, wanted in enumerate(torch.linspace(table[lowest], table[0], steps, dtype=torch.float64)[1:], start=1):
        nearest = int((table - wanted).abs().argmin())
        # Distinct, and with one t left for each of the steps - 1 - i still to come.
        times.append(max(min(nearest, times[-1] - 1), steps - 1 - i))
    return times


SPACINGS = {"leading": leading, "trailing": trailing, "linspace": linspace, "log_snr": log_snr}


def _checked(times: Sequence[int], first: int) -> list[int]:
    """A user's own list of timesteps."""
    if not times:
        raise ValueError("steps must name at least one timestep, got an empty list")
    for t in times:
        if not isinstance(t, int) or not 0 <= t <= first:
            raise ValueError(f"steps must be timesteps between 0 and {first}, got {t}")
    for t, s in pairwise(times):
        if not t > s:
            raise ValueError(f"steps must decrease from one to the next, got {s} after {t}")
    if times[0] != first:
        raise ValueError(f"steps must start at {first}, where the noise is, got {times[0]}")
    return list(times)
