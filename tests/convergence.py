"""How fast a solver's error falls with the number of its steps: data, schedule, exact answers, and the fitted slope.

The error is taken where the last step, which is of first order for all solvers, has no say: at t = 0.
"""

import math

import torch
from gaussian import Gaussian, Mixture
from torch import Tensor

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.samplers import Sampler

INTERVALS = (40, 80, 160, 320)
T = 320 * 12 + 1  # all of INTERVALS divide T - 1: no timestep is rounded

CORRELATED = Gaussian([0.3, -0.2, 0.1], [[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.3]])
CLUSTERS = Mixture([[-0.8, 0.4, 0.0], [0.6, 0.7, -0.3], [0.2, -0.9, 0.5]], 0.3)
DATA = {"correlated": CORRELATED, "clusters": CLUSTERS}


def smooth_schedule() -> NoiseSchedule:
    """lambda falls from 3.5 to -4 with t, three times as fast at the end as at the start: steps of unequal length."""
    u = torch.linspace(0, 1, T, dtype=torch.float64)
    half_log_snr = 3.5 - 3.75 * (u + u**2)
    alpha_bar = torch.sigmoid(2 * half_log_snr)
    return NoiseSchedule(1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]]))


def noise_to_start_from(n: int = 64) -> Tensor:
    return torch.randn((n, 1, 1, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def integrated(data: Mixture, schedule: NoiseSchedule, x: Tensor, steps: int = 2000) -> Tensor:
    """x carried from T-1 to 0 by d(x / sigma) / d lambda = alpha / sigma x_0, with the classical Runge-Kutta method."""
    start, end = schedule.points([T - 1, 0])

    def slope(y: Tensor, half_log_snr: float) -> Tensor:
        alpha, sigma = (1 + math.exp(-2 * half_log_snr)) ** -0.5, (1 + math.exp(2 * half_log_snr)) ** -0.5
        return alpha / sigma * data.denoised(y * sigma, alpha, sigma).x_0

    y, h = x / start.sigma, (end.half_log_snr - start.half_log_snr) / steps
    for i in range(steps):
        at = start.half_log_snr + i * h
        k_1 = slope(y, at)
        k_2 = slope(y + h / 2 * k_1, at + h / 2)
        k_3 = slope(y + h / 2 * k_2, at + h / 2)
        k_4 = slope(y + h * k_3, at + h)
        y = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return y * end.sigma


def exact_answers() -> dict[str, Tensor]:
    """Where the exact probability flow takes `noise_to_start_from`, from T-1 to 0."""
    schedule, x = smooth_schedule(), noise_to_start_from()
    start, end = schedule.points([T - 1, 0])
    return {"correlated": CORRELATED.carried(x, start, end), "clusters": integrated(CLUSTERS, schedule, x)}


def errors_of(sampler: Sampler, data: Gaussian | Mixture, exact: Tensor) -> list[float]:
    """Root mean square of what a sampler ends on less `exact`, for each of INTERVALS."""
    schedule = smooth_schedule()
    denoise = data.denoiser(schedule)
    errors = []
    for intervals in INTERVALS:
        times = list(range(T - 1, -1, -(T - 1) // intervals))
        *_, at_zero, _ = sampler.solve(denoise, schedule, times, noise_to_start_from(), torch.empty)
        errors.append((at_zero - exact).square().mean().sqrt().item())
    return errors


def fitted_slope(errors: list[float]) -> float:
    """The order p in error ~ intervals^-p, by least squares in logarithms."""
    logs = torch.tensor([INTERVALS, errors], dtype=torch.float64).log()
    return -(torch.cov(logs)[0, 1] / logs[0].var()).item()
