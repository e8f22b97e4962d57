"""Sums of features and the Frechet distance, against closed forms, NumPy and torch-fidelity."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from ddpm_cli.evaluation.frechet import fd_inf, frechet_distance, rank_remark, root
from ddpm_cli.evaluation.statistics import FeatureSums, Statistics


def gaussian(random: np.random.Generator, count: int, dimensions: int, *, rank: int | None = None) -> np.ndarray:
    """float64 `[count, dimensions]` of a covariance of `rank`, and a mean of its own."""
    hidden = dimensions if rank is None else rank
    mixing = random.standard_normal((hidden, dimensions))
    return random.standard_normal((count, hidden)) @ mixing + random.standard_normal(dimensions)


def theirs(a: np.ndarray, b: np.ndarray) -> float:
    told = [fid_features_to_statistics(torch.from_numpy(features)) for features in (a, b)]
    return fid_statistics_to_metric(*told, verbose=False)["frechet_inception_distance"]


def ours(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(FeatureSums.of(a).statistics(), FeatureSums.of(b).statistics())


# Sums ----------------------------------------------------------------------------------------------------------------


def test_sums_of_a_stream_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr("ddpm_cli.evaluation.statistics.CHUNK_BYTES", 8 * 5 * 100)
    features = gaussian(np.random.default_rng(0), 1003, 5).astype(np.float32)
    sums = FeatureSums.zero(5)
    for part in np.split(features, [1, 7, 450, 450 + 256]):
        sums.update(part)
    for counted in (sums.statistics(), FeatureSums.of(features).statistics()):
        assert counted.count == 1003
        np.testing.assert_allclose(counted.mean, features.astype(float).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(counted.covariance, np.cov(features.astype(float), rowvar=False), rtol=1e-12)


def test_merged_sums_of_ranks_are_those_of_one_pass():
    features = gaussian(np.random.default_rng(1), 600, 8)
    whole = FeatureSums.of(features)
    merged = FeatureSums.zero(8)
    for rank in range(3):
        merged.merge(FeatureSums.of(features[rank::3]))
    merged.merge(FeatureSums.zero(8))
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-12, atol=1e-10)


def test_a_large_mean_costs_no_digits():
    """Summed as sum f f^T - N m m^T, these would keep no digit: 1e16 against 1."""
    spread = np.random.default_rng(2).standard_normal((5000, 3))
    sums = FeatureSums.zero(3)
    for part in np.array_split(spread + 1e8, 50):
        sums.update(part)
    np.testing.assert_allclose(sums.statistics().covariance, np.cov(spread, rowvar=False), rtol=1e-6, atol=1e-7)


def test_a_memmap_is_read_as_an_array_is(tmp_path):
    features = gaussian(np.random.default_rng(3), 100, 4).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    np.testing.assert_array_equal(FeatureSums.of(mapped).scatter, FeatureSums.of(features).scatter)


def test_features_that_cannot_be_summed_are_refused():
    features = np.ones((7, 3))
    features[5, 1] = np.nan
    sums = FeatureSums.of(np.ones((10, 3)))
    with pytest.raises(ValueError, match="features of image 15 are not finite"):
        sums.update(features)
    with pytest.raises(ValueError, match="4 dimensions, those before 3"):
        sums.update(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"\[N, D\] of at least one image, got \[0, 3\]"):
        sums.update(np.ones((0, 3)))
    with pytest.raises(ValueError, match="1 images have no covariance"):
        FeatureSums.of(np.ones((1, 3))).statistics()


# Distance ------------------------------------------------------------------------------------------------------------


def test_gaussians_of_one_frame_have_a_closed_form():
    """Covariances with the same axes: the sum of (sqrt a - sqrt b)^2, and the distance of the means."""
    random = np.random.default_rng(4)
    frame, _ = np.linalg.qr(random.standard_normal((6, 6)))
    a, b = random.uniform(0, 2, (2, 6))
    a[:2], b[1:4] = 0, 0  # singular both, in part where the other is not
    mean = random.standard_normal(6)
    one = Statistics(None, np.zeros(6), frame * a @ frame.T)
    other = Statistics(None, mean, frame * b @ frame.T)
    expected = mean @ mean + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("counts", "ranks"),
    [((500, 400), (32, 32)), ((500, 20), (32, 32)), ((12, 20), (32, 32)), ((500, 400), (5, 32)), ((500, 400), (5, 9))],
    ids=["full", "few samples", "few of both", "one singular", "both singular"],
)
def test_the_distance_is_that_of_torch_fidelity(counts, ranks):
    random = np.random.default_rng(5)
    a, b = (gaussian(random, count, 32, rank=rank) for count, rank in zip(counts, ranks, strict=True))
    assert ours(a, b) == pytest.approx(theirs(a, b), rel=1e-6)
    assert ours(b, a) == pytest.approx(ours(a, b), rel=1e-9)


@pytest.mark.parametrize("counts", [(300, 400), (40, 70), (40, 300)])
def test_the_distance_is_that_of_the_features_singular_values(counts):
    """tr (C_a C_b)^1/2 is the sum of the singular values of A B^T, of centred features; no covariance has a part in it.

    The features' scales go over four decades, as those of networks do.
    """
    random = np.random.default_rng(11)
    a, b = (gaussian(random, count, 128) * np.logspace(0, -4, 128) for count in counts)
    apart = a.mean(axis=0) - b.mean(axis=0)
    a_centred, b_centred = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b))
    trace = np.linalg.svd(a_centred @ b_centred.T, compute_uv=False).sum()
    expected = apart @ apart + np.square(a_centred).sum() + np.square(b_centred).sum() - 2 * trace
    assert ours(a, b) == pytest.approx(expected, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself():
    features = gaussian(np.random.default_rng(6), 40, 64)  # rank 39: rounding must not be taken for rank
    assert ours(features, features) == pytest.approx(0, abs=1e-9 * np.square(features).sum() / 40)


@pytest.mark.parametrize(("rank", "constant"), [(9, []), (3, []), (9, [0, 4]), (2, [8]), (9, range(9))])
def test_a_root_is_one(rank: int, constant):
    features = gaussian(np.random.default_rng(7), 50, 9, rank=rank)
    features[:, constant] = 1
    covariance = np.cov(features, rowvar=False)
    factor = root(covariance)
    assert factor.shape == (9, min(rank, 9 - len(constant)))
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-12)


def test_dimensions_must_agree_and_a_low_rank_is_said():
    few, enough = (FeatureSums.of(np.random.default_rng(8).standard_normal((count, 10))) for count in (8, 11))
    assert rank_remark(few.statistics(), "samples") == (
        "samples: 8 images for features of 10 dimensions: the covariance has rank 7 at most, "
        "and the distance is far too large"
    )
    assert rank_remark(enough.statistics(), "samples") is None
    with pytest.raises(ValueError, match="of 10 and of 3 dimensions"):
        frechet_distance(few.statistics(), Statistics(None, np.zeros(3), np.eye(3)))


# Extrapolation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "dimensions"), [(1000, 32), (300, 64)])
def test_the_extrapolated_distance_is_nearer_to_the_truth(count: int, dimensions: int):
    random = np.random.default_rng(9)
    scales = np.linspace(0.3, 1.2, dimensions)
    reference = Statistics(None, np.zeros(dimensions), np.eye(dimensions))
    truth = 0.01 * dimensions + np.square(scales - 1).sum()
    off, off_at_infinity = [], []
    for seed in range(5):
        samples = (random.standard_normal((count, dimensions)) * scales + 0.1).astype(np.float32)
        off.append(frechet_distance(FeatureSums.of(samples).statistics(), reference) - truth)
        off_at_infinity.append(fd_inf(samples, reference, seed=seed).value - truth)
    assert min(off) > 0  # too large, as finite sets are
    assert np.abs(off_at_infinity).max() < min(off)
    assert np.abs(np.mean(off_at_infinity)) < 0.2 * np.mean(off)


def test_the_extrapolation_says_what_it_stands_on():
    random = np.random.default_rng(10)
    samples = random.standard_normal((400, 8))
    reference = Statistics(None, np.full(8, 0.5), np.eye(8))
    found = fd_inf(samples, reference, seed=0)
    assert found == fd_inf(samples, reference, seed=0)
    assert (len(found.sizes), found.sizes[0], found.sizes[-1]) == (15, 40, 400)
    assert found.distances[-1] == pytest.approx(frechet_distance(FeatureSums.of(samples).statistics(), reference))
    slope, value = np.polyfit(1 / np.array(found.sizes), found.distances, 1)
    assert found.value == pytest.approx(value)
    values = [fd_inf(samples, reference, seed=seed).value for seed in range(12)]
    errors = [fd_inf(samples, reference, seed=seed).standard_error for seed in range(12)]
    assert 0.5 < np.mean(errors) / np.std(values, ddof=1) < 2
    assert slope > 0
    for few in (8, 2):
        with pytest.raises(ValueError, match="fd_inf: 15 sizes from"):
            fd_inf(samples[:few], reference, seed=0)
