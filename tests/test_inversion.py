"""DDIM inversion: with exact denoisers it finds the noise that DDIM makes the image of."""

import pytest
import torch
from gaussian import Gaussian
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.inversion import invert
from ddpm_cli.diffusion.samplers import DDIM
from ddpm_cli.diffusion.schedule import NoiseSchedule, cosine, linear
from ddpm_cli.diffusion.spacing import SPACINGS

DATA = Gaussian([0.3, -0.2, 0.1], [[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.3]])


def images(n: int = 100) -> Tensor:
    z = torch.randn((n, 1, 1, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return DATA.mean + z @ torch.linalg.cholesky(DATA.covariance).T


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "log_snr"])
@pytest.mark.parametrize("schedule", [linear(), cosine()], ids=["linear", "cosine"])
def test_ddim_brings_an_inverted_image_back(schedule: NoiseSchedule, spacing: str):
    denoise, x_0 = DATA.denoiser(schedule), images()
    errors = []
    for steps in (25, 100, 400):
        ddim = DDIM(steps=steps, spacing=spacing)
        times = ddim.times(schedule)
        *_, inverted = invert(denoise, schedule, times, x_0)
        *_, back = ddim.solve(denoise, schedule, times, inverted, torch.empty)
        errors.append(distance(back, x_0))
    assert errors[0] > 3 * errors[1] > 9 * errors[2], "of first order: four times the steps, a quarter of the error"
    assert errors[2] < 0.012


def test_the_inverted_image_is_where_the_probability_flow_carries_it():
    schedule = linear(4000, beta_start=2.5e-5, beta_end=5e-3)
    x_0, [start, end] = images(), schedule.points([-1, 3999])
    *_, inverted = invert(DATA.denoiser(schedule), schedule, range(3999, -1, -1), x_0)
    assert distance(inverted, DATA.carried(x_0, start, end)) < 0.01
    assert inverted.mean().abs() < 0.2
    assert inverted.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_walk_is_ddims_walk_backwards(spacing: str):
    schedule, asked = linear(20), []

    def denoise(x: Tensor, t: int) -> Denoised:
        asked.append(t)
        return Denoised(x, torch.zeros_like(x))

    times = DDIM(steps=6, spacing=spacing).times(schedule)
    states = list(invert(denoise, schedule, times, images()))
    assert asked == [times[-1], *times[:0:-1]]
    assert len(states) == len(times) == 6
    # x_0 itself, not what the network takes it for, is where the walk sets out from.
    alpha, _, _ = schedule.points([times[-1]])[0]
    torch.testing.assert_close(states[0], alpha * images(), rtol=1e-6, atol=1e-6)


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="schedule's 20 timesteps, got 21"):
        DDIM(steps=21).times(linear(20))
