"""Noise schedules. Time t is 0-based, t in {0 .. T-1}, noise grows with t, and t = -1 means clean data (alpha_bar = 1).

Notation is that of DDPM (Ho et al. 2020), section 2: alpha_t = 1 - beta_t, alpha_bar_t = product of alpha_0 .. alpha_t,
q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I). Elsewhere in this package plain `alpha` and `sigma` are
the two factors of that Gaussian: x_t = alpha x_0 + sigma eps.

Only log alpha_bar is kept, in float64; everything else follows from it through expm1 and log1p, because 1 - alpha_bar
loses all its digits near t = 0 in low precision.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x_0_factor x_0 + x_t_factor x_t, variance I), each broadcastable to `[B, C, H, W]`."""

    x_0_factor: Tensor
    x_t_factor: Tensor
    variance: Tensor


class NoiseSchedule:
    """The forward process q: tables over t in `{0 .. T-1}` and the coefficients derived from them.

    Args:
        betas: `[T]`, the variances of the forward steps, each in (0, 1).

    Raises:
        ValueError: if there is no step, or a beta lies outside (0, 1).
    """

    def __init__(self, betas: Tensor):
        betas = betas.detach().to("cpu", torch.float64)
        if betas.ndim != 1 or len(betas) < 1:
            raise ValueError(f"betas must be one number per step, at least one; got shape {list(betas.shape)}")
        outside = betas[~((betas > 0) & (betas < 1))]
        if len(outside) > 0:
            raise ValueError(f"every beta must lie in (0, 1), got {outside[0].item():g}")
        log_alpha_bar = torch.cumsum(torch.log1p(-betas), dim=0)
        # [T + 1]; entry t + 1 belongs to t, so that the clean data at t = -1 needs no special case anywhere.
        self._log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha_bar])

    @property
    def timesteps(self) -> int:
        """T, the number of steps of the forward process."""
        return len(self._log_alpha_bar) - 1

    @property
    def device(self) -> torch.device:
        return self._log_alpha_bar.device

    def to(self, device: torch.device | str) -> Self:
        """Move the tables to `device`, in place, and return the schedule."""
        device = torch.device(device)
        # Apple's GPUs have no float64; in the log domain float32 keeps its relative accuracy.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._log_alpha_bar = self._log_alpha_bar.to(device, dtype)
        return self

    # Tables, each [T] --------------------------------------------------------------------------------------------

    @property
    def log_alpha_bar(self) -> Tensor:
        return self._log_alpha_bar[1:]

    @property
    def betas(self) -> Tensor:
        return -torch.expm1(torch.diff(self._log_alpha_bar))

    @property
    def alphas(self) -> Tensor:
        return torch.diff(self._log_alpha_bar).exp()

    @property
    def alphas_cumprod(self) -> Tensor:
        return self._log_alpha_bar[1:].exp()

    @property
    def alphas_cumprod_prev(self) -> Tensor:
        return self._log_alpha_bar[:-1].exp()

    @property
    def sqrt_alphas_cumprod(self) -> Tensor:
        return (0.5 * self.log_alpha_bar).exp()

    @property
    def sqrt_one_minus_alphas_cumprod(self) -> Tensor:
        return (-torch.expm1(self.log_alpha_bar)).sqrt()

    @property
    def sqrt_recip_alphas(self) -> Tensor:
        return (-0.5 * torch.diff(self._log_alpha_bar)).exp()

    @property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{t-1} | x_t, x_0), DDPM eq. 7. Its first entry is 0: x_{-1} is x_0 itself."""
        one_minus_alpha_bar = -torch.expm1(self._log_alpha_bar)
        return self.betas * one_minus_alpha_bar[:-1] / one_minus_alpha_bar[1:]

    @property
    def log_snr(self) -> Tensor:
        """log(alpha_bar / (1 - alpha_bar)), falling with t."""
        return self.log_alpha_bar - torch.log(-torch.expm1(self.log_alpha_bar))

    # Lookups -----------------------------------------------------------------------------------------------------

    def get(self, values: Tensor, t: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Entries of a table for a batch of steps, ready to multiply images.

        Args:
            values: `[T]`, one of the tables.
            t: `[B]` int64, each in `{0 .. T-1}`.
            shape: the shape `[B, ...]` the result is to broadcast against.

        Returns:
            `[B, 1, ..., 1]` in float32, whatever autocast says.
        """
        return _broadcast(values.gather(0, t), shape)

    def alpha_sigma(self, t: Tensor, shape: torch.Size | tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The factors of x_t = alpha x_0 + sigma eps (DDPM eq. 4) for t in `{-1 .. T-1}`: two `[B, 1, 1, 1]`."""
        log_alpha_bar = self._log_alpha_bar.gather(0, t + 1)
        alpha = (0.5 * log_alpha_bar).exp()
        sigma = (-torch.expm1(log_alpha_bar)).sqrt()
        return _broadcast(alpha, shape), _broadcast(sigma, shape)

    def step_variance(self, t: Tensor, s: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """beta of the forward step from s to t, 1 - alpha_bar_t / alpha_bar_s: beta_t when s = t - 1. `[B, 1, 1, 1]`"""
        log_alpha_bar_t, log_alpha_bar_s = self._log_alpha_bar.gather(0, t + 1), self._log_alpha_bar.gather(0, s + 1)
        return _broadcast(-torch.expm1(log_alpha_bar_t - log_alpha_bar_s), shape)

    def posterior(self, t: Tensor, s: Tensor, shape: torch.Size | tuple[int, ...]) -> Posterior:
        """q(x_s | x_t, x_0) for any s < t, DDPM eq. 6 and 7 with the step from t to s in place of t to t - 1.

        Args:
            t: `[B]` int64 in `{0 .. T-1}`.
            s: `[B]` int64 in `{-1 .. t-1}`; -1 is clean data, where the posterior is x_0 itself.
        """
        log_alpha_bar_t, log_alpha_bar_s = self._log_alpha_bar.gather(0, t + 1), self._log_alpha_bar.gather(0, s + 1)
        variance_t, variance_s = -torch.expm1(log_alpha_bar_t), -torch.expm1(log_alpha_bar_s)
        log_ratio = log_alpha_bar_t - log_alpha_bar_s
        beta = -torch.expm1(log_ratio)
        return Posterior(
            x_0_factor=_broadcast((0.5 * log_alpha_bar_s).exp() * beta / variance_t, shape),
            x_t_factor=_broadcast((0.5 * log_ratio).exp() * variance_s / variance_t, shape),
            variance=_broadcast(beta * variance_s / variance_t, shape),
        )


def _broadcast(values: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    return values.float().view(-1, *[1] * (len(shape) - 1))


def linear(timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """Betas evenly spaced from `beta_start` to `beta_end` (DDPM, section 4).

    Raises:
        ValueError: if `timesteps` < 1 or a beta lies outside (0, 1).
    """
    _check_timesteps(timesteps)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < beta < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {beta:g}")
    return NoiseSchedule(torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64))


def cosine(
    timesteps: int = 1000, *, s: float = 0.008, beta_min: float = 1e-4, beta_max: float = 0.9999
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
    if not 0 <= beta_min < beta_max < 1:
        raise ValueError(f"need 0 <= beta_min < beta_max < 1, got beta_min {beta_min:g} and beta_max {beta_max:g}")
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    log_f = 2 * torch.log(torch.cos((u + s) / (1 + s) * math.pi / 2))
    return NoiseSchedule(-torch.expm1(torch.diff(log_f)).clamp(-beta_max, -beta_min))


def _check_timesteps(timesteps: int) -> None:
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}")
