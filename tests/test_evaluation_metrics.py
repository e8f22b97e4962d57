"""Figures of each class: those of its samples alone."""

import numpy as np
import pytest

from ddpm_cli.evaluation.frechet import fd_inf, frechet_distance
from ddpm_cli.evaluation.metrics import Comparison, Side, measure
from ddpm_cli.evaluation.statistics import FeatureSums


@pytest.fixture
def comparison(rng: np.random.Generator) -> Comparison:
    """Two classes, of which one's samples are copies of training images, of either class."""
    reference = rng.normal(size=(200, 4)).astype(np.float32)
    samples = rng.normal(size=(120, 4)).astype(np.float32)
    labels = np.arange(120) % 2
    samples[labels == 1] = reference[:60]
    names = ("fresh", "copied")
    sides = Side(features=samples, labels=labels), Side(features=reference, labels=np.arange(200) // 100)
    return Comparison(samples=sides[0], reference=sides[1], seed=0, class_names=names)


def of_classes(comparison: Comparison, metric: str) -> dict[str, float]:
    found = measure(comparison, [metric], per_class=True)
    return {figure.of_class: figure.value for figure in found if figure.of_class is not None}


def test_a_copy_is_one_whatever_the_label_of_what_was_copied(comparison: Comparison):
    assert comparison.reference.labels is not None
    assert set(comparison.reference.labels[:60]) == {0}, "the copied ones are of the other class"
    shares = of_classes(comparison, "memorization")
    assert shares["copied"] == 1
    assert shares["fresh"] < 0.1


@pytest.mark.parametrize("metric", ["fd", "fd_inf"])
def test_a_class_is_compared_with_its_own_kind(metric: str, comparison: Comparison):
    found = of_classes(comparison, metric)
    for number, name in enumerate(comparison.class_names):
        samples, reference = (side.of_class(number).features for side in (comparison.samples, comparison.reference))
        assert samples is not None
        assert reference is not None
        theirs = FeatureSums.of(reference).statistics()
        ours = FeatureSums.of(samples).statistics()
        expected = frechet_distance(ours, theirs) if metric == "fd" else fd_inf(samples, theirs, seed=0).value
        assert found[name] == pytest.approx(expected, rel=1e-9)


def test_what_takes_more_images_than_a_class_has_is_left_out(comparison: Comparison):
    labels = np.where(np.arange(120) < 100, 0, 1)
    few = Comparison(
        samples=Side(features=comparison.samples.features, labels=labels),
        reference=comparison.reference,
        seed=0,
        class_names=comparison.class_names,
    )
    assert list(of_classes(few, "fd")) == ["fresh", "copied"]
    assert list(of_classes(few, "fd_inf")) == ["fresh"]
