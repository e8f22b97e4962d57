"""DDIM inversion: with exact denoisers it finds the noise that DDIM makes the image of."""

import pytest
import torch
from gaussian import Gaussian
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.inversion import both_ways, invert, outset
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.prediction import X0, Epsilon, Velocity, noise_of
from ddpm_cli.diffusion.samplers import DDIM
from ddpm_cli.diffusion.schedule import cosine, linear
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


# Networks that predict x_0 -------------------------------------------------------------------------------------------


def off(schedule: NoiseSchedule, error: Tensor | float) -> Denoiser:
    """Exact for DATA but for an x_0 that is off by `error` at every t, as that of a network which predicts it."""
    exact = DATA.denoiser(schedule)

    def denoise(x: Tensor, t: int) -> Denoised:
        alpha, sigma, _ = schedule.points([t])[0]
        x_0 = exact(x, t).x_0 + error
        return Denoised(x_0, noise_of(x_0, x, torch.tensor(alpha), torch.tensor(sigma)))

    return denoise


def round_trip(denoise: Denoiser, schedule: NoiseSchedule, x_0: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The noise, and what comes back."""
    ddim = DDIM(steps=50)
    times = ddim.times(schedule)
    (*up, noise), ask = both_ways(denoise, schedule, times, x_0, **options)
    assert len(up) == 49
    *_, back = ddim.solve(ask, schedule, times, noise, torch.empty)
    return noise, back


@pytest.mark.parametrize(
    "schedule", [linear(), cosine(), linear(zero_terminal_snr=True)], ids=["linear", "cosine", "0"]
)
def test_a_network_that_is_off_in_x_0_finds_noise_and_the_way_back(schedule: NoiseSchedule):
    x_0 = images()
    error = 0.1 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoise, ddim = off(schedule, error), DDIM(steps=50)
    *_, explicit = invert(denoise, schedule, ddim.times(schedule), x_0)
    *_, lost = ddim.solve(denoise, schedule, ddim.times(schedule), explicit, torch.empty)
    noise, back = round_trip(denoise, schedule, x_0, prediction=X0())
    assert 0.8 < noise.std() < 1.25 < 1.8 < explicit.std()
    assert distance(back, x_0) < 0.02 < 0.3 < distance(lost, x_0)


def test_steps_that_ddims_undo_bring_an_image_back_in_few():
    schedule, x_0 = linear(), images()
    denoise = DATA.denoiser(schedule)
    (_, explicit), (noise, implicit) = (
        round_trip(denoise, schedule, x_0, prediction=prediction) for prediction in (Epsilon(), X0())
    )
    assert distance(implicit, x_0) < distance(explicit, x_0) / 3
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_the_way_begins_where_sigma_exceeds_the_error_in_x_0():
    schedule, x_0 = cosine(), torch.zeros(4, 1, 1, 3, dtype=torch.float64)
    error = torch.tensor([1e-4, 0.05, 0.2, 1e6], dtype=torch.float64).reshape(4, 1, 1, 1)
    times = list(range(999, -1, -1))
    begin = outset(lambda x, _: Denoised(error.expand_as(x), x), schedule, times, x_0).tolist()
    assert begin[0] == 0 < begin[1] < begin[2] < begin[3] == 999
    for t, e in zip(begin[1:3], (0.05, 0.2), strict=True):
        over = [sigma / alpha / e for alpha, sigma, _ in schedule.points([t, t - 1])]
        assert over[0] >= 1.5 > over[1]


def test_an_image_finds_the_same_noise_and_way_back_in_every_batch():
    schedule, x_0 = cosine(), images(4)
    error = torch.tensor([0.01, 0.05, 0.1, 0.3], dtype=torch.float64).reshape(4, 1, 1, 1)
    together = round_trip(off(schedule, error), schedule, x_0, prediction=X0())
    alone = [round_trip(off(schedule, error[i : i + 1]), schedule, x_0[i : i + 1], prediction=X0()) for i in range(4)]
    for whole, *parts in zip(together, *alone, strict=True):  # DATA's matrix product rounds by the number of rows
        torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", [Epsilon(), Velocity()])
def test_a_network_that_predicts_eps_or_v_is_asked_as_ddim_is(prediction: Epsilon | Velocity):
    schedule, x_0 = cosine(), images(5)
    denoise, times = off(schedule, 0.1), DDIM(steps=50).times(schedule)
    *_, inverted = invert(denoise, schedule, times, x_0)
    noise, back = round_trip(denoise, schedule, x_0, prediction=prediction)
    assert torch.equal(noise, inverted)
    assert torch.equal(back, [*DDIM(steps=50).solve(denoise, schedule, times, inverted, torch.empty)][-1])
