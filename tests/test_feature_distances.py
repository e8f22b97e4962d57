"""Kernel distance, neighbours, precision and recall, memorization, Inception score: against brute force and peers."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm_cli.evaluation import neighbours
from ddpm_cli.evaluation.inception_score import inception_score
from ddpm_cli.evaluation.kernel import kernel_distance
from ddpm_cli.evaluation.memorization import memorization
from ddpm_cli.evaluation.neighbours import nearest, precision_recall


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that every set here is several blocks of rows and of columns."""
    monkeypatch.setattr(neighbours, "ROWS", 30)
    monkeypatch.setattr(neighbours, "COLUMNS", 47)
    monkeypatch.setattr(neighbours, "_EXACT_VALUES", 64)


def lattice(random: np.random.Generator, count: int) -> np.ndarray:
    """float32 `[count, 3]` of few values: full of ties and copies."""
    return random.integers(0, 4, (count, 3)).astype(np.float32)


def cloud(random: np.random.Generator, count: int, dimensions: int = 5) -> np.ndarray:
    """float32 `[count, dimensions]`, far from 0, where a matrix product rounds away what is near."""
    return (random.standard_normal((count, dimensions)) * 1e-3 + 100).astype(np.float32)


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.square(x[:, None].astype(np.float64) - y[None].astype(np.float64)).sum(axis=2)


SETS = pytest.mark.parametrize("points", [lattice, cloud])

# Neighbours ----------------------------------------------------------------------------------------------------------


