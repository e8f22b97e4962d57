"""The Inception score (Salimans et al. 2016), computed from a stream of class probabilities."""

from collections.abc import Iterable

import numpy as np


def inception_score(batches: Iterable[np.ndarray], count: int, *, seed: int, splits: int = 10) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)) of class probabilities: mean and standard deviation over parts.

    Args:
        batches: `[B, classes]` each, of `count` images together.
        seed: decides which images are in which part: they may come in the order of their classes.

    Raises ValueError for fewer images than parts, for another number of them than `count`, and for rows that are no
    probabilities.
    """
    if not 1 <= splits <= count:
        raise ValueError(f"inception score of {count} images in {splits} parts")
    part_of = np.empty(count, np.int64)
    for i, part in enumerate(np.array_split(np.random.default_rng(seed).permutation(count), splits)):
        part_of[part] = i
    # E KL(p || q) = E sum p log p - sum q log q where q is the mean of p: two sums for each part.
    negative_entropy, seen = np.zeros(splits), 0
    probability: np.ndarray | float = 0.0
    for batch in batches:
        p = np.asarray(batch, np.float64)
        _check(p)
        belongs = part_of[seen : seen + len(p)] == np.arange(splits)[:, None]  # [splits, B]
        if belongs.shape[1] != len(p):
            raise ValueError(f"inception score of {count} images, and class probabilities of more")
        negative_entropy += belongs @ _p_log_p(p).sum(axis=1)
        probability = probability + belongs @ p
        seen += len(p)
    if seen != count:
        raise ValueError(f"inception score of {count} images, and class probabilities of {seen}")
    sizes = np.bincount(part_of)
    marginal = probability / sizes[:, None]
    scores = np.exp(negative_entropy / sizes - _p_log_p(marginal).sum(axis=1))
    return float(np.mean(scores)), float(np.std(scores))


def _check(p: np.ndarray) -> None:
    if p.ndim != 2 or not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
        raise ValueError("inception score: class probabilities must be 0 at least and sum to 1 in each row")


def _p_log_p(p: np.ndarray) -> np.ndarray:
    """0 where p is 0, its limit."""
    return p * np.log(np.where(p > 0, p, 1))
