"""Figures computed from the features of samples and of a reference, for the `metrics=[...]` of features."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.eval_options import PER_CLASS
from ddpm_cli.evaluation.frechet import fd_inf, frechet_distance, rank_remark
from ddpm_cli.evaluation.inception_score import inception_score
from ddpm_cli.evaluation.kernel import kernel_distance
from ddpm_cli.evaluation.memorization import RATIO, memorization
from ddpm_cli.evaluation.neighbours import precision_recall
from ddpm_cli.evaluation.record import WHOLE, figure_name
from ddpm_cli.evaluation.statistics import FeatureSums, Statistics

NEIGHBOURS = 3  # k of precision and recall (Kynkaanniemi et al. 2019)
SPLITS = 10  # parts of the Inception score (Salimans et al. 2016)
PAIRS = 40  # of samples and the training images nearest to them, that are shown
FEWEST = 2  # images of a class that have a covariance
FEWEST_EXTRAPOLATED = 30  # samples of a class that fd_inf takes subsets of


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number, before it gets its name and fingerprint.

    Args:
        settings: of the metric, that decide what it may be compared with.
        detail: what has been found beside it; kept in the record.
        of_features: whether it is of images; else it is of a model.
        compared: of a model, what decides the images that it has been asked about.
    """

    metric: str
    value: float
    standard_error: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    n: int
    of_class: str | None = None
    detail: dict[str, Any] | None = None
    of_features: bool = True
    compared: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Side:
    """Features of one side of a comparison: samples, or the reference.

    Args:
        features: float32 `[N, D]`, on the disk or in memory; None: only the statistics are known.
        statistics: mean and covariance; None: they are made of the features.
        labels: int64 `[N]` of the images, if there are any.
    """

    features: np.ndarray | None
    known: Statistics | None = None
    labels: np.ndarray | None = None

    @cached_property
    def _halves(self) -> tuple[FeatureSums, FeatureSums]:
        """The sums of every other image each, as labels may be sorted."""
        assert self.features is not None
        return FeatureSums.of(self.features[0::2]), FeatureSums.of(self.features[1::2])

    @cached_property
    def statistics(self) -> Statistics:
        """The statistics of all images."""
        if self.known is not None:
            return self.known
        assert self.features is not None
        if len(self.features) < 2 * FEWEST:
            return FeatureSums.of(np.asarray(self.features)).statistics()
        first, second = self._halves
        whole = FeatureSums.zero(self.features.shape[1])
        whole.merge(first)
        whole.merge(second)
        return whole.statistics()

    def halves(self) -> list[Statistics]:
        """The statistics of both halves; none if there are too few images."""
        if self.features is None or len(self.features) < 2 * FEWEST:
            return []
        return [half.statistics() for half in self._halves]

    def of_class(self, number: int) -> "Side":
        """The part of one class."""
        assert self.features is not None
        assert self.labels is not None
        return Side(features=np.asarray(self.features[np.flatnonzero(self.labels == number)]))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Samples and a reference, and what is needed to compare them.

    Args:
        seed: of the subsets that some metrics draw.
        probabilities: gives the class probabilities of the samples, `[B, classes]` after `[B, classes]`; None: there
            are none.
        class_names: of the labels.
    """

    samples: Side
    reference: Side
    seed: int
    probabilities: Callable[[], Iterable[np.ndarray]] | None = None
    class_names: Sequence[str] = ()


def check(metrics: Sequence[str], *, has_probabilities: bool, statistics_alone: bool) -> None:
    """Raise ConfigError for a metric that these features, or this reference, cannot give."""
    if "inception_score" in metrics and not has_probabilities:
        raise ConfigError("metrics: inception_score needs features=inception, whose classes it measures")
    for name in metrics:
        if statistics_alone and name in ("kd", "precision_recall", "memorization"):
            raise ConfigError(f"metrics: {name} needs the images of a reference; this one has only mu and sigma")


def measure(comparison: Comparison, metrics: Sequence[str], *, per_class: bool) -> Iterator[Measured]:
    """The figures of each metric, as they come; those of all images first."""
    for name in metrics:
        yield from _MEASURES[name](comparison)
    if per_class:
        for number, name in enumerate(comparison.class_names):
            yield from _of_class(comparison, metrics, number, name)


def remarks(comparison: Comparison, figures: Sequence[Measured], features: str) -> Iterator[str]:
    """Remarks that a reader needs before quoting the figures."""
    found = {figure.metric: figure for figure in figures if figure.of_class is None}
    if "fd" not in found:
        return
    fd = found["fd"]
    for side, what in ((comparison.samples, "samples"), (comparison.reference, "reference")):
        remark = rank_remark(side.statistics, what)
        if remark is not None:
            yield remark
    name = figure_name("fd", features=features, n=fd.n)
    if fd.n < WHOLE:
        yield f"{name} is of {fd.n:,} images: compare it only with figures of as many images, never with published ones"
        bias = _bias(comparison, fd.value, found)
        if bias is not None:
            yield f"so few make it too large by about {bias:.2g} ({_HOW_BIAS[('fd_inf' in found)]})"


_HOW_BIAS = {True: "its distance from fd_inf", False: "two halves of the samples are as much further away"}


def _bias(comparison: Comparison, value: float, found: dict[str, Measured]) -> float | None:
    """The bias of a Frechet distance against that of infinitely many samples, of order 1/N; None if unknown."""
    statistics = comparison.samples.statistics
    if statistics.most_rank < statistics.dimensions:
        return None  # it is not of that order yet
    if "fd_inf" in found:
        bias = value - found["fd_inf"].value
    else:
        halves = comparison.samples.halves()
        if not halves:
            return None
        bias = float(np.mean([frechet_distance(half, comparison.reference.statistics) for half in halves])) - value
    return bias if bias > 0 else None


def _of_class(comparison: Comparison, metrics: Sequence[str], number: int, name: str) -> Iterator[Measured]:
    samples, reference = (side.of_class(number) for side in (comparison.samples, comparison.reference))
    assert samples.features is not None
    assert reference.features is not None
    part = Comparison(samples=samples, reference=reference, seed=comparison.seed)
    few = min(len(samples.features), len(reference.features))
    for metric in metrics:
        if metric not in PER_CLASS or few < (FEWEST_EXTRAPOLATED if metric == "fd_inf" else NEIGHBOURS + 1):
            continue
        # Whose copy a sample is, is asked of all training images: a label does not make it less of one.
        of = replace(part, reference=comparison.reference) if metric == "memorization" else part
        for measured in _MEASURES[metric](of):
            yield replace(measured, of_class=name)


def _fd(comparison: Comparison) -> Iterator[Measured]:
    value = frechet_distance(comparison.samples.statistics, comparison.reference.statistics)
    yield Measured(metric="fd", value=value, n=_count(comparison))


def _fd_inf(comparison: Comparison) -> Iterator[Measured]:
    assert comparison.samples.features is not None
    found = fd_inf(comparison.samples.features, comparison.reference.statistics, seed=comparison.seed)
    yield Measured(
        metric="fd_inf",
        value=found.value,
        standard_error=found.standard_error,
        settings={"points": len(found.sizes)},
        n=_count(comparison),
        detail={"sizes": list(found.sizes), "distances": list(found.distances)},
    )


def _kd(comparison: Comparison) -> Iterator[Measured]:
    found = kernel_distance(*_both(comparison), seed=comparison.seed)
    yield Measured(
        metric="kd",
        value=found.value,
        standard_error=found.standard_error,
        settings={"subset_size": found.subset_size, "subsets": found.subsets},
        n=_count(comparison),
    )


def _precision_recall(comparison: Comparison) -> Iterator[Measured]:
    found = precision_recall(*_both(comparison), k=NEIGHBOURS)
    for metric, value in (("precision", found.precision), ("recall", found.recall)):
        yield Measured(metric=metric, value=value, settings={"k": NEIGHBOURS}, n=_count(comparison))


def _inception_score(comparison: Comparison) -> Iterator[Measured]:
    assert comparison.probabilities is not None
    batches, count = comparison.probabilities(), _count(comparison)
    value, deviation = inception_score(batches, count, seed=comparison.seed, splits=SPLITS)
    error = deviation / math.sqrt(SPLITS)
    detail = {"standard_deviation": deviation}  # what papers write behind it
    yield Measured(
        metric="inception_score",
        value=value,
        standard_error=error,
        settings={"splits": SPLITS},
        n=count,
        detail=detail,
    )


def _memorization(comparison: Comparison) -> Iterator[Measured]:
    found = memorization(*_both(comparison))
    nearest = [
        {"sample": sample, "training": training, "ratio": float(found.ratio[sample])}
        for sample, training in found.most_copied(PAIRS)
    ]
    yield Measured(
        metric="memorization",
        value=found.share,
        standard_error=found.standard_error,
        settings={"ratio": RATIO},
        n=_count(comparison),
        detail={"nearest": nearest},
    )


_MEASURES: dict[str, Callable[[Comparison], Iterator[Measured]]] = {
    "fd": _fd,
    "fd_inf": _fd_inf,
    "kd": _kd,
    "precision_recall": _precision_recall,
    "inception_score": _inception_score,
    "memorization": _memorization,
}


def _count(comparison: Comparison) -> int:
    assert comparison.samples.features is not None
    return len(comparison.samples.features)


def _both(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    assert comparison.samples.features is not None
    assert comparison.reference.features is not None
    return comparison.samples.features, comparison.reference.features
