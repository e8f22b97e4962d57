"""Samplers: whole reverse processes as generators over a denoiser.

A sampler is called as `sampler(denoise, schedule, x, noise)` and yields a `State` after every step:

- `denoise(x_t, t) -> Denoised` is the only thing it knows of a network; t is `[B]` int64.
- `x` is x_{T-1}, standard normal, `[B, C, H, W]`.
- `noise()` returns fresh standard normal noise of x's shape, so that the result is a pure function of its arguments.

The last step goes to clean data (s = -1, alpha_bar = 1) exactly.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_cli.diffusion.schedule import NoiseSchedule


class Denoised(NamedTuple):
    """What a denoiser makes of x_t: the clean image and the noise, with x_t = alpha x_0 + sigma eps."""

    x_0: Tensor
    eps: Tensor


class State(NamedTuple):
    """A reverse process after `step` of `steps` steps; after the last one `x` is the finished image."""

    x: Tensor
    step: int
    steps: int


Denoiser = Callable[[Tensor, Tensor], Denoised]
Noise = Callable[[], Tensor]
Variance = Callable[[NoiseSchedule, Tensor, Tensor, torch.Size], Tensor]
Sampler = Callable[[Denoiser, NoiseSchedule, Tensor, Noise], Iterator[State]]


def ddpm(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    steps: int | None = None,
    variance: Variance,
) -> Iterator[State]:
    """Ancestral sampling (DDPM, algorithm 2) over all T steps, or over `steps` of them, evenly spaced."""
    pairs = step_pairs(schedule.timesteps, steps)
    for i, (t, s) in enumerate(pairs):
        t, s = _fill(x, t), _fill(x, s)
        x = ddpm_step(schedule, x, t, s, denoise(x, t), noise(), variance=variance)
        yield State(x, i + 1, len(pairs))


def ddpm_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    denoised: Denoised,
    noise: Tensor,
    *,
    variance: Variance,
) -> Tensor:
    """x_s drawn from N(posterior mean, variance) (DDPM eq. 7 for the mean); no noise where s is clean data."""
    posterior = schedule.posterior(t, s, x_t.shape)
    mean = posterior.x_0_factor * denoised.x_0 + posterior.x_t_factor * x_t
    noisy = (s >= 0).view(-1, *[1] * (x_t.ndim - 1))
    return mean + noisy * variance(schedule, t, s, x_t.shape).sqrt() * noise


def ddim(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, noise: Noise, *, steps: int = 50, eta: float = 0.0
) -> Iterator[State]:
    """DDIM (Song et al. 2021): deterministic at eta = 0, as noisy as ancestral sampling at eta = 1."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta:g}")
    pairs = step_pairs(schedule.timesteps, steps)
    for i, (t, s) in enumerate(pairs):
        t, s = _fill(x, t), _fill(x, s)
        x = ddim_step(schedule, t, s, denoise(x, t), noise() if eta > 0 else None, eta=eta)
        yield State(x, i + 1, len(pairs))


def ddim_step(
    schedule: NoiseSchedule, t: Tensor, s: Tensor, denoised: Denoised, noise: Tensor | None, *, eta: float = 0.0
) -> Tensor:
    """x_s by DDIM's eq. 12; its sigma_t is eta times the posterior's standard deviation (eq. 16)."""
    shape = denoised.x_0.shape
    alpha_s, sigma_s = schedule.alpha_sigma(s, shape)
    if noise is None:
        return alpha_s * denoised.x_0 + sigma_s * denoised.eps
    variance = eta**2 * schedule.posterior(t, s, shape).variance
    return alpha_s * denoised.x_0 + (sigma_s**2 - variance).clamp(min=0).sqrt() * denoised.eps + variance.sqrt() * noise


def check_options(sampler: Sampler, schedule: NoiseSchedule) -> None:
    """Raise now what `sampler` would raise for its options at its first step, without a network."""
    x = torch.zeros(1, 1, 1, 1, device=schedule.device)
    try:
        next(sampler(lambda x_t, _: Denoised(x_t, x_t), schedule, x, lambda: x))
    except TypeError as error:
        raise ValueError(f"cannot be called with these options: {error}") from error


def step_pairs(timesteps: int, steps: int | None = None) -> list[tuple[int, int]]:
    """The steps (t, s) of a reverse process, from (T-1, .) to (., -1), evenly spaced; all T of them if `steps` is None.

    Raises:
        ValueError: if `steps` is not in {1 .. T}.
    """
    steps = timesteps if steps is None else steps
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be between 1 and the schedule's {timesteps} timesteps, got {steps}")
    visited = torch.linspace(timesteps - 1, 0, steps, dtype=torch.float64).round().int().tolist()
    return list(zip(visited, [*visited[1:], -1], strict=True))


def _fill(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)
