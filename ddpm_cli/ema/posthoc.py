"""The averages of a network's weights: what each is called, and the mathematics of those that are made afterwards.

A power-function average at time t, in updates since the beginning, is the mean of all weights up to t with weights
proportional to tau^gamma: it forgets the beginning at the same relative pace however long the run is. Its width is
sigma_rel, the standard deviation of that profile over t. Of a few such averages, kept as the run goes on, that of any
other width is made after it. Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion Models",
section 3 and appendix C.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import ArrayLike, NDArray

NARROWEST = 0.001  # sigma_rel of gamma = 997
WIDEST = 12**-0.5  # of gamma = 0, the plain mean
MOST_WIDTHS = 8  # kept in a run
MOST_TERMS = 512  # snapshots, one for each width, that an average is made of: 256 of two widths, in 15 MB and 0.1 s
MOST_OFF = 0.1  # L2 distance of the profile that is made from the one asked for, over the latter's norm


def ema_prefix(decay: float) -> str:
    """What the names of an exponential average begin with in a training state; the main one has a file of its own."""
    return f"ema.{float(decay)!r}."


def posthoc_prefix(sigma_rel: float) -> str:
    """What the names of a power-function average begin with in a training state and in a snapshot."""
    return f"posthoc.{float(sigma_rel)!r}."


def check_width(sigma_rel: float) -> None:
    """Raise ValueError unless a power-function average can be that wide."""
    if not NARROWEST <= sigma_rel < WIDEST:
        raise ValueError(
            f"must be at least {NARROWEST:g} and below {WIDEST:.4f} (1 / sqrt(12), the plain mean), got {sigma_rel:g}"
        )


def check_widths(widths: Sequence[float]) -> None:
    """Raise ValueError unless a run can keep power-function averages of these widths."""
    if len(widths) > MOST_WIDTHS:
        raise ValueError(f"must hold at most {MOST_WIDTHS} widths, got {len(widths)}")
    for width in widths:
        check_width(width)
    if len(set(widths)) < len(widths):
        raise ValueError(f"must differ from each other, got {list(widths)}")


def exponent(sigma_rel: float) -> float:
    """gamma >= 0 of a relative width: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (eq. 123 and 126).

    Raises:
        ValueError: if `sigma_rel` is too narrow or too wide.
    """
    check_width(sigma_rel)
    r = sigma_rel**-2
    # sigma_rel falls from gamma = 0 on, so that the cubic's largest root is the one.
    return float(np.roots([1, 7, 16 - r, 12 - r]).real.max())


def newest_weight(t: int, gamma: float) -> float:
    """1 - beta_gamma(t) with beta_gamma(t) = (1 - 1 / t)^(gamma + 1), for the t-th update, from 1 on (eq. 127).

    Updated so, the average is exactly the one whose profile is constant within each update.
    """
    return 1.0 if t == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / t))


def inner_product(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> NDArray[np.float64]:
    """Integral of the product of two profiles, (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t] (eq. 151), broadcast."""
    t_a, gamma_a, t_b, gamma_b = (np.asarray(value, dtype=np.float64) for value in (t_a, gamma_a, t_b, gamma_b))
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_last = np.where(t_a < t_b, gamma_b, gamma_a)  # of the one that ends later
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (first / last) ** gamma_last / last


def coefficients(times: Sequence[int], widths: Sequence[float], *, t: int, sigma_rel: float) -> NDArray[np.float64]:
    """By how much each snapshot counts in the average of width `sigma_rel` at t, `[N]`; together 1 (algorithm 3).

    The combination whose profile is nearest to the one asked for in the least-squares sense.

    Args:
        times, widths: of the N snapshots, all different; t of each, up to `t`, and its sigma_rel. It takes memory for
            N x N numbers: see `MOST_TERMS`.

    Raises:
        ValueError: if a width cannot be, or the nearest profile is off by more than `MOST_OFF` of the one asked for; it
            says which widths these snapshots make.
    """
    given = list(zip(times, widths, strict=True))
    if (t, sigma_rel) in given:  # is there already: no other counts, not even by rounding
        return np.eye(len(given))[given.index((t, sigma_rel))]
    x, off = _nearest(times, widths, t, [sigma_rel])
    if not off[0] <= MOST_OFF:
        kept, count = ", ".join(f"{width:g}" for width in dict.fromkeys(widths)), len(set(times))
        raise ValueError(
            f"{sigma_rel:g} cannot be made of {count} snapshot{'s'[: count - 1]} of lengths {kept}: the nearest "
            f"profile is {off[0]:.0%} off; they make {_widths_made(times, widths, t)}"
        )
    return x[:, 0]


def _nearest(
    times: Sequence[int], widths: Sequence[float], t: int, wanted: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients `[N, K]` of the nearest profile to each of K widths at t; its L2 distance over the norm of theirs.

    Those of each add up to 1: the profile is the last snapshot's, and y of the others' differences from it.
    """
    ends = np.array(times, dtype=np.float64)
    found = {width: exponent(width) for width in set(widths)}
    gammas, targets = np.array([found[width] for width in widths]), np.array([exponent(width) for width in wanted])
    A = inner_product(ends[:, None], gammas[:, None], ends, gammas)
    b = inner_product(ends[:, None], gammas[:, None], t, targets)
    c = inner_product(t, targets, t, targets)
    from_last = A[-1, -1] - A[:-1, -1:]
    y, *_ = np.linalg.lstsq(A[:-1, :-1] - A[-1:, :-1] + from_last, b[:-1] - b[-1:] + from_last)
    x = np.vstack([y, 1 - y.sum(axis=0)])
    squared = (x * (A @ x - 2 * b)).sum(axis=0) + c
    return x, np.sqrt(np.maximum(squared, 0) / c)


def _widths_made(times: Sequence[int], widths: Sequence[float], t: int) -> str:
    """The ranges of widths that can be made of these snapshots, as far as widths of two digits tell."""
    kept = {width for end, width in zip(times, widths, strict=True) if end == t}
    tried = {float(f"{width:.2g}") for width in np.geomspace(NARROWEST, WIDEST, 200)}
    tried = sorted(kept | {width for width in tried if NARROWEST <= width < WIDEST})
    _, off = _nearest(times, widths, t, tried)
    made = [width in kept or distance <= MOST_OFF for width, distance in zip(tried, off.tolist(), strict=True)]
    ranges = [
        [width for _, width in run] for fits, run in groupby(zip(made, tried, strict=True), itemgetter(0)) if fits
    ]
    return ", ".join(f"{r[0]:g}" if len(r) == 1 else f"{r[0]:g} to {r[-1]:g}" for r in ranges) or "none"
