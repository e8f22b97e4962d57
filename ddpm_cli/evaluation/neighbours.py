"""Nearest neighbours among features, and precision and recall, which are based on them.

Squared distances come from one matrix product for many pairs, |a|^2 + |b|^2 - 2 a.b, whose rounding is bounded. Where
the bound leaves in doubt which pair is nearer, the squares of the differences are summed: results are exact, also among
copies and ties. No array is larger than a block of rows times a block of columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ROWS, COLUMNS = 1024, 4096  # of a block of distances
_EXACT_VALUES = 2**22  # differences held at a time
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class PrecisionRecall:
    """Both from 0 to 1.

    Attributes:
        precision: share of the samples that lie among the reference.
        recall: share of the reference that lies among the samples.
    """

    precision: float
    recall: float


def precision_recall(x: np.ndarray, y: np.ndarray, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of samples `[N, D]` against a reference `[M, D]`.

    A feature lies among a set if it is within the distance of any member's k-th nearest neighbour from that member.

    Raises ValueError for features of different dimensions, and for no more than k of them.
    """
    precision = _covered(x, y, _squared_radii(y, k)).mean()
    recall = _covered(y, x, _squared_radii(x, k)).mean()
    return PrecisionRecall(float(precision), float(recall))


def nearest(x: np.ndarray, y: np.ndarray, k: int = 1, *, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of y `[M, D]` to each of x `[N, D]`.

    Args:
        same: x is y, and an image is no neighbour of itself; its copies are.

    Returns:
        Euclidean distances float64 `[N, k]`, nearest first, and indices int64 `[N, k]` into y. Of equally near ones
        the first comes first.

    Raises ValueError for features of different dimensions, and for a k beyond their number.
    """
    squared, indices = _nearest(x, y, k, same)
    return np.sqrt(squared), indices


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Float64 `[N]`: the distance to the k-th nearest other feature."""
    return _nearest(features, features, k, same=True)[0][:, -1]


def _nearest(x: np.ndarray, y: np.ndarray, k: int, same: bool) -> tuple[np.ndarray, np.ndarray]:
    _check(x, y)
    most = len(y) - 1 if same else len(y)
    if not 1 <= k <= most:
        raise ValueError(f"{k} nearest neighbours among {len(y)} images: there are {most} at most")
    found = [_nearest_of_rows(start, rows, y, k, same) for start, rows in _blocks(x, ROWS)]
    return np.concatenate([squared for squared, _ in found]), np.concatenate([indices for _, indices in found])


def _nearest_of_rows(first: int, rows: np.ndarray, y: np.ndarray, k: int, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and indices, `[B, k]`, of `rows`, of which the first is image `first`."""
    squared = np.full((len(rows), k), np.inf)
    indices = np.full((len(rows), k), len(y), np.int64)
    for start, columns in _blocks(y, COLUMNS):
        about, doubt = _about(rows, columns)
        if same:
            own = np.arange(len(rows)) + first - start
            inside = (own >= 0) & (own < len(columns))
            about[np.flatnonzero(inside), own[inside]] = np.inf
        limit = squared[:, -1]
        if k < len(columns) and np.isinf(limit).any():
            limit = np.minimum(limit, np.partition(about, k - 1, axis=1)[:, k - 1] + doubt)
        row, column = np.nonzero((about <= (limit + doubt)[:, None]) & np.isfinite(about))
        squared, indices = _joined(squared, indices, row, start + column, _exact(rows, columns, row, column))
    return squared, indices


def _joined(
    squared: np.ndarray, indices: np.ndarray, row: np.ndarray, index: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each row, out of those known, `[B, k]`, and the candidates (row, index, squared distance)."""
    count, k = squared.shape
    row = np.concatenate([np.repeat(np.arange(count), k), row])
    index = np.concatenate([indices.ravel(), index])
    value = np.concatenate([squared.ravel(), value])
    order = np.lexsort((index, value, row))
    starts = np.searchsorted(row[order], np.arange(count))
    best = order[starts[:, None] + np.arange(k)]
    return value[best], index[best]


def _covered(x: np.ndarray, y: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
    """bool `[N]`: whether each of x is within its radius of any of y."""
    _check(x, y)
    found = []
    for _, rows in _blocks(x, ROWS):
        inside = np.zeros(len(rows), bool)
        for start, columns in _blocks(y, COLUMNS):
            about, doubt = _about(rows, columns)
            above = about - squared_radii[start : start + len(columns)]
            inside |= (above < -doubt[:, None]).any(axis=1)
            row, column = np.nonzero((np.abs(above) <= doubt[:, None]) & ~inside[:, None])
            within = _exact(rows, columns, row, column) <= squared_radii[start + column]
            inside[row[within]] = True
        found.append(inside)
    return np.concatenate(found)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise ValueError(f"features of shapes {list(x.shape)} and {list(y.shape)} cannot be compared")


def _blocks(features: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first index of each block, and its features as float64 `[B, D]`. Raises ValueError for one not finite."""
    for start in range(0, len(features), size):
        block = np.asarray(features[start : start + size], np.float64)
        if not np.isfinite(block).all():
            raise ValueError(f"features of images {start} to {start + len(block) - 1} are not all finite")
        yield start, block


def _about(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances `[B, C]` by a matrix product, and for each row `[B]` how far off they and the exact may be."""
    of_rows = np.einsum("ij,ij->i", rows, rows)
    of_columns = np.einsum("ij,ij->i", columns, columns)
    about = rows @ columns.T
    about *= -2
    about += of_rows[:, None]
    about += of_columns
    # Sums of D products are off by D eps of the sum of their magnitudes at most (Higham 2002, eq. 3.5).
    doubt = 4 * (rows.shape[1] + 4) * _EPS * (of_rows + of_columns.max())
    return about, doubt


def _exact(rows: np.ndarray, columns: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Squared distances `[P]` of the pairs of `row` and `column`, int64 `[P]`: sums of squared differences."""
    squared = np.empty(len(row))
    pairs = max(1, _EXACT_VALUES // rows.shape[1])
    for start in range(0, len(row), pairs):
        part = slice(start, start + pairs)
        squared[part] = np.square(rows[row[part]] - columns[column[part]]).sum(axis=1)
    return squared