@SETS
@pytest.mark.parametrize("k", [1, 4, 60])
def test_neighbours_are_those_of_brute_force(points, k: int):
    random = np.random.default_rng(0)
    x, y = points(random, 100), points(random, 130)
    distances, indices = nearest(x, y, k)
    order = np.argsort(squared(x, y), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(distances, np.sqrt(np.take_along_axis(squared(x, y), order, axis=1)))


@SETS
def test_an_image_is_no_neighbour_of_itself_but_its_copy_is(points):
    random = np.random.default_rng(1)
    x = points(random, 120)
    x[77] = x[3]
    table = squared(x, x)
    np.fill_diagonal(table, np.inf)
    distances, indices = nearest(x, x, 3, same=True)
    order = np.argsort(table, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(distances, np.sqrt(np.take_along_axis(table, order, axis=1)))
    assert distances[77, 0] == distances[3, 0] == 0


def test_neighbours_that_there_are_not_are_refused():
    few = np.ones((3, 2))
    with pytest.raises(ValueError, match="3 nearest neighbours among 3 images: there are 2 at most"):
        nearest(few, few, 3, same=True)
    assert nearest(few, few, 3)[1].tolist() == [[0, 1, 2]] * 3
    with pytest.raises(ValueError, match=r"shapes \[3, 2\] and \[3, 4\]"):
        nearest(few, np.ones((3, 4)))
    few[1, 0] = np.inf
    with pytest.raises(ValueError, match="images 0 to 2 are not all finite"):
        nearest(few, np.ones((3, 2)))


# Precision and recall ------------------------------------------------------------------------------------------------


def brute_precision_recall(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float]:
    """As Kynkaanniemi et al. write it, eq. 1 and 2."""
    shares = []
    for these, those in ((x, y), (y, x)):
        own = squared(those, those)
        np.fill_diagonal(own, np.inf)
        radii = np.sort(own, axis=1)[:, k - 1]
        shares.append(float((squared(these, those) <= radii).any(axis=1).mean()))
    return shares[0], shares[1]


@SETS
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_brute_force(points, k: int):
    random = np.random.default_rng(2)
    y = points(random, 110)
    near = y[:60] + (points(random, 60) - points(random, 60)) / 2  # lattice: half-way points tie with radii
    x = np.concatenate([near, y[5:9], y[5:9], y[:20] + 2]).astype(np.float32)
    found = precision_recall(x, y, k=k)
    assert (found.precision, found.recall) == brute_precision_recall(x, y, k)
    assert 0 < found.precision < 1
    assert found.recall > 0


def test_precision_and_recall_are_those_of_torch_fidelity():
    random = np.random.default_rng(3)
    x, y = random.standard_normal((400, 6)) * 0.7 + 0.2, random.standard_normal((300, 6))
    said = prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
    found = precision_recall(x, y)
    assert (found.precision, found.recall) == pytest.approx((said["precision"], said["recall"]), rel=1e-6)
    assert found.precision > found.recall + 0.1  # the narrower set is precise and incomplete


# Kernel distance -----------------------------------------------------------------------------------------------------


def test_the_kernel_distance_is_that_of_torch_fidelity():
    """Of subsets that are whole sets: which images are in them is then no question of anybody's random numbers."""
    random = np.random.default_rng(4)
    x, y = random.standard_normal((90, 12)) + 0.3, random.standard_normal((90, 12))
    said = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=2, kid_subset_size=90, verbose=False
    )
    found = kernel_distance(x, y, seed=0, subset_size=90, subsets=2)
    assert found.value == pytest.approx(said["kernel_inception_distance_mean"], rel=1e-6)
    assert found.standard_error is None


def test_the_kernel_distance_of_gaussians_has_a_closed_form():
    """One dimension, N(m, s^2) against N(0, 1): E (a b + 1)^3 = 1 + 3 m m' + 3 q q' + c c' by the first moments."""
    random = np.random.default_rng(5)
    mean, scale = 0.4, 1.5

    def moments(m: float, s: float) -> np.ndarray:
        return np.array([1, m, m**2 + s**2, m**3 + 3 * m * s**2])

    apart = moments(mean, scale) - moments(0, 1)
    expected = np.array([1, 3, 3, 1]) @ np.square(apart)
    x, y = random.standard_normal((20_000, 1)) * scale + mean, random.standard_normal((20_000, 1))
    found = kernel_distance(x, y, seed=0, subset_size=200)
    assert found.standard_error is not None
    assert found.value == pytest.approx(expected, abs=4 * found.standard_error)
    assert found.standard_error < 0.2 * expected


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_kernel_distance_is_unbiased_and_knows_its_error(shift: float):
    random = np.random.default_rng(6)
    found = []
    for seed in range(60):
        x, y = random.standard_normal((100, 6)) + shift, random.standard_normal((100, 6))
        found.append(kernel_distance(x, y, seed=seed, subsets=30))
    assert {(one.subset_size, one.subsets) for one in found} == {(50, 30)}
    values = np.array([one.value for one in found])
    truth = of_shifted_gaussians(6, 6 * shift**2)
    spread = values.std(ddof=1)
    assert values.mean() == pytest.approx(truth, abs=4 * spread / 60**0.5)
    errors = [one.standard_error for one in found if one.standard_error is not None]
    assert 0.7 < np.mean(errors) / spread < (1.5 if shift else 2.5)  # of equal sets it falls faster than 1/N


def of_shifted_gaussians(d: int, squared_shift: float) -> float:
    """Of N(m, I) and N(0, I) in d dimensions, |m|^2 given: E (a.b / d + 1)^3 by the moments of independent a and b."""

    def expected(of_a: float, of_b: float, inner: float) -> float:
        """By |m_a|^2, |m_b|^2 and m_a.m_b."""
        second = inner**2 + of_a + of_b + d
        third = inner**3 + 3 * inner * (of_a + of_b + d + 2)
        return 1 + 3 * inner / d + 3 * second / d**2 + third / d**3

    return expected(squared_shift, squared_shift, squared_shift) + expected(0, 0, 0) - 2 * expected(squared_shift, 0, 0)


def test_the_kernel_distance_is_of_its_seed_and_refuses_other_sizes():
    random = np.random.default_rng(7)
    x, y = random.standard_normal((50, 3)), random.standard_normal((70, 3))
    assert kernel_distance(x, y, seed=1) == kernel_distance(x, y, seed=1) != kernel_distance(x, y, seed=2)
    with pytest.raises(ValueError, match="subsets of 60 of 50 images"):
        kernel_distance(x, y, seed=0, subset_size=60)
    with pytest.raises(ValueError, match=r"shapes \[50, 3\] and \[70, 2\]"):
        kernel_distance(x, y[:, :2], seed=0)


# Memorization --------------------------------------------------------------------------------------------------------


def test_planted_copies_are_found_and_no_others():
    random = np.random.default_rng(8)
    # Dense here and sparse there: no one distance would tell copies.
    training = np.concatenate([random.standard_normal((150, 12)), 50 * random.standard_normal((150, 12)) + 400])
    fresh = np.concatenate([random.standard_normal((150, 12)), 50 * random.standard_normal((150, 12)) + 400])
    training[20] = training[160] = training[10]  # there three times
    scale = np.where(np.arange(300) < 150, 1, 50)[:, None]
    planted = np.array([10, 33, 140, 155, 299])
    copies = training[planted] + 0.1 * scale[planted] * random.standard_normal((5, 12))
    copies[1] = training[33]
    samples = np.concatenate([fresh[:100], copies, fresh[100:]])
    found = memorization(samples.astype(np.float32), training.astype(np.float32))
    assert np.flatnonzero(found.ratio < 1 / 3).tolist() == [100, 101, 102, 103, 104]
    assert found.nearest_index[100:105].tolist() == planted.tolist()
    assert found.share == pytest.approx(5 / 305)
    assert found.standard_error == pytest.approx((5 / 305 * 300 / 305 / 305) ** 0.5)
    assert found.most_copied(1) == [(101, 33)]
    assert {pair[0] for pair in found.most_copied(5)} == {100, 101, 102, 103, 104}
    table = np.sqrt(squared(training.astype(np.float32), training.astype(np.float32)))
    table[table == 0] = np.inf
    np.testing.assert_array_equal(found.spacing, table[found.nearest_index].min(axis=1))


def test_fresh_samples_seem_copies_as_seldom_as_said():
    random = np.random.default_rng(9)
    found = memorization(random.uniform(size=(4000, 2)), random.uniform(size=(1000, 2)))
    assert found.share == pytest.approx(3**-2, abs=0.025)
    assert 0.35 < (found.ratio < 1).mean() < 0.65


def test_memorization_of_one_training_image_is_refused():
    with pytest.raises(ValueError, match="of 9, 1 differ"):
        memorization(np.zeros((4, 2)), np.ones((9, 2)))


# Inception score -----------------------------------------------------------------------------------------------------


def test_the_inception_score_is_that_of_torch_fidelity():
    random = np.random.default_rng(10)
    logits = 3 * random.standard_normal((120, 7))
    logits[0] = [0, *[-1e4] * 6]  # certain: probabilities of exactly 0
    order = np.random.default_rng(1).permutation(120)
    parts = np.concatenate([np.sort(part) for part in np.array_split(order, 10)])
    said = isc_features_to_metric(torch.from_numpy(logits[parts]), splits=10, shuffle=False)
    expected = (said["inception_score_mean"], said["inception_score_std"])
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    for batches in ([probabilities], np.split(probabilities, [1, 50, 51])):
        assert inception_score(batches, 120, seed=1) == pytest.approx(expected, rel=1e-6)


def test_the_inception_score_has_its_bounds():
    certain = np.repeat(np.eye(4), 25, axis=0)
    assert inception_score([certain], 100, seed=0, splits=1) == pytest.approx((4, 0))
    alike = np.full((50, 4), 0.25)
    assert inception_score([alike], 50, seed=0) == pytest.approx((1, 0))
    with pytest.raises(ValueError, match="of 9 images in 10 parts"):
        inception_score([alike[:9]], 9, seed=0)
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score([2 * alike], 50, seed=0)
    with pytest.raises(ValueError, match="of 50 images, and class probabilities of 49"):
        inception_score([alike[:49]], 50, seed=0)
    with pytest.raises(ValueError, match="of 50 images, and class probabilities of more"):
        inception_score([alike, alike[:1]], 50, seed=0)
