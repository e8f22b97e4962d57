"""diffusers' schedulers as an independent implementation, freed of the rounding of their float32 tables."""

import math
from functools import partial

import torch
from diffusers import DDPMScheduler

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.schedule import cosine, linear, scaled_linear


def in_float64(scheduler):
    """The same scheduler with its tables computed in float64.

    In float32, 1 - alpha_bar keeps four digits at t = 0 and a step of theirs differs from itself in float64 by up to
    4e-5; their formulas, which are what we compare with, do not.
    """
    config = scheduler.config
    steps = config.num_train_timesteps
    if config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float64)
    else:
        u = [i / steps for i in range(steps + 1)]
        f = [math.cos((v + 0.008) / 1.008 * math.pi / 2) ** 2 for v in u]
        betas = torch.tensor([min(1 - f[i + 1] / f[i], 0.999) for i in range(steps)], dtype=torch.float64)
    torch.testing.assert_close(betas.float(), scheduler.betas, rtol=1e-5, atol=1e-8)
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def timesteps_in_float64(scheduler, steps: int) -> list[int]:
    """Set the timesteps of a scheduler that steps in sigma / alpha, which it keeps rounded, and give them back.

    Heun's scheduler lists a timestep once for each of its calls; here each is listed once.
    """
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.long()
    assert (times == scheduler.timesteps).all(), "between two timesteps they interpolate sigma; we never do"
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()[times]
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    torch.testing.assert_close(sigmas.float(), scheduler.sigmas, rtol=1e-5, atol=1e-6)
    scheduler.sigmas = sigmas
    return torch.unique_consecutive(times).tolist()


def same_schedule(beta_schedule: str) -> NoiseSchedule:
    """Ours that a scheduler of theirs with 1000 steps, betas 1e-4 to 0.02, has as `beta_schedule`."""
    return linear() if beta_schedule == "linear" else cosine(beta_min=0.0, beta_max=0.999)


def two_schedules(name: str, *, zero_terminal_snr: bool = False) -> tuple[NoiseSchedule, DDPMScheduler]:
    """Ours and theirs, of 1000 steps: `linear`, `scaled_linear` or `cosine`, which they clamp as Improved DDPM did."""
    beta_schedule, betas, ours = {
        "linear": ("linear", {"beta_start": 1e-4, "beta_end": 0.02}, linear),
        "scaled_linear": ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}, scaled_linear),
        "cosine": ("squaredcos_cap_v2", {}, partial(cosine, beta_min=0.0, beta_max=0.999)),
    }[name]
    theirs = DDPMScheduler(1000, beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_terminal_snr, **betas)
    return ours(1000, zero_terminal_snr=zero_terminal_snr), theirs
