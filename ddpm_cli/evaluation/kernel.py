"""Kernel distance between two sets of features (Binkowski et al. 2018): unbiased at any number of images."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class KernelDistance:
    """The distance, and how it was computed.

    Attributes:
        value: mean of the subsets' squared maximum mean discrepancies; may be below 0.
        standard_error: how far the value would be off with other samples of the same two distributions; None where the
            subsets are the whole set, and say nothing of it.
        subset_size: of each subset.
        subsets: how many there were.
    """

    value: float
    standard_error: float | None
    subset_size: int
    subsets: int


def kernel_distance(
    x: np.ndarray, y: np.ndarray, *, seed: int, subset_size: int | None = None, subsets: int = 100
) -> KernelDistance:
    """Squared maximum mean discrepancy of features `[N, D]` and `[M, D]` under k(a, b) = (a.b / D + 1)^3.

    It is the unbiased estimate (Gretton et al. 2012, eq. 3), as a mean over random subsets of both. As these share
    images, their spread alone would promise too small an error: n of N images drawn without return vary by 1 - n/N of
    what independent ones do, and there are no more than N/n independent ones.

    Args:
        seed: decides which images are in which subset.
        subset_size: images of each in a subset; None: 1000, but at most half of either set, so that subsets differ.

    Raises ValueError for features of different dimensions, and for a size beyond either set or below 2.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features of shapes {list(x.shape)} and {list(y.shape)} cannot be compared")
    fewest = min(len(x), len(y))
    size = max(2, min(1000, fewest // 2)) if subset_size is None else subset_size
    if not 2 <= size <= fewest or subsets < 2:
        raise ValueError(f"kernel distance of {subsets} subsets of {size} of {fewest} images: 2 of 2 at least")
    random = np.random.default_rng(seed)
    distances = np.array([_mmd(_subset(x, size, random), _subset(y, size, random)) for _ in range(subsets)])
    share = size / fewest
    error = None
    if share < 1:
        error = float(distances.std(ddof=1) * np.sqrt(max(1 / subsets, share) / (1 - share)))
    return KernelDistance(float(distances.mean()), error, size, subsets)


def _subset(features: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    chosen = np.sort(random.choice(len(features), size, replace=False))  # in the order in which they lie on the disk
    return features[chosen].astype(np.float64)


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Of `[n, D]` and `[n, D]`."""
    n = len(x)
    within = sum((kernel.sum() - np.trace(kernel)) / (n * (n - 1)) for kernel in (_kernel(x, x), _kernel(y, y)))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
