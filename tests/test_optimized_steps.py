"""Timesteps chosen for a model: against every list there is, on data whose exact denoiser is known."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from gaussian import Gaussian, Mixture
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.optimized_steps import FINE_STEPS, FIXED, MOST_CALLS, optimized_steps, solution
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, DPMSolverPP2MSDE, Heun, Sampler, UniPC
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.spacing import visited

CORRELATED = Gaussian([0.3, -0.2, 0.1], [[0.15, 0.09, 0.0], [0.09, 0.12, -0.03], [0.0, -0.03, 0.09]])
CLUSTERS = Mixture([[-0.8, 0.4, 0.0], [0.6, 0.7, -0.3], [0.2, -0.9, 0.5]], 0.1)
DATA = {"correlated": CORRELATED, "clusters": CLUSTERS}
SOLVERS: dict[str, Sampler] = {"ddim": DDIM(), "heun": Heun(), "dpmpp_2m": DPMSolverPP2M(), "unipc": UniPC()}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
each_data = pytest.mark.parametrize("data", DATA.values(), ids=DATA)


def noise(n: int = 16) -> Tensor:
    return torch.randn((n, 1, 1, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ended(solver: Sampler, schedule: NoiseSchedule, denoise: Denoiser, times: Sequence[int]) -> Tensor:
    *_, x = solver.solve(denoise, schedule, times, noise(), lambda: torch.zeros(()))
    return x.clamp(-1, 1)


def error(found: Tensor, expected: Tensor) -> float:
    return (found - expected).square().flatten(1).mean(1).sqrt().mean().item()


@each_solver
@each_data
def test_few_enough_timesteps_are_the_best_of_all_lists_there_are(solver: Sampler, data: Gaussian | Mixture):
    """But for Heun, whose many hollows a descent may stay in, and there it is nearer than every fixed spacing."""
    schedule = cosine(14)
    denoise = data.denoiser(schedule)
    target = solution(schedule, denoise, noise(), 13)
    found = optimized_steps(replace(solver, steps=3), schedule, denoise, noise())
    every = ([13, *rest] for rest in itertools.combinations(range(12, -1, -1), 2))
    errors = {tuple(times): error(ended(solver, schedule, denoise, times), target) for times in every}
    assert found.error == pytest.approx(errors[tuple(found.times)])
    assert found.error <= min(errors.values()) * (3 if isinstance(solver, Heun) else 1.05)


@each_solver
@pytest.mark.parametrize("steps", [3, 5, 8])
def test_they_end_nearer_to_the_exact_flow_than_every_fixed_spacing(solver: Sampler, steps: int):
    """The flow of Gaussian data has a closed form, which the search knows nothing of."""
    schedule = linear(400)
    start, end = schedule.points([399, -1])
    exact = CORRELATED.carried(noise(), start, end).clamp(-1, 1)
    denoise = CORRELATED.denoiser(schedule)
    found = optimized_steps(replace(solver, steps=steps), schedule, denoise, noise())
    fixed = [error(ended(solver, schedule, denoise, visited(schedule, steps, name)), exact) for name in FIXED]
    assert error(ended(solver, schedule, denoise, found.times), exact) < min(fixed)


def test_the_fine_solution_is_near_the_exact_flow():
    schedule = linear(1000)
    start, end = schedule.points([999, -1])
    exact = CORRELATED.carried(noise(), start, end).clamp(-1, 1)
    assert error(solution(schedule, CORRELATED.denoiser(schedule), noise(), 999), exact) < 2e-3


@pytest.mark.parametrize("first", [None, 700, 30, 3])
def test_first_and_number_are_kept_and_the_same_arguments_choose_the_same(first: int | None):
    schedule = cosine(1000)
    denoise, calls = CLUSTERS.denoiser(schedule), 0

    def counted(x: Tensor, t: int) -> Denoised:
        nonlocal calls
        calls += 1
        return denoise(x, t)

    found = optimized_steps(UniPC(steps=4), schedule, counted, noise(), first=first)
    assert 0 < calls <= MOST_CALLS + FINE_STEPS
    assert found.times[0] == (999 if first is None else first)
    assert len(found.times) == 4
    assert all(t > s >= 0 for t, s in itertools.pairwise(found.times))
    assert found.error <= found.fixed_error
    assert optimized_steps(UniPC(steps=4), schedule, denoise, noise(), first=first) == found
    assert visited(schedule, found.times, "optimized", first) == found.times


def test_one_step_and_all_steps_leave_no_choice():
    schedule = cosine(5)
    denoise = CLUSTERS.denoiser(schedule)
    assert optimized_steps(DDIM(steps=1), schedule, denoise, noise()).times == [4]
    assert optimized_steps(DDIM(steps=5), schedule, denoise, noise()).times == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("stochastic", "without"),
    [
        (Ancestral(steps=4), DDIM(steps=4)),
        (DDIM(steps=4, eta=0.7), DDIM(steps=4)),
        (DPMSolverPP2MSDE(steps=4), DPMSolverPP2M(steps=4)),
    ],
    ids=["ddpm", "ddim", "dpmpp_2m_sde"],
)
def test_samplers_that_add_noise_have_the_timesteps_of_what_is_left_without(stochastic: Sampler, without: Sampler):
    schedule = cosine(100, zero_terminal_snr=True)
    denoise = CLUSTERS.denoiser(schedule)
    found = optimized_steps(stochastic, schedule, denoise, noise())
    assert found == optimized_steps(without, schedule, denoise, noise())


class Noisy(DDIM):
    @property
    def stochastic(self) -> bool:
        return True

    def without_noise(self) -> Sampler:
        return Sampler.without_noise(self)


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        (DDIM(steps=[9, 4]), "optimized chooses the timesteps, but steps lists them"),
        (Ancestral(), "optimized chooses 1 to 10 timesteps, got all of them"),
        (DDIM(steps=11), "optimized chooses 1 to 10 timesteps, got 11"),
        (Noisy(steps=3), "Noisy adds noise, and has no deterministic counterpart"),
    ],
)
def test_what_is_no_choice_is_refused(sampler: Sampler, says: str):
    schedule = cosine(10)
    with pytest.raises(ValueError, match=says):
        optimized_steps(sampler, schedule, CLUSTERS.denoiser(schedule), noise())


def test_images_that_are_not_finite_are_refused():
    schedule = cosine(10)

    def nothing(x: Tensor, t: int) -> Denoised:
        return Denoised(x * torch.nan, x)

    with pytest.raises(FloatingPointError):
        optimized_steps(DDIM(steps=3), schedule, nothing, noise())


def test_without_a_model_there_is_nothing_to_choose():
    with pytest.raises(ValueError, match=r"optimized timesteps are chosen for one model, .*choose spacing=trailing"):
        UniPC(steps=4, spacing="optimized").times(cosine(10))
