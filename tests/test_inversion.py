"""DDIM inversion: with exact denoisers it finds the noise that DDIM makes the image of."""

from functools import partial

import pytest
import torch
from gaussian import Gaussian
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.inversion import invert
from ddpm_cli.diffusion.samplers import ddim
from ddpm_cli.diffusion.schedule import NoiseSchedule, cosine, linear
from ddpm_cli.diffusion.spacing import SPACINGS, visited

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
        options = {"steps": steps, "spacing": spacing}
        *_, inverted = invert(denoise, schedule, x_0, **options)
        *_, back = partial(ddim, **options)(denoise, schedule, inverted.x, torch.empty)
        errors.append(distance(back.x, x_0))
    assert errors[0] > 3 * errors[1] > 9 * errors[2], "of first order: four times the steps, a quarter of the error"
    assert errors[2] < 0.012


def test_the_inverted_image_is_where_the_probability_flow_carries_it():
    schedule = linear(4000, beta_start=2.5e-5, beta_end=5e-3)
    x_0, [start, end] = images(), schedule.points([-1, 3999])
    *_, inverted = invert(DATA.denoiser(schedule), schedule, x_0, steps=4000)
    assert distance(inverted.x, DATA.carried(x_0, start, end)) < 0.01
    assert inverted.x.mean().abs() < 0.2
    assert inverted.x.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_walk_is_ddims_walk_backwards(spacing: str):
    schedule, asked = linear(20), []

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        asked.append(t[0].item())
        return Denoised(x, torch.zeros_like(x))

    states = list(invert(denoise, schedule, images(), steps=6, spacing=spacing))
    times = visited(schedule, 6, spacing)
    assert asked == [times[-1], *times[:0:-1]]
    assert [(state.step, state.steps) for state in states] == [(i + 1, 6) for i in range(6)]
    # x_0 itself, not what the network takes it for, is where the walk sets out from.
    alpha, _, _ = schedule.points([times[-1]])[0]
    torch.testing.assert_close(states[0].x, alpha * images(), rtol=1e-6, atol=1e-6)


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="schedule's 20 timesteps, got 21"):
        next(invert(DATA.denoiser(linear(20)), linear(20), images(), steps=21))
