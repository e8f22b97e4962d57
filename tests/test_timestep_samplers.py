"""Draws of timesteps: their distribution, their weights, what they remember."""

import pytest
import torch

from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.training.timestep_samplers import LogNormal, LossSecondMoment, Stratified, Uniform

T = 50


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", [Uniform, Stratified])
def test_every_timestep_is_as_likely(make):
    source, draws = generator(), make(linear(T))
    t = torch.cat([draws.draw(20, source).t for _ in range(2000)])
    counts = torch.bincount(t, minlength=T)
    assert len(counts) == T
    expected = len(t) / T
    assert ((counts - expected).abs() < 5 * expected**0.5).all()
    assert (draws.draw(8, source).weights == 1).all()


@pytest.mark.parametrize("size", [1, 7, 50, 64])
def test_stratified_batches_are_spread_evenly(size: int):
    """In every one of B equal stretches of {0 .. T-1}, up to where a batch begins, lies one t."""
    for seed in range(20):
        t = Stratified(linear(1000)).draw(size, generator(seed)).t.sort().values
        gaps = torch.diff(torch.cat([t, t[:1] + 1000]))
        assert (gaps - 1000 / size).abs().max() <= 1


def test_stratified_losses_vary_less():
    def spread(draws: Uniform) -> float:
        source = generator()
        means = torch.stack([(draws.draw(16, source).t.float() / T).square().mean() for _ in range(500)])
        return means.std().item()

    # The loss rises from 0 to 1 and falls back where the stretch wraps round: what is left is u's place in one stratum.
    assert spread(Stratified(linear(T))) == pytest.approx(1 / 16 / 12**0.5, rel=0.1)
    assert spread(Uniform(linear(T))) == pytest.approx((4 / 45 / 16) ** 0.5, rel=0.1)


def loss_of(t: torch.Tensor) -> torch.Tensor:
    return (1 + t.float()) ** 2


def warmed_up(**options) -> LossSecondMoment:
    draws, source = LossSecondMoment(linear(T), **options), generator()
    while (draws.seen < draws.losses.shape[1]).any():
        drawn = draws.draw(64, source)
        assert torch.allclose(drawn.weights, torch.ones(64)), "uniform until all is known"
        draws.update(drawn.t, loss_of(drawn.t))
    return draws


def test_loss_aware_draws_by_the_root_mean_square_of_the_losses():
    draws = warmed_up(history=3, uniform=0.01)
    size = loss_of(torch.arange(T)).double()
    expected = 0.99 * size / size.sum() + 0.01 / T
    torch.testing.assert_close(draws.probabilities(), expected)
    t = draws.draw(200_000, generator(1)).t
    counts = torch.bincount(t, minlength=T).double()
    assert ((counts - 200_000 * expected).abs() < 5 * (200_000 * expected).sqrt() + 1).all()


def test_loss_aware_weights_leave_the_mean_loss_where_it_is():
    draws = warmed_up(history=3)
    t, weights = draws.draw(50_000, generator(2))
    assert (weights * loss_of(t)).mean().item() == pytest.approx(loss_of(torch.arange(T)).mean().item(), rel=0.01)


def test_loss_aware_forgets_all_but_the_last_losses():
    draws = LossSecondMoment(linear(2), history=2)
    for loss in (100.0, 1.0, 3.0):
        draws.update(torch.tensor([0, 1]), torch.tensor([loss, 1.0]))
    size = torch.tensor([5.0**0.5, 1.0], dtype=torch.float64)  # of 1 and 3, and of 1 and 1
    torch.testing.assert_close(draws.probabilities(), 0.999 * size / size.sum() + 0.0005)


def test_loss_aware_goes_on_from_its_state():
    draws, other = warmed_up(), LossSecondMoment(linear(T))
    other.load_state_dict({name: tensor.clone() for name, tensor in draws.state_dict().items()})
    for one, two in ((draws.draw(9, generator(3)), other.draw(9, generator(3))),):
        assert torch.equal(one.t, two.t)
        assert torch.equal(one.weights, two.weights)
    draws.update(torch.tensor([4]), torch.tensor([2.0]))
    assert other.seen[4] == draws.seen[4] - 1, "not the same tensors"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda state: state | {"losses": state["losses"][:-1]}, r"\[49, 10\], not \[50, 10\]"),
        (lambda state: state | {"losses": state["losses"] * float("nan")}, "not finite"),
        (lambda state: state | {"seen": state["seen"] - 1}, "negative"),
    ],
)
def test_a_history_that_cannot_be_is_refused(spoil, says: str):
    with pytest.raises(ValueError, match=says):
        LossSecondMoment(linear(T)).load_state_dict(spoil(LossSecondMoment(linear(T)).state_dict()))


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="history must be at least 1, got 0"):
        LossSecondMoment(linear(T), history=0)
    with pytest.raises(ValueError, match=r"uniform must lie in \(0, 1\], got 0"):
        LossSecondMoment(linear(T), uniform=0.0)


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine to zero"])
def test_log_snr_is_normal(name: str):
    """By its mean and deviation where the schedule goes as far as the distribution; and no t is left out."""
    schedule = linear() if name == "linear" else cosine(zero_terminal_snr="zero" in name)
    draws = LogNormal(schedule, mean=1.0, std=1.5, uniform=1e-6)
    p, log_snr = draws.p.double(), schedule.log_snr.clamp(min=-30)
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    mean = (p * log_snr).sum().item()
    assert mean == pytest.approx(1.0, abs=0.02)
    assert (p * (log_snr - mean).square()).sum().sqrt().item() == pytest.approx(1.5, abs=0.02)
    assert (LogNormal(schedule).p >= 0.0999 / schedule.timesteps).all()


def test_draws_are_as_likely_as_they_are_said_to_be():
    source, draws = generator(), LogNormal(linear(T))
    drawn = [draws.draw(20, source) for _ in range(2000)]
    counts = torch.bincount(torch.cat([one.t for one in drawn]), minlength=T)
    expected = draws.p * counts.sum()
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()
    assert all((one.weights == 1).all() for one in drawn)


def test_edm_s_own_numbers_are_log_normal_noise_levels():
    """ln(sigma / alpha) has P_mean -1.2 and P_std 1.2."""
    schedule = linear()
    p, log_s = LogNormal(schedule, uniform=1e-6).p.double(), -schedule.log_snr / 2
    mean = (p * log_s).sum().item()
    assert mean == pytest.approx(-1.2, abs=0.02)
    assert (p * (log_s - mean).square()).sum().sqrt().item() == pytest.approx(1.2, abs=0.03)


def test_log_normal_refuses_what_is_no_distribution():
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        LogNormal(linear(T), std=0.0)
    with pytest.raises(ValueError, match=r"uniform must lie in \(0, 1\], got 0"):
        LogNormal(linear(T), uniform=0.0)
