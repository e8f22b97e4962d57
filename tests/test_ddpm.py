"""The forward process, the loss and the reverse step, against diffusers and against Gaussian data's closed form."""

import math

import chains
import pytest
import torch
from diffusers import DDPMScheduler
from gaussian import Gaussian, GaussianDenoiser
from torch import Tensor, nn
from walks import PREDICTIONS, SCHEDULES, VARIANCES, ddpm_steps, worst

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, Sampler
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall

SHAPE = (6, 3, 4, 4)


class FixedOutput(nn.Module):
    """A network that answers the same whatever it is asked, and remembers the mode it was asked in."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = nn.Parameter(output)
        self.was_training: list[bool] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.was_training.append(self.training)
        return self.output.expand_as(x)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    t = torch.tensor([0, 1, 57, 500, 998, 999])
    return {"t": t} | {name: torch.randn(SHAPE, generator=generator) for name in ("x", "noise", "output")}


def test_q_sample_is_diffusers_add_noise(batch):
    theirs = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    x_t, noise = DDPM(FixedOutput(batch["output"]), linear()).q_sample(batch["x"], batch["t"], batch["noise"])
    assert noise is batch["noise"]
    torch.testing.assert_close(x_t, theirs.add_noise(batch["x"], batch["noise"], batch["t"]), rtol=1e-5, atol=1e-5)


def test_q_sample_draws_standard_normal_noise_when_given_none():
    torch.manual_seed(0)
    x_0 = torch.full((2, 1, 100, 100), 0.5)
    x_t, noise = DDPM(FixedOutput(x_0), linear()).q_sample(x_0, torch.tensor([0, 999]))
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert x_t[0].std().item() == pytest.approx(math.sqrt(1e-4), rel=0.05)
    assert x_t[1].std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_p_sample_is_diffusers_step(schedule: str, variance: str, prediction: str, clip: bool):
    for t, mean, found, expected in ddpm_steps(schedule, variance, prediction, clip=clip):
        assert worst([found], [expected]) < 1e-5
        assert torch.equal(mean, found) == (t == 0), "noise is added at every step but the last"


def test_denoise_derives_eps_again_from_the_clipped_x_0(batch):
    ddpm = DDPM(FixedOutput(batch["output"]), linear())
    x_0, eps, _ = ddpm.denoise(batch["x"], batch["t"])
    assert x_0.abs().max() <= 1
    alpha, sigma = ddpm.schedule.alpha_sigma(batch["t"], x_0.shape)
    torch.testing.assert_close(alpha * x_0 + sigma * eps, batch["x"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(eps, batch["output"])
    free_x_0, free_eps, _ = ddpm.denoise(batch["x"], batch["t"], clip_denoised=False)
    assert free_x_0.abs().max() > 1
    torch.testing.assert_close(free_eps[1:5], batch["output"][1:5], rtol=1e-3, atol=1e-3)


def test_training_loss_is_the_mean_squared_error_of_the_noise(batch):
    ddpm = DDPM(FixedOutput(batch["output"]), linear())
    expected = (batch["output"] - batch["noise"]).square().mean()
    torch.testing.assert_close(ddpm.training_loss(batch["x"], noise=batch["noise"]), expected)
    per_image = ddpm.losses(batch["x"], batch["t"], batch["noise"])
    torch.testing.assert_close(per_image, (batch["output"] - batch["noise"]).square().mean((1, 2, 3)))


def test_weighting_gets_the_log_snr_and_the_predictions_scale(batch):
    seen = []

    def weighting(log_snr: Tensor, log_scale: Tensor) -> Tensor:
        assert torch.equal(log_scale, log_snr), "for eps"
        seen.append(log_snr)
        return torch.arange(len(log_snr))

    plain = DDPM(FixedOutput(batch["output"]), linear())
    weighted = DDPM(plain.model, plain.schedule, weighting=weighting)
    losses = weighted.losses(batch["x"], batch["t"], batch["noise"])
    torch.testing.assert_close(losses, plain.losses(batch["x"], batch["t"], batch["noise"]) * torch.arange(6))
    alpha_bar = linear().alphas_cumprod[batch["t"]]
    torch.testing.assert_close(seen[0], (alpha_bar / (1 - alpha_bar)).log())


def test_the_optimal_network_has_the_loss_theory_gives_it():
    """For data N(m, s^2) the least eps-loss at t is alpha^2 s^2 / (alpha^2 s^2 + sigma^2)."""
    torch.manual_seed(0)
    schedule = cosine()
    ddpm = DDPM(GaussianDenoiser(schedule, mean=0.3, std=0.4), schedule)
    x_0 = 0.3 + 0.4 * torch.randn(1, 1, 300, 300)
    for t in (10, 300, 700, 990):
        alpha_bar = schedule.alphas_cumprod[t].item()
        expected = alpha_bar * 0.16 / (alpha_bar * 0.16 + 1 - alpha_bar)
        assert ddpm.losses(x_0, torch.tensor([t])).item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("sampler", "rule"),
    [
        (Ancestral(variance=FixedSmall()), chains.ddpm(0.0)),
        (Ancestral(variance=FixedLarge()), chains.ddpm(1.0)),
        (DDIM(steps=1000, eta=1.0), chains.ddim(1.0)),
        (DDIM(steps=1000, eta=0.0), chains.ddim(0.0)),
    ],
    ids=["ddpm fixed_small", "ddpm fixed_large", "ddim eta 1", "ddim eta 0"],
)
def test_sampling_with_the_exact_denoiser_reproduces_mean_and_variance(sampler: Sampler, rule: chains.Rule):
    """The data's mean and std are small against 1, so that clipping x_0 to [-1, 1] changes nothing."""
    mean, std = 0.2, 0.15
    schedule = linear()
    ddpm = DDPM(GaussianDenoiser(schedule, mean, std), schedule)
    x = ddpm.sample(32, 32, 1, show_progress=False, sampler=sampler, generator=torch.Generator().manual_seed(0))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    exact = chains.moments(Gaussian([mean], [[std**2]]), betas, list(range(1000))[::-1], rule)
    exact_mean, exact_std = exact.mean.item(), exact.covariance.sqrt().item()
    assert x.mean().item() == pytest.approx(exact_mean, abs=4.5 * exact_std / math.sqrt(x.numel()))
    assert x.std().item() == pytest.approx(exact_std, rel=4.5 / math.sqrt(2 * x.numel()))
    # The chain is exact as T grows (see test_solver_orders.py); here it has T = 1000.
    assert exact_mean == pytest.approx(mean, rel=0.01)
    assert exact_std == pytest.approx(std, rel=0.03)


