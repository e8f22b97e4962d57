"""The averages of a network's weights: their names, and the mathematics of reconstructing them after training.

A power-function average at time t, counted in updates, is the mean of the network's weights at all tau up to t, each
counted in proportion to tau^gamma: it forgets the start of the run at the same relative pace however long the run is.
Its length is the standard deviation of that profile over t, the paper's sigma_rel. From snapshots of a few such
averages, the average of any other length is reconstructed after the run. Karras et al. (2024), "Analyzing and Improving
the Training Dynamics of Diffusion Models", section 3 and appendix C.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHORTEST = 0.001  # the length of gamma = 997
LONGEST = 12**-0.5  # of gamma = 0, the plain mean
MOST_LENGTHS = 8  # kept in a run
MOST_TERMS = 512  # snapshots times lengths, from which an average is made: 256 of two lengths take 15 MB and 0.1 s
MOST_OFF = 0.1  # L2 distance of the reconstructed profile from the one asked for, over the norm of the latter

EMA = "ema."
POSTHOC = "posthoc."


def ema_prefix(decay: float) -> str:
    """The prefix of an exponential average's names in a training state; the main average has its own file."""
    return f"{EMA}{float(decay)!r}."


def posthoc_prefix(length: float) -> str:
    """The prefix of a power-function average's names in a training state and in a snapshot."""
    return f"{POSTHOC}{float(length)!r}."


def check_length(length: float) -> None:
    """Raise ValueError unless a power-function average can have this length."""
    if not SHORTEST <= length < LONGEST:
        raise ValueError(
            f"must be at least {SHORTEST:g} and below {LONGEST:.4f} (1 / sqrt(12), the plain mean), got {length:g}"
        )


def check_lengths(lengths: Sequence[float]) -> None:
    """Raise ValueError unless a run can keep power-function averages of these lengths."""
    if len(lengths) > MOST_LENGTHS:
        raise ValueError(f"must have at most {MOST_LENGTHS} lengths, got {len(lengths)}")
    for length in lengths:
        check_length(length)
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"must differ from each other, got {list(lengths)}")


def exponent(length: float) -> float:
    """gamma >= 0 of a length: length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (eq. 123 and 126).

    Raises:
        ValueError: if `length` is too short or too long.
    """
    check_length(length)
    r = length**-2
    # The length falls with gamma from 0 on, so the cubic's largest root is the right one.
    return float(np.roots([1, 7, 16 - r, 12 - r]).real.max())


def newest_weight(t: int, gamma: float) -> float:
    """1 - beta_gamma(t) with beta_gamma(t) = (1 - 1 / t)^(gamma + 1), for the t-th update, t = 1, 2, ... (eq. 127).

    With these, the average is exactly the one whose profile is constant within each update.
    """
    return 1.0 if t == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / t))


def inner_product(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> NDArray[np.float64]:
    """Integral of the product of two profiles, (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t] (eq. 151), broadcast."""
    t_a, gamma_a, t_b, gamma_b = (np.asarray(value, dtype=np.float64) for value in (t_a, gamma_a, t_b, gamma_b))
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_last = np.where(t_a < t_b, gamma_b, gamma_a)  # of the one that ends later
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (first / last) ** gamma_last / last


def coefficients(times: Sequence[int], lengths: Sequence[float], *, t: int, length: float) -> NDArray[np.float64]:
    """The coefficient of each snapshot in the average of `length` at t, `[N]`; they sum to 1 (algorithm 3).

    They give the profile that is closest to the one asked for in the least-squares sense.

    Args:
        times, lengths: of the N snapshots, all different: the t of each, up to `t`, and its length. This takes memory
            for N x N numbers: see `MOST_TERMS`.

    Raises:
        ValueError: if a length is impossible, or the closest profile is off by more than `MOST_OFF` of the one asked
            for; the message says which lengths these snapshots make.
    """
    given = list(zip(times, lengths, strict=True))
    if (t, length) in given:  # this snapshot alone, without even a rounding error
        return np.eye(len(given))[given.index((t, length))]
    x, off = _nearest(times, lengths, t, [length])
    if not off[0] <= MOST_OFF:
        kept, count = ", ".join(f"{one:g}" for one in dict.fromkeys(lengths)), len(set(times))
        raise ValueError(
            f"{length:g} cannot be made from {count} snapshot{'s'[: count - 1]} of lengths {kept}: the nearest "
            f"profile is {off[0]:.0%} off; they make {_lengths_made(times, lengths, t)}"
        )
    return x[:, 0]


def _nearest(
    times: Sequence[int], lengths: Sequence[float], t: int, wanted: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients `[N, K]` of the closest profile to each of K lengths at t, and its L2 distance over their norm.

    The coefficients of each length sum to 1: a profile is the last snapshot's plus y times the others' differences from
    it.
    """
    ends = np.array(times, dtype=np.float64)
    found = {length: exponent(length) for length in set(lengths)}
    gammas, targets = np.array([found[length] for length in lengths]), np.array([exponent(one) for one in wanted])
    A = inner_product(ends[:, None], gammas[:, None], ends, gammas)
    b = inner_product(ends[:, None], gammas[:, None], t, targets)
    c = inner_product(t, targets, t, targets)
    from_last = A[-1, -1] - A[:-1, -1:]
    y, *_ = np.linalg.lstsq(A[:-1, :-1] - A[-1:, :-1] + from_last, b[:-1] - b[-1:] + from_last)
    x = np.vstack([y, 1 - y.sum(axis=0)])
    squared = (x * (A @ x - 2 * b)).sum(axis=0) + c
    return x, np.sqrt(np.maximum(squared, 0) / c)


def _lengths_made(times: Sequence[int], lengths: Sequence[float], t: int) -> str:
    """The ranges of lengths that these snapshots make, tried at lengths of two digits."""
    kept = {length for end, length in zip(times, lengths, strict=True) if end == t}
    spread = {float(f"{length:.2g}") for length in np.geomspace(SHORTEST, LONGEST, 200)}
    tried = sorted(kept | {length for length in spread if SHORTEST <= length < LONGEST})
    _, off = _nearest(times, lengths, t, tried)
    made = {length for length, distance in zip(tried, off.tolist(), strict=True) if distance <= MOST_OFF}
    made |= kept
    ranges = []
    for is_made, group in groupby(tried, made.__contains__):
        run = list(group)
        if is_made:
            ranges.append(f"{run[0]:g}" if len(run) == 1 else f"{run[0]:g} to {run[-1]:g}")
    return ", ".join(ranges) or "none"
