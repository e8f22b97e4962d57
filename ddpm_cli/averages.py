"""The averages of a network's weights: what each is called, and the mathematics of those that are made afterwards.

A power-function average at time t, in updates since the beginning, is the mean of all weights up to t with weights
proportional to tau^gamma: it forgets the beginning at the same relative pace however long the run is. Its width is
sigma_rel, the standard deviation of that profile over t. Of a few such averages, kept as the run goes on, that of any
other width is made after it. Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion Models",
section 3 and appendix C.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NARROWEST = 0.001  # sigma_rel of gamma = 997
WIDEST = 12**-0.5  # of gamma = 0, the plain mean


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
        times, widths: of the N snapshots, all different; t of each, up to `t`, and its sigma_rel.

    Raises:
        ValueError: if a width cannot be.
    """
    given = list(zip(times, widths, strict=True))
    if (t, sigma_rel) in given:  # is there already: no other counts, not even by rounding
        return np.eye(len(given))[given.index((t, sigma_rel))]
    ends = np.array(times, dtype=np.float64)
    found = {width: exponent(width) for width in set(widths)}
    gammas = np.array([found[width] for width in widths])
    A = inner_product(ends[:, None], gammas[:, None], ends, gammas)
    b = inner_product(ends, gammas, t, exponent(sigma_rel))
    x, *_ = np.linalg.lstsq(A, b)
    return x / x.sum()