def test_sampling_switches_dropout_off_and_on_again():
    ddpm = DDPM(FixedOutput(torch.zeros(1, 1, 1, 1)), linear(10)).train()
    ddpm.sample(2, 4, 1, show_progress=False)
    model = ddpm.model
    assert isinstance(model, FixedOutput)
    assert model.was_training == [False] * 10
    assert model.training


def test_checking_a_network_leaves_its_statistics_alone():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.norm(x)

    ddpm = DDPM(Normed(), linear(10)).train()
    before = {name: value.clone() for name, value in ddpm.model.state_dict().items()}
    ddpm.check_images((1, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in ddpm.model.state_dict().items())
    assert ddpm.model.training
    with pytest.raises(ValueError, match=r"cannot take images of shape \[3, 4, 4\]"):
        ddpm.check_images((3, 4, 4))


def test_sample_shapes_and_range():
    ddpm = DDPM(FixedOutput(torch.zeros(1, 1, 1, 1)), linear(10))
    x = ddpm.sample(2, (4, 8), 3, device="cpu", show_progress=False)
    assert x.shape == (2, 3, 4, 8)
    assert x.abs().max() <= 1


def test_half_precision_leaves_the_schedule_exact():
    ddpm = DDPM(FixedOutput(torch.zeros(1, 1, 1, 1)), linear()).to(torch.bfloat16)
    assert ddpm.schedule.betas.dtype == torch.float64
    assert ddpm.schedule.betas[0].item() == pytest.approx(1e-4, rel=1e-9)
