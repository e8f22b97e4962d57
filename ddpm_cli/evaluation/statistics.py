"""Mean and covariance of features, summed while they stream by."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

CHUNK_BYTES = 32 * 2**20  # of features turned to float64 at a time


def chunks(features: np.ndarray) -> Iterator[np.ndarray]:
    """Features `[N, D]`, in memory or not, as float64 `[B, D]` after `[B, D]`. Raises ValueError for other shapes."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be [N, D] of at least one image, got {list(features.shape)}")
    rows = max(1, CHUNK_BYTES // (8 * features.shape[1]))
    for start in range(0, len(features), rows):
        yield np.asarray(features[start : start + rows], np.float64)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the Frechet distance knows of features.

    Attributes:
        count: of how many images; None where that is not known.
        mean: float64 `[D]`.
        covariance: float64 `[D, D]`, divided by count - 1.
    """

    count: int | None
    mean: np.ndarray
    covariance: np.ndarray

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @property
    def most_rank(self) -> int:
        """The rank that the covariance can have at most: N images span N - 1 dimensions around their mean."""
        return self.dimensions if self.count is None else min(self.count - 1, self.dimensions)


@dataclass(eq=False)
class FeatureSums:
    """Count, mean and sum of the outer products around the mean, of features that come in batches.

    Batches are joined by the pairwise update of Chan, Golub & LeVeque 1983 (eq. 2.1), which loses nothing where the
    mean is large beside the spread. Sums of parts, as of several ranks, `merge` into those of the whole.

    Attributes:
        mean: float64 `[D]`.
        scatter: float64 `[D, D]`, sum of (f - mean)(f - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def zero(cls, dimensions: int) -> Self:
        """Of no features yet."""
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Of features `[N, D]`."""
        sums = cls.zero(features.shape[-1])
        sums.update(features)
        return sums

    def update(self, features: np.ndarray) -> None:
        """Add features `[B, D]`. Raises ValueError for another shape, and where one is not finite."""
        for batch in chunks(features):
            if batch.shape[1] != len(self.mean):
                raise ValueError(f"features have {batch.shape[1]} dimensions, those before {len(self.mean)}")
            finite = np.isfinite(batch).all(axis=1)
            if not finite.all():
                raise ValueError(f"features of image {self.count + int(np.argmin(finite))} are not finite")
            mean = batch.mean(axis=0)
            centred = batch - mean
            self.merge(FeatureSums(len(batch), mean, centred.T @ centred))

    def merge(self, other: "FeatureSums") -> None:
        """Add what `other` has summed."""
        if other.count == 0:
            return
        count = self.count + other.count
        apart = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(apart, apart * (self.count * other.count / count))
        self.mean = self.mean + apart * (other.count / count)
        self.count = count

    def statistics(self) -> Statistics:
        """Raises ValueError for fewer than two images, which have no covariance."""
        if self.count < 2:
            raise ValueError(f"{self.count} images have no covariance: at least 2 are needed")
        covariance = self.scatter / (self.count - 1)
        return Statistics(self.count, self.mean.copy(), (covariance + covariance.T) / 2)
