"""Frechet distance between two sets of features, each treated as a Gaussian (Heusel et al. 2017, eq. 6)."""

from dataclasses import dataclass

import numpy as np

from ddpm_cli.evaluation.statistics import FeatureSums, Statistics

_EPS = float(np.finfo(np.float64).eps)
_ROWS = 4096  # features of a subset read at a time


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), the squared distance of Dowson & Landau 1982.

    Singular covariances are no special case. Raises ValueError for statistics of different dimensions.
    """
    return _distance(a, root(a.covariance), b, root(b.covariance))


def rank_remark(statistics: Statistics, what: str) -> str | None:
    """A sentence on the covariance of too few images, such as "samples: ..."; None if there are enough."""
    if statistics.most_rank == statistics.dimensions:
        return None
    return (
        f"{what}: {statistics.count} images for features of {statistics.dimensions} dimensions: "
        f"the covariance has rank {statistics.most_rank} at most, and the distance is far too large"
    )


def root(covariance: np.ndarray) -> np.ndarray:
    """float64 `[D, R]` whose product with its own transpose is the covariance `[D, D]`; R is its rank.

    It is Cholesky's factor, of a singular covariance the one with pivots (Higham 2002, 10.3): both cost less than
    eigenvectors.
    """
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return _pivoted_root(covariance)
    pivots = np.diagonal(factor) ** 2
    return factor if pivots.min() > len(covariance) * _EPS * pivots.max() else _pivoted_root(covariance)


def _pivoted_root(covariance: np.ndarray) -> np.ndarray:
    """Column by column along what is left of the largest variance, until rounding errors are left."""
    factor = np.zeros_like(covariance)
    left = np.diagonal(covariance).copy()
    floor = len(covariance) * _EPS * left.max()
    for i in range(len(covariance)):
        pivot = int(left.argmax())
        if left[pivot] <= floor:
            return factor[:, :i]
        column = covariance[pivot] - factor[:, :i] @ factor[pivot, :i]
        column /= np.sqrt(left[pivot])
        factor[:, i] = column
        left -= column**2
        left[pivot] = 0
    return factor


def _distance(a: Statistics, root_a: np.ndarray, b: Statistics, root_b: np.ndarray) -> float:
    _check_same_dimensions(a, b)
    # C_a C_b has the eigenvalues of p p^T and of p^T p, and 0: taken from the smaller of these, none is rounding alone.
    p = root_a.T @ root_b
    squares = np.linalg.eigvalsh(p @ p.T if len(p) < len(p.T) else p.T @ p)
    trace = np.sqrt(squares.clip(min=0)).sum()
    apart = a.mean - b.mean
    return float(apart @ apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace)


def _check_same_dimensions(a: Statistics, b: Statistics) -> None:
    if a.dimensions != b.dimensions:
        raise ValueError(f"features of {a.dimensions} and of {b.dimensions} dimensions cannot be compared")


@dataclass(frozen=True)
class Extrapolation:
    """The Frechet distance extrapolated to infinitely many samples.

    Attributes:
        value: of the line at 1/N = 0.
        standard_error: of the value, from the points' distances to the line. It is the error of the fit alone: another
            draw of samples moves all points together, which subsets cannot show.
        sizes: N of each point.
        distances: the Frechet distance at each.
    """

    value: float
    standard_error: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def fd_inf(
    features: np.ndarray, reference: Statistics, *, seed: int, points: int = 15, smallest: int | None = None
) -> Extrapolation:
    """The Frechet distance of infinitely many samples: a line in 1/N through those of subsets (Chong & Forsyth 2020).

    Args:
        features: `[N, D]` of the samples.
        seed: determines which samples are in which subset.
        points: the number of subsets, at least 3. Their sizes go in equal steps from `smallest` to N.
        smallest: N of the first; None: a tenth of all as in the paper, but at least 2 D, or half of all if that is
            fewer. The distance is a line in 1/N only if the covariance has full rank.

    Raises ValueError for too few features for this many sizes.
    """
    total, dimensions = features.shape
    first = max(total // 10, min(2 * dimensions, total // 2), 2) if smallest is None else smallest
    if points < 3 or not 2 <= first <= total - points:
        raise ValueError(f"fd_inf: {points} sizes from {first} to {total} images; at least 3 different ones from 2")
    sizes = np.linspace(first, total, points).astype(int)
    random = np.random.default_rng(seed)
    root_reference = root(reference.covariance)
    distances = []
    for size in sizes:
        chosen = np.sort(random.permutation(total)[:size])
        statistics = _subset_statistics(features, chosen)
        distances.append(_distance(reference, root_reference, statistics, root(statistics.covariance)))
    value, error = _intercept(1 / sizes, np.array(distances))
    return Extrapolation(value, error, tuple(sizes.tolist()), tuple(distances))


def _subset_statistics(features: np.ndarray, chosen: np.ndarray) -> Statistics:
    sums = FeatureSums.zero(features.shape[1])
    for start in range(0, len(chosen), _ROWS):
        sums.update(features[chosen[start : start + _ROWS]])
    return sums.statistics()


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The intercept of the least-squares line through the points, and its standard error."""
    centred = x - x.mean()
    slope = centred @ y / (centred @ centred)
    value = y.mean() - slope * x.mean()
    residual = y - value - slope * x
    variance = residual @ residual / (len(x) - 2) * (1 / len(x) + x.mean() ** 2 / (centred @ centred))
    return float(value), float(np.sqrt(variance))
