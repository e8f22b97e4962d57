"""Samples that are copies of training images, recognised by their distance to the nearest one."""

import hashlib
from dataclasses import dataclass

import numpy as np

from ddpm_cli.evaluation.neighbours import ROWS, nearest
from ddpm_cli.evaluation.statistics import chunks

RATIO = 1 / 3


@dataclass(frozen=True, eq=False)
class Memorization:
    """The distances of samples to their nearest training images.

    Attributes:
        share: of the samples that are copies.
        standard_error: of the share, from the number of samples.
        nearest_index: int64 `[N]`, the training image that is nearest to each sample.
        distance: float64 `[N]`, how far that is.
        spacing: float64 `[N]`, how far that training image is from the nearest other one.
    """

    share: float
    standard_error: float
    nearest_index: np.ndarray
    distance: np.ndarray
    spacing: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """Float64 `[N]`: distance over spacing; a copy has one below a third."""
        return self.distance / self.spacing

    def most_copied(self, count: int) -> list[tuple[int, int]]:
        """(sample, training image) of the `count` nearest pairs, by ratio, nearest first."""
        order = np.argsort(self.ratio, kind="stable")[:count]
        return [(int(sample), int(self.nearest_index[sample])) for sample in order]


def memorization(samples: np.ndarray, training: np.ndarray) -> Memorization:
    """The share of samples that are copies, of features `[N, D]` against those of the training images `[M, D]`.

    A sample is a copy if it is nearer to its nearest training image than a third of what that one is from the nearest
    other training image. A distance alone tells no copy, as images lie dense in one place and sparse in another; the
    distance to the neighbour's own neighbour is the measure of the place. Of a model that copies nothing about half of
    the samples are nearer than the whole of it, but in d dimensions only one in 3^d is nearer than a third. That factor
    is of Yoon et al. 2023 ("Diffusion probabilistic models generalize when they fail to memorize"), who divide by the
    distance to the second neighbour; for a copy the two are the same. Training images that are equal count as one, or
    the copies of what is there twice, which are the likeliest (Carlini et al. 2023), would have nothing to be compared
    with.

    Raises ValueError for features of different dimensions, and for fewer than 2 different training images.
    """
    kept = _first_of_equals(training)
    if len(kept) < 2:
        raise ValueError(f"memorization: needs 2 different training images; of {len(training)}, {len(kept)} differ")
    different = training if len(kept) == len(training) else training[kept]
    distance, index = nearest(samples, different)
    distance, index = distance[:, 0], index[:, 0]
    asked, of_sample = np.unique(index, return_inverse=True)
    spacing = _spacing(different, asked)[of_sample]
    share = float((distance < RATIO * spacing).mean())
    error = float(np.sqrt(share * (1 - share) / len(samples)))
    return Memorization(share, error, kept[index], distance, spacing)


def _spacing(features: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Float64: the distances of the given features among `[M, D]` to the nearest other one."""
    parts = (features[asked[start : start + ROWS]] for start in range(0, len(asked), ROWS))
    # The nearest is the image itself, as no two are equal.
    return np.concatenate([nearest(part, features, 2)[0][:, 1] for part in parts])


def _first_of_equals(features: np.ndarray) -> np.ndarray:
    """int64: which features are the first of their value."""
    seen: dict[bytes, int] = {}
    i = 0
    for block in chunks(features):
        for row in block + 0.0:  # -0.0 is 0.0
            seen.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), i)
            i += 1
    return np.fromiter(seen.values(), np.int64)
