"""Samplers against diffusers' schedulers, and what every sampler promises."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from gaussian import GaussianDenoiser
from torch import Tensor
from walks import (
    ETAS,
    MULTISTEP,
    PREDICTIONS,
    SCHEDULES,
    SHAPE,
    ddim_steps,
    ddim_walks,
    denoiser,
    draw,
    heun_walks,
    multistep_walks,
    worst,
)

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, expand_t
from ddpm_cli.diffusion.samplers import (
    DDIM,
    Ancestral,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    Heun,
    Sampler,
    UniPC,
)
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.spacing import SPACINGS, visited
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall, LearnedRange

DETERMINISTIC: dict[str, Sampler] = {"ddim": DDIM(), "heun": Heun(), "dpmpp_2m": DPMSolverPP2M(), "unipc": UniPC()}
STOCHASTIC: dict[str, Sampler] = {
    "ddpm fixed_small": Ancestral(variance=FixedSmall()),
    "ddpm fixed_large": Ancestral(variance=FixedLarge()),
    "ddpm learned_range": Ancestral(variance=LearnedRange()),
    "ddim(eta=0.3)": DDIM(eta=0.3),
    "dpmpp_2m_sde": DPMSolverPP2MSDE(),
}
EVERY = DETERMINISTIC | STOCHASTIC
every_sampler = pytest.mark.parametrize("sampler", EVERY.values(), ids=EVERY)


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

        def noise() -> Tensor:
            return torch.randn(SHAPE, generator=generator)

        times = sampler.times(schedule)
        *_, last = ddpm.reverse_process(sampler.solve(ddpm.denoiser(), schedule, times, noise(), noise))
        return last

    ancestral, ddim = run(Ancestral(variance=FixedSmall())), run(DDIM(steps=50, eta=1.0))
    torch.testing.assert_close(ddim, ancestral, rtol=1e-4, atol=1e-5)


def test_strided_ancestral_sampling_stays_close_to_the_data():
    schedule = linear()
    ddpm = DDPM(GaussianDenoiser(schedule, -0.3, 0.2), schedule)
    sampler = Ancestral(steps=250, variance=FixedLarge())
    x = ddpm.sample(8, 32, 1, show_progress=False, sampler=sampler, generator=torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(-0.3, abs=0.02)
    assert x.std().item() == pytest.approx(0.2, rel=0.1)


# What every sampler promises ------------------------------------------------------------------------------------------


class Constant:
    """A denoiser that always answers with the same grey image, and remembers what it was asked."""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule, self.asked = schedule, []

    def __call__(self, x: Tensor, t: int) -> Denoised:
        assert type(t) is int
        self.asked.append(t)
        alpha, sigma = self.schedule.alpha_sigma(expand_t(t, x), x.shape)
        x_0 = torch.full_like(x, 0.25)
        return Denoised(x_0, (x - alpha * x_0) / sigma, variance=torch.zeros_like(x))


def zero_terminal_snr(timesteps: int) -> NoiseSchedule:
    return linear(timesteps, beta_start=0.01, beta_end=0.4, zero_terminal_snr=True)


@every_sampler
@pytest.mark.parametrize("spacing", SPACINGS)
def test_states_count_the_steps_and_end_on_the_image(sampler: Sampler, spacing: str):
    for schedule in (linear(20), zero_terminal_snr(20), cosine(2), NoiseSchedule(torch.ones(1)), linear(1)):
        for first in (None, schedule.timesteps // 2):
            top = schedule.timesteps - 1 if first is None else first
            for steps in sorted({1, min(2, top + 1), top // 2 + 1, top + 1}):
                denoise = Constant(schedule)
                of_steps = replace(sampler, steps=steps, spacing=spacing)
                times = of_steps.times(schedule, first)
                states = list(of_steps.solve(denoise, schedule, times, draw(0)(), draw(1)))
                assert len(states) == len(times) == steps
                assert all(x.isfinite().all() for x in states)
                torch.testing.assert_close(states[-1], torch.full(SHAPE, 0.25).double())
                assert times == visited(schedule, steps, spacing, first)
                assert times[0] <= top
                if isinstance(sampler, Heun):
                    euler = steps > 1 and schedule.ends_in_noise and times[0] == schedule.timesteps - 1
                    assert len(denoise.asked) == 2 * steps - 1 - euler
                else:
                    assert denoise.asked == times


def test_a_list_of_steps_is_visited_as_it_is():
    for sampler in EVERY.values():
        denoise = Constant(linear(20))
        times = replace(sampler, steps=[17, 9, 8, 2]).times(linear(20), 17)
        states = list(sampler.solve(denoise, linear(20), times, draw(0)(), draw(1)))
        assert list(dict.fromkeys(denoise.asked)) == times == [17, 9, 8, 2]
        assert len(states) == 4


@every_sampler
def test_noise_is_asked_for_once_a_step_or_never(sampler: Sampler):
    """And a sampler says which of the two, whatever schedule and steps are."""
    deterministic = sampler in DETERMINISTIC.values()
    assert sampler.stochastic is not deterministic
    for schedule in (linear(30), zero_terminal_snr(30)):
        for first, steps in ((28, 9), (29, 30), (29, 1)):
            asked = []

            def noise(asked: list[int] = asked) -> Tensor:
                asked.append(1)
                return torch.zeros(SHAPE)

            times = replace(sampler, steps=steps).times(schedule, first)
            for step, _ in enumerate(sampler.solve(Constant(schedule), schedule, times, torch.zeros(SHAPE), noise), 1):
                assert len(asked) in ((0,) if deterministic else (step - 1, step))
            assert bool(asked) is sampler.stochastic


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_predicts_v_meets_pure_noise(sampler: Sampler, dtype: torch.dtype):
    schedule = zero_terminal_snr(100)

    def denoise(x: Tensor, t: int) -> Denoised:
        alpha, sigma = schedule.alpha_sigma(expand_t(t, x), x.shape)
        v = torch.tanh(x)
        return Denoised(alpha * x - sigma * v, sigma * x + alpha * v, variance=v)

    for spacing in SPACINGS:
        for steps in (1, 2, 3, 10, 100):
            times = replace(sampler, steps=steps, spacing=spacing).times(schedule)
            for x in sampler.solve(denoise, schedule, times, draw(0)().to(dtype), lambda: draw(1)().to(dtype)):
                assert x.isfinite().all()
                assert x.dtype == dtype


@pytest.mark.parametrize(
    ("kind", "options", "error", "says"),
    [
        (Ancestral, {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        (DDIM, {"steps": 11}, ValueError, "got 11"),
        (Heun, {"steps": 11}, ValueError, "got 11"),
        (DDIM, {"steps": 5, "eta": 1.5}, ValueError, r"eta must lie in \[0, 1\], got 1.5"),
        (UniPC, {"steps": 5, "spacing": "even"}, ValueError, "spacing must be one of leading, trailing, .* got 'even'"),
        (DDIM, {"steps": 5, "speed": 2}, TypeError, "unexpected keyword argument 'speed'"),
    ],
)
def test_impossible_options_are_refused_before_a_network_is_needed(
    kind: type[Sampler], options: dict, error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        kind(**options).times(linear(10))


def walked(sampler: Sampler, schedule: NoiseSchedule, times: Sequence[int]) -> list[Tensor]:
    """Every state, of a network that answers by x and t."""
    of_network = denoiser(schedule, "v_prediction")

    def denoise(x: Tensor, t: int) -> Denoised:
        return of_network(x, t)._replace(variance=torch.sin(x))

    return list(sampler.solve(denoise, schedule, times, draw(0)(), draw(1)))


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@every_sampler
def test_a_solver_knows_only_the_times_that_it_is_given(sampler: Sampler):
    """Whatever its own steps and spacing say; as `times` gives them, or as somebody lists them."""
    for schedule in (linear(30), zero_terminal_snr(30)):
        for times in ([29, 20, 11, 3, 0], [29], [17, 4], list(range(29, -1, -1))):
            listed = replace(sampler, steps=times, spacing="leading")
            assert listed.times(schedule, times[0]) == times
            found = walked(replace(sampler, steps=7), schedule, times)
            assert len(found) == len(times)
            assert same(found, walked(listed, schedule, tuple(times)))
        spaced = replace(sampler, steps=6, spacing="trailing")
        times = spaced.times(schedule)
        assert replace(spaced, steps=times).times(schedule) == times
        assert same(walked(spaced, schedule, times), walked(sampler, schedule, times))


@every_sampler
def test_a_solver_leaves_the_noise_that_it_is_given_as_it_is(sampler: Sampler):
    schedule, x = linear(30), draw(0)()
    times = replace(sampler, steps=4).times(schedule)
    states = list(sampler.solve(Constant(schedule), schedule, times, x, draw(1)))
    assert torch.equal(x, draw(0)())
    assert len({state.data_ptr() for state in [x, *states]}) == 5
