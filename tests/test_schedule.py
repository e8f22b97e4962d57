"""The schedules against diffusers, closed forms and the limits of float32."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_cli.diffusion.schedule import NoiseSchedule, cosine, linear

SCHEDULES = [linear(), cosine(), linear(10), cosine(10), linear(1), cosine(1)]
IDS = ["linear", "cosine", "linear-10", "cosine-10", "linear-1", "cosine-1"]


@pytest.fixture(params=SCHEDULES, ids=IDS)
def schedule(request) -> NoiseSchedule:
    return request.param


def test_linear_is_diffusers_linear():
    theirs = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    torch.testing.assert_close(linear().betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(linear().alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-8)


def test_cosine_is_diffusers_cosine_with_improved_ddpms_clamp():
    theirs = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    ours = cosine(1000, beta_min=0.0, beta_max=0.999)
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-8)


def test_cosine_follows_its_formula_where_nothing_is_clamped():
    t = torch.arange(1, 999, dtype=torch.float64)

    def f(u: torch.Tensor) -> torch.Tensor:
        return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = f((t + 1) / 1000) / f(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(
        cosine(beta_min=0.0, beta_max=0.9999).alphas_cumprod[1:999], expected, rtol=1e-9, atol=0.0
    )


def test_cosine_clamps_to_the_bounds_it_is_given():
    betas = cosine(beta_min=1e-3, beta_max=0.5).betas
    assert betas.min().item() == pytest.approx(1e-3)
    assert betas.max().item() == pytest.approx(0.5)


def test_tables_satisfy_their_definitions(schedule: NoiseSchedule):
    """Each table again from betas alone, by the textbook's product in float64."""
    betas, alphas = schedule.betas, 1 - schedule.betas
    alpha_bar = torch.cumprod(alphas, 0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    expected = {
        "alphas": alphas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "sqrt_recip_alphas": alphas.rsqrt(),
        "posterior_variance": betas * (1 - previous) / (1 - alpha_bar),
        "log_snr": (alpha_bar / (1 - alpha_bar)).log(),
    }
    for name, table in expected.items():
        assert getattr(schedule, name).shape == (schedule.timesteps,), name
        torch.testing.assert_close(getattr(schedule, name), table, rtol=1e-9, atol=1e-12, msg=name)


def test_tables_are_finite_and_noise_grows(schedule: NoiseSchedule):
    for name in ("betas", "alphas", "sqrt_recip_alphas", "posterior_variance", "log_snr", "log_alpha_bar"):
        assert torch.isfinite(getattr(schedule, name)).all(), name
    assert (torch.diff(schedule.log_snr) < 0).all()
    assert schedule.alphas_cumprod_prev[0] == 1
    assert schedule.posterior_variance[0] == 0


def test_betas_survive_the_log_domain():
    betas = torch.tensor([1e-12, 1e-5, 0.5, 0.999999], dtype=torch.float64)
    torch.testing.assert_close(NoiseSchedule(betas).betas, betas, rtol=1e-4, atol=0.0)


def test_get_broadcasts_in_float32_also_under_autocast():
    schedule = linear()
    t = torch.tensor([0, 500, 999])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = schedule.get(schedule.sqrt_one_minus_alphas_cumprod, t, torch.Size([3, 1, 8, 8]))
        _, sigma = schedule.alpha_sigma(t, torch.Size([3, 1, 8, 8]))
    assert values.shape == (3, 1, 1, 1)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[0].item(), math.sqrt(1e-4), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(sigma, values)


@pytest.mark.parametrize("t", [-1, 1000])
def test_get_refuses_steps_that_are_none(t: int):
    with pytest.raises((IndexError, RuntimeError)):
        linear().get(linear().betas, torch.tensor([t]), torch.Size([1, 1, 1, 1]))


def test_posterior_of_one_step_is_eq_7(schedule: NoiseSchedule):
    t = torch.arange(schedule.timesteps)
    found = schedule.posterior(t, t - 1, torch.Size([len(t), 1, 1, 1]))
    alpha_bar, previous, betas = schedule.alphas_cumprod, schedule.alphas_cumprod_prev, schedule.betas
    x_0 = previous.sqrt() * betas / (1 - alpha_bar)
    x_t = schedule.alphas.sqrt() * (1 - previous) / (1 - alpha_bar)
    torch.testing.assert_close(found.x_0_factor.flatten(), x_0.float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.x_t_factor.flatten(), x_t.float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.variance.flatten(), schedule.posterior_variance.float(), rtol=1e-5, atol=1e-9)


def test_posterior_of_a_jump_is_bayes_rule():
    """q(x_s | x_t, x_0) by the product of the two Gaussians q(x_s | x_0) and q(x_t | x_s), for distant s and t."""
    schedule = cosine()
    for t, s in [(999, 500), (700, 20), (3, 0), (999, 0)]:
        alpha_bar_t, alpha_bar_s = schedule.alphas_cumprod[t], schedule.alphas_cumprod[s]
        ratio = alpha_bar_t / alpha_bar_s
        precision = 1 / (1 - alpha_bar_s) + ratio / (1 - ratio)
        found = schedule.posterior(torch.tensor([t]), torch.tensor([s]), torch.Size([1, 1, 1, 1]))
        expected = (alpha_bar_s.sqrt() / (1 - alpha_bar_s), ratio.sqrt() / (1 - ratio), torch.ones(()))
        for value, numerator in zip(found, expected, strict=True):
            torch.testing.assert_close(value.flatten()[0], (numerator / precision).float(), rtol=1e-5, atol=1e-8)


def test_posterior_at_clean_data_is_x_0():
    found = linear().posterior(torch.tensor([0, 400]), torch.tensor([-1, -1]), torch.Size([2, 1, 1, 1]))
    assert found.x_0_factor.flatten().tolist() == [1, 1]
    assert found.x_t_factor.flatten().tolist() == [0, 0]
    assert found.variance.flatten().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: linear(0), "timesteps must be at least 1, got 0"),
        (lambda: cosine(-3), "timesteps must be at least 1, got -3"),
        (lambda: linear(beta_end=1.0), r"beta_end must lie in \(0, 1\), got 1"),
        (lambda: linear(beta_start=0.0), r"beta_start must lie in \(0, 1\), got 0"),
        (lambda: cosine(beta_max=1.0), "beta_max 1"),
        (lambda: cosine(s=-1.0), "s must not be negative"),
        (lambda: NoiseSchedule(torch.tensor([0.1, float("nan")])), r"every beta must lie in \(0, 1\), got nan"),
        (lambda: NoiseSchedule(torch.tensor([])), "at least one"),
    ],
)
def test_impossible_schedules_are_refused(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()
