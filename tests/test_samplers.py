"""Samplers against diffusers' schedulers, and what every sampler promises."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from gaussian import GaussianDenoiser
from ids import named
from torch import Tensor
from walks import (
    ETAS,
    MULTISTEP,
    PREDICTIONS,
    SCHEDULES,
    SHAPE,
    ddim_steps,
    ddim_walks,
    draw,
    heun_walks,
    multistep_walks,
    worst,
)

from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.diffusion.schedule import NoiseSchedule, cosine, linear
from ddpm_cli.diffusion.spacing import SPACINGS, visited
from ddpm_cli.diffusion.variance import fixed_large, fixed_small, learned_range

DETERMINISTIC = [samplers.ddim, samplers.heun, samplers.dpmpp_2m, samplers.unipc]
STOCHASTIC = [
    partial(samplers.ddpm, variance=fixed_small),
    partial(samplers.ddpm, variance=fixed_large),
    partial(samplers.ddpm, variance=learned_range),
    partial(samplers.ddim, eta=0.3),
    samplers.dpmpp_2m_sde,
]
EVERY = [*DETERMINISTIC, *STOCHASTIC]


# Against diffusers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_step_is_diffusers_step(schedule: str, eta: float, prediction: str, clip: bool):
    for found, expected in ddim_steps(schedule, eta, prediction, clip=clip):
        assert worst([found], [expected]) < 1e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_solvers_are_diffusers_on_their_own_timesteps(name: str, schedule: str, prediction: str):
    for steps, spacing, found, expected in multistep_walks(name, schedule, prediction):
        assert worst(found, expected) < 1e-5, (steps, spacing)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heun_is_diffusers(schedule: str, prediction: str):
    for steps, spacing, found, expected in heun_walks(schedule, prediction):
        assert worst(found, expected) < 1e-5, (steps, spacing)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_is_diffusers(schedule: str, eta: float, prediction: str):
    for steps, spacing, found, expected in ddim_walks(schedule, eta, prediction):
        assert worst(found, expected) < 1e-5, (steps, spacing)


# Against each other and against the data ------------------------------------------------------------------------------


def test_ddim_with_eta_one_is_ancestral_sampling():
    """Two routes to the same chain: DDIM's eq. 12 at eta = 1, and DDPM's posterior with its own variance."""
    schedule = cosine(50)
    ddpm = DDPM(GaussianDenoiser(schedule, 0.1, 0.2), schedule)

    def run(sampler: Sampler) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        *_, last = ddpm.sample_states(lambda: torch.randn(SHAPE, generator=generator), sampler)
        return last.x

    ancestral, ddim = run(partial(samplers.ddpm, variance=fixed_small)), run(partial(samplers.ddim, steps=50, eta=1.0))
    torch.testing.assert_close(ddim, ancestral, rtol=1e-4, atol=1e-5)


def test_strided_ancestral_sampling_stays_close_to_the_data():
    schedule = linear()
    ddpm = DDPM(GaussianDenoiser(schedule, -0.3, 0.2), schedule)
    sampler = partial(samplers.ddpm, steps=250, variance=fixed_large)
    x = ddpm.sample(8, 32, 1, show_progress=False, sampler=sampler, generator=torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(-0.3, abs=0.02)
    assert x.std().item() == pytest.approx(0.2, rel=0.1)


# What every sampler promises ------------------------------------------------------------------------------------------


class Constant:
    """A denoiser that always answers with the same grey image, and remembers what it was asked."""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule, self.asked = schedule, []

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        assert t.dtype == torch.int64
        assert len(set(t.tolist())) == 1
        self.asked.append(t[0].item())
        alpha, sigma = self.schedule.alpha_sigma(t, x.shape)
        x_0 = torch.full_like(x, 0.25)
        return Denoised(x_0, (x - alpha * x_0) / sigma, variance=torch.zeros_like(x))


def zero_terminal_snr(timesteps: int) -> NoiseSchedule:
    return linear(timesteps, beta_start=0.01, beta_end=0.4, zero_terminal_snr=True)


@pytest.mark.parametrize("sampler", EVERY, ids=named)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_states_count_the_steps_and_end_on_the_image(sampler: Callable, spacing: str):
    for schedule in (linear(20), zero_terminal_snr(20), cosine(2), NoiseSchedule(torch.ones(1)), linear(1)):
        for first in (None, schedule.timesteps // 2):
            top = schedule.timesteps - 1 if first is None else first
            for steps in sorted({1, min(2, top + 1), top // 2 + 1, top + 1}):
                denoise = Constant(schedule)
                walk = sampler(denoise, schedule, draw(0)(), draw(1), first, steps=steps, spacing=spacing)
                states = list(walk)
                assert [(state.step, state.steps) for state in states] == [(i + 1, steps) for i in range(steps)]
                assert all(state.x.isfinite().all() for state in states)
                torch.testing.assert_close(states[-1].x, torch.full(SHAPE, 0.25).double())
                times = visited(schedule, steps, spacing, first)
                assert times[0] <= top
                if sampler is samplers.heun:
                    euler = steps > 1 and schedule.ends_in_noise and times[0] == schedule.timesteps - 1
                    assert len(denoise.asked) == 2 * steps - 1 - euler
                else:
                    assert denoise.asked == times


def test_a_list_of_steps_is_visited_as_it_is():
    for sampler in EVERY:
        denoise = Constant(linear(20))
        states = list(sampler(denoise, linear(20), draw(0)(), draw(1), 17, steps=[17, 9, 8, 2]))
        assert list(dict.fromkeys(denoise.asked)) == [17, 9, 8, 2]
        assert states[-1].steps == 4


@pytest.mark.parametrize("sampler", EVERY, ids=named)
def test_noise_is_asked_for_once_a_step_or_never(sampler: Sampler):
    asked = []

    def noise() -> Tensor:
        asked.append(1)
        return torch.zeros(SHAPE)

    schedule = linear(30)
    for state in sampler(Constant(schedule), schedule, torch.zeros(SHAPE), noise, 28, steps=9):
        assert len(asked) in ((0,) if sampler in DETERMINISTIC else (state.step - 1, state.step))
    on_thirty = partial(sampler, steps=30)
    assert samplers.is_deterministic(on_thirty, schedule) == (sampler in DETERMINISTIC)
    assert samplers.is_deterministic(on_thirty, zero_terminal_snr(30)) == (sampler in DETERMINISTIC)


@pytest.mark.parametrize("sampler", EVERY, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_predicts_v_meets_pure_noise(sampler: Sampler, dtype: torch.dtype):
    schedule = zero_terminal_snr(100)

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        alpha, sigma = schedule.alpha_sigma(t, x.shape)
        v = torch.tanh(x)
        return Denoised(alpha * x - sigma * v, sigma * x + alpha * v, variance=v)

    for spacing in SPACINGS:
        for steps in (1, 2, 3, 10, 100):
            x = draw(0)().to(dtype)
            for state in sampler(denoise, schedule, x, lambda: draw(1)().to(dtype), steps=steps, spacing=spacing):
                assert state.x.isfinite().all()
                assert state.x.dtype == dtype


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        (
            partial(samplers.ddpm, steps=0, variance=fixed_small),
            "steps must be between 1 and the schedule's 10 timesteps, got 0",
        ),
        (partial(samplers.ddim, steps=11), "got 11"),
        (partial(samplers.heun, steps=11), "got 11"),
        (partial(samplers.ddim, steps=5, eta=1.5), r"eta must lie in \[0, 1\], got 1.5"),
        (partial(samplers.unipc, steps=5, spacing="even"), "spacing must be one of leading, trailing, .* got 'even'"),
        (partial(samplers.ddim, steps=5, speed=2), "cannot be called with these options: .*speed"),
    ],
)
def test_impossible_options_are_refused_before_a_network_is_needed(sampler: Sampler, says: str):
    with pytest.raises(ValueError, match=says):
        samplers.check_options(sampler, linear(10))
