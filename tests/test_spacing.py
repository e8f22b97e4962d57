"""Which timesteps are visited: against diffusers where the definitions agree, and what every spacing promises."""

import itertools
from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.optimized_steps import OPTIMIZED
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.spacing import SPACINGS, visited

ONE_STEP_TO_PURE_NOISE = NoiseSchedule(torch.ones(1))


def test_linspace_covers_the_schedule():
    assert visited(linear(5), None, "linspace") == [4, 3, 2, 1, 0]
    assert visited(linear(), 1, "linspace") == [999]
    assert visited(linear(), 3, "linspace") == [999, 500, 0]


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_timesteps_are_those_of_diffusers_ddim(spacing: str):
    """But for linspace with one step: theirs then visits only 0, ours only T-1."""
    for timesteps in (1000, 400):
        schedule = linear(timesteps)
        theirs = DDIMScheduler(timesteps, timestep_spacing=spacing)
        for steps in (1, 2, 3, 7, 10, 50, 64, 150, 250, 333, 399, 400):
            theirs.set_timesteps(steps)
            expected = [timesteps - 1] if spacing == "linspace" and steps == 1 else theirs.timesteps.tolist()
            assert visited(schedule, steps, spacing) == expected, (timesteps, steps)


def test_diffusers_multistep_solvers_mean_something_else_by_linspace_and_leading():
    """Theirs divide the time into one step more and leave out t = 0; trailing is the same."""
    schedule = linear()
    for steps in (1, 2, 7, 20, 50):
        for spacing in ("linspace", "leading", "trailing"):
            theirs = DPMSolverMultistepScheduler(1000, timestep_spacing=spacing)
            theirs.set_timesteps(steps)
            left_out = spacing != "trailing"
            ours = visited(schedule, steps + left_out, spacing)[:steps]
            assert theirs.timesteps.tolist() == ours


@given(data=st.data())
@pytest.mark.parametrize("spacing", SPACINGS)
def test_visited_timesteps_fall_and_are_as_many_as_asked_for(spacing: str, data: st.DataObject):
    timesteps = data.draw(st.integers(1, 60))
    zero_terminal_snr = timesteps > 1 and data.draw(st.booleans())
    make = data.draw(st.sampled_from([linear, cosine]))
    schedule = make(timesteps, zero_terminal_snr=zero_terminal_snr)
    first = data.draw(st.none() | st.integers(0, timesteps - 1))
    top = timesteps - 1 if first is None else first
    steps = data.draw(st.integers(1, top + 1))
    times = visited(schedule, steps, spacing, first)
    assert len(times) == steps
    assert all(t > s for t, s in itertools.pairwise(times))
    assert times[-1] >= 0
    assert times[0] == ((steps - 1) * ((top + 1) // steps) if spacing == "leading" else top)
    if steps == top + 1:
        assert times == list(range(top, -1, -1))
    elif steps > 1 and spacing != "trailing":
        assert times[-1] == 0


@pytest.mark.parametrize("schedule", [linear(), cosine(beta_max=0.9)], ids=["linear", "cosine"])
def test_log_snr_visits_the_timesteps_nearest_to_even_steps(schedule: NoiseSchedule):
    log_snr, times = schedule.log_snr, visited(schedule, 10, "log_snr")
    even = torch.linspace(log_snr[-1], log_snr[0], 10, dtype=torch.float64)
    distance = (log_snr[:, None] - even).abs()  # [T, 10]
    assert distance[times].diagonal().tolist() == distance.min(0).values.tolist()


def test_log_snr_takes_every_timestep_where_they_are_too_far_apart():
    assert visited(linear(), 50, "log_snr")[-6:] == [5, 4, 3, 2, 1, 0]
    assert visited(cosine(), 50, "log_snr")[:6] == [999, 998, 997, 996, 995, 994]


def test_log_snr_visits_pure_noise_first_and_then_what_it_would_without():
    ends_in_noise, schedule = linear(1000, zero_terminal_snr=True), linear(1000)
    times = visited(ends_in_noise, 10, "log_snr")
    assert times[0] == 999
    log_snr = ends_in_noise.log_snr
    even = torch.linspace(log_snr[998], log_snr[0], 10, dtype=torch.float64)
    assert (log_snr[times[1:]] - even[1:]).abs().max() < 0.5
    assert visited(ends_in_noise, 10, "log_snr", 998)[0] == 998
    assert visited(schedule, 1, "log_snr") == [999]
    assert visited(ONE_STEP_TO_PURE_NOISE, 1, "log_snr") == [0]


def test_a_list_names_the_timesteps():
    for spacing in SPACINGS:
        assert visited(linear(10), [9, 4, 3], spacing) == [9, 4, 3]
        assert visited(linear(10), (5, 0), spacing, first=5) == [5, 0]


@pytest.mark.parametrize(
    ("steps", "first", "says"),
    [
        (0, None, "steps must be between 1 and the schedule's 10 timesteps, got 0"),
        (11, None, "steps must be between 1 and the schedule's 10 timesteps, got 11"),
        (7, 5, "steps must be between 1 and the 6 timesteps up to first = 5, got 7"),
        (5, 10, "first must be between 0 and 9, got 10"),
        (5, -1, "first must be between 0 and 9, got -1"),
        ([8, 4], None, "steps must start at 9, where the noise is, got 8"),
        ([4, 0], 5, "steps must start at 5, where the noise is, got 4"),
        ([], None, "steps must name at least one timestep, got an empty list"),
        ([10, 3], None, "steps must be timesteps between 0 and 9, got 10"),
        ([6, 3], 5, "steps must be timesteps between 0 and 5, got 6"),
        ([3, -1], None, "steps must be timesteps between 0 and 9, got -1"),
        ([3, 1.5], None, "steps must be timesteps between 0 and 9, got 1.5"),
        ([3, 3], None, "steps must decrease from one to the next, got 3 after 3"),
        ([3, 5], None, "steps must decrease from one to the next, got 5 after 3"),
    ],
)
def test_impossible_steps_are_refused(steps, first: int | None, says: str):
    with pytest.raises(ValueError, match=says):
        visited(linear(10), steps, "linspace", first)


def test_the_spacings_are_those_that_samplers_take():
    assert set(get_args(samplers.Spacing)) == {*SPACINGS, OPTIMIZED}
    with pytest.raises(ValueError, match="spacing must be one of leading, trailing, linspace, log_snr, got 'karras'"):
        visited(linear(10), 5, "karras")
