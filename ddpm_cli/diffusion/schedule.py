"""Noise schedules by name: the betas of each, from which `NoiseSchedule` is made.

Notation and the direction of t are those of `ddpm_cli.diffusion.noise_schedule`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule

__all__ = ["NoiseSchedule", "cosine", "custom", "linear", "scaled_linear", "sigmoid"]


def linear(
    timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Betas evenly spaced from `beta_start` to `beta_end` (DDPM, section 4).

    Raises:
        ValueError: if `timesteps` < 1 or a beta lies outside (0, 1).
    """
    _check_betas(timesteps, beta_start, beta_end)
    betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    return NoiseSchedule(betas, zero_terminal_snr=zero_terminal_snr)


def scaled_linear(
    timesteps: int = 1000, *, beta_start: float = 0.00085, beta_end: float = 0.012, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Square roots of the betas evenly spaced (Rombach et al. 2022, as their latent diffusion models are trained).

    Raises:
        ValueError: if `timesteps` < 1 or a beta lies outside (0, 1).
    """
    _check_betas(timesteps, beta_start, beta_end)
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64)
    return NoiseSchedule(roots.square(), zero_terminal_snr=zero_terminal_snr)


def cosine(
    timesteps: int = 1000,
    *,
    s: float = 0.008,
    beta_min: float = 1e-4,
    beta_max: float = 0.9999,
    zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """alpha_bar follows a squared cosine (Nichol & Dhariwal 2021, eq. 17).

    alpha_bar(u) = f(u) / f(0), f(u) = cos^2((u + s) / (1 + s) pi/2) with u from 0 to 1, and beta_t = 1 -
    alpha_bar((t + 1) / T) / alpha_bar(t / T), clamped to [beta_min, beta_max]. The paper clamps to [0, 0.999].

    Raises:
        ValueError: if `timesteps` < 1, `s` is negative, or not 0 <= beta_min < beta_max < 1.
    """
    _check_timesteps(timesteps)
    if s < 0:
        raise ValueError(f"s must not be negative, got {s:g}")
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    log_f = 2 * torch.log(torch.cos((u + s) / (1 + s) * math.pi / 2))
    return _from_log_alpha_bar(log_f, beta_min, beta_max, zero_terminal_snr=zero_terminal_snr)


def sigmoid(
    timesteps: int = 1000,
    *,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    beta_min: float = 0.0,
    beta_max: float = 0.9999,
    zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """alpha_bar falls along a piece of a sigmoid (Jabri et al. 2023, algorithm "sigmoid schedule" with these values).

    alpha_bar(u) = (g(1) - g(u)) / (g(1) - g(0)), g(u) = sigmoid((start + u (end - start)) / tau) with u from 0 to 1,
    with betas clamped to [beta_min, beta_max]: unclamped, alpha_bar would end at 0.

    Raises:
        ValueError: if `timesteps` < 1, `tau` <= 0, `start` >= `end`, or not 0 <= beta_min < beta_max < 1.
    """
    _check_timesteps(timesteps)
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau:g}")
    if not start < end:
        raise ValueError(f"start must be below end, got start {start:g} and end {end:g}")
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    g = torch.sigmoid((start + u * (end - start)) / tau)
    if not (torch.diff(g) > 0).all():
        raise ValueError(f"start {start:g}, end {end:g} and tau {tau:g} leave a schedule without steps: raise tau")
    log_alpha_bar = torch.log((g[-1] - g) / (g[-1] - g[0]))
    return _from_log_alpha_bar(log_alpha_bar, beta_min, beta_max, zero_terminal_snr=zero_terminal_snr)


def custom(betas: Sequence[float], *, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """Any variances of the forward steps, one for each of T steps.

    Raises:
        ValueError: if there are none, or one lies outside (0, 1).
    """
    return NoiseSchedule(torch.tensor(betas, dtype=torch.float64), zero_terminal_snr=zero_terminal_snr)


def _from_log_alpha_bar(
    log_alpha_bar: Tensor, beta_min: float, beta_max: float, *, zero_terminal_snr: bool
) -> NoiseSchedule:
    """The schedule of log alpha_bar `[T + 1]` at u = 0 .. 1, its betas clamped."""
    if not 0 <= beta_min < beta_max < 1:
        raise ValueError(f"need 0 <= beta_min < beta_max < 1, got beta_min {beta_min:g} and beta_max {beta_max:g}")
    betas = -torch.expm1(torch.diff(log_alpha_bar)).clamp(-beta_max, -beta_min)
    return NoiseSchedule(betas, zero_terminal_snr=zero_terminal_snr)


def _check_betas(timesteps: int, beta_start: float, beta_end: float) -> None:
    _check_timesteps(timesteps)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < beta < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {beta:g}")


def _check_timesteps(timesteps: int) -> None:
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}")
