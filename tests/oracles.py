"""diffusers' schedulers as an independent implementation, freed of the rounding of their float32 tables."""

import math

import torch


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
    scheduler.one = torch.ones((), dtype=torch.float64)
    return scheduler
