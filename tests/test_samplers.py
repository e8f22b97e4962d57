"""Samplers against diffusers' steps, and what every sampler promises."""

import itertools
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from gaussian import GaussianDenoiser
from oracles import in_float64

from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.samplers import Denoised, step_pairs
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.variance import fixed_large, fixed_small

SHAPE = (4, 3, 8, 8)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_ddim_step_is_diffusers_step(schedule: str, eta: float):
    theirs = in_float64(
        DDIMScheduler(
            1000, beta_start=1e-4, beta_end=0.02, beta_schedule=schedule, set_alpha_to_one=True, clip_sample=True
        )
    )
    theirs.final_alpha_cumprod = theirs.one
    theirs.set_timesteps(50)
    ours = linear() if schedule == "linear" else cosine(beta_min=0.0, beta_max=0.999)
    generator = torch.Generator().manual_seed(3)
    for t in (980, 500, 20, 0):
        x_t, output, noise = (torch.randn(SHAPE, generator=generator) for _ in range(3))
        expected = theirs.step(
            output, t, x_t, eta=eta, use_clipped_model_output=True, variance_noise=noise if eta > 0 else None
        ).prev_sample.float()
        t_batch, s_batch = torch.full((4,), t), torch.full((4,), max(t - 20, -1))
        alpha, sigma = ours.alpha_sigma(t_batch, x_t.shape)
        x_0 = ((x_t - sigma * output) / alpha).clamp(-1, 1)
        denoised = Denoised(x_0, (x_t - alpha * x_0) / sigma)
        found = samplers.ddim_step(ours, t_batch, s_batch, denoised, noise if eta > 0 else None, eta=eta)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_ddim_with_eta_one_is_ancestral_sampling():
    """Two routes to the same chain: DDIM's eq. 12 at eta = 1, and DDPM's posterior with its own variance."""
    schedule = cosine(50)
    ddpm = DDPM(GaussianDenoiser(schedule, 0.1, 0.2), schedule)

    def run(sampler) -> torch.Tensor:
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


def test_step_pairs_cover_the_schedule():
    assert step_pairs(5) == [(4, 3), (3, 2), (2, 1), (1, 0), (0, -1)]
    assert step_pairs(1000, 1) == [(999, -1)]
    assert step_pairs(1000, 3) == [(999, 500), (500, 0), (0, -1)]
    for steps in (2, 7, 50, 250, 999, 1000):
        pairs = step_pairs(1000, steps)
        assert len(pairs) == steps
        assert pairs[0][0] == 999
        assert pairs[-1] == (0, -1)
        assert all(t > s for t, s in pairs)
        assert all(here[1] == following[0] for here, following in itertools.pairwise(pairs))


@pytest.mark.parametrize(
    "sampler", [partial(samplers.ddpm, steps=7, variance=fixed_small), partial(samplers.ddim, steps=7, eta=0.3)]
)
def test_states_count_the_steps_and_end_on_the_image(sampler):
    schedule = linear(20)
    seen_t = []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> Denoised:
        seen_t.append(t.tolist())
        return Denoised(torch.full_like(x, 0.25), x)

    x = torch.randn(SHAPE)
    states = list(sampler(denoise, schedule, x, lambda: torch.randn(SHAPE)))
    assert [(state.step, state.steps) for state in states] == [(i + 1, 7) for i in range(7)]
    assert seen_t == [[t] * 4 for t, _ in step_pairs(20, 7)]
    torch.testing.assert_close(states[-1].x, torch.full(SHAPE, 0.25))


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        (
            partial(samplers.ddpm, steps=0, variance=fixed_small),
            "steps must be between 1 and the schedule's 10 timesteps, got 0",
        ),
        (partial(samplers.ddim, steps=11), "got 11"),
        (partial(samplers.ddim, steps=5, eta=1.5), r"eta must lie in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_options_are_refused_before_a_network_is_needed(sampler, says: str):
    with pytest.raises(ValueError, match=says):
        samplers.check_options(sampler, linear(10))
