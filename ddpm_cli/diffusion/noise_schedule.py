"""The forward process. Time t is 0-based, t in {0 .. T-1}, noise grows with t, t = -1 means clean data (alpha_bar = 1).

Notation is that of DDPM (Ho et al. 2020), section 2: alpha_t = 1 - beta_t, alpha_bar_t = product of alpha_0 .. alpha_t,
q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I). Elsewhere in this package plain `alpha` and `sigma` are
the two factors of that Gaussian: x_t = alpha x_0 + sigma eps.

Only log alpha_bar is kept, in float64; everything else follows from it through expm1 and log1p, because 1 - alpha_bar
loses all its digits near t = 0 in low precision.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

CLEAN = -1  # the t of clean data


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x_0_factor x_0 + x_t_factor x_t, variance I), each broadcastable to `[B, C, H, W]`."""

    x_0_factor: Tensor
    x_t_factor: Tensor
    variance: Tensor


class _Step(NamedTuple):
    """A step between t and s < t in the tables' own precision, `[B]` each."""

    log_ratio: Tensor  # log(alpha_bar_t / alpha_bar_s)
    variance_t: Tensor  # 1 - alpha_bar_t
    variance_s: Tensor

    @property
    def beta(self) -> Tensor:
        """Of the forward step from s to t."""
        return -torch.expm1(self.log_ratio)

    @property
    def posterior_variance(self) -> Tensor:
        """Of q(x_s | x_t, x_0), DDPM eq. 7."""
        return self.beta * self.variance_s / self.variance_t


class Point(NamedTuple):
    """The forward process at one t, in double precision: x_t = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float
    half_log_snr: float  # log(alpha / sigma): lambda_t of DPM-Solver; inf for clean data, -inf for pure noise


class NoiseSchedule(nn.Module):
    """The forward process q: tables over t in `{0 .. T-1}` and the coefficients derived from them.

    A module whose one table is a buffer: it moves with whatever it is part of, and is in no state dict.

    Args:
        betas: `[T]`, the variances of the forward steps, each in (0, 1); the last may be 1, which leaves pure noise.
        zero_terminal_snr: shift and scale sqrt(alpha_bar) so that x_{T-1} is pure noise and the first step does not
            change (Lin et al. 2023, algorithm 1).

    Raises:
        ValueError: if there is no step, or a beta lies outside (0, 1).
    """

    _log_alpha_bar: Tensor

    def __init__(self, betas: Tensor, *, zero_terminal_snr: bool = False):
        super().__init__()
        betas = betas.detach().to("cpu", torch.float64)
        if betas.ndim != 1 or len(betas) < 1:
            raise ValueError(f"betas must be one number per step, at least one; got shape {list(betas.shape)}")
        inside = (betas > 0) & (betas < 1)
        inside[-1] |= betas[-1] == 1
        if not inside.all():
            raise ValueError(f"every beta must lie in (0, 1), got {betas[~inside][0].item():g}")
        log_alpha_bar = torch.cumsum(torch.log1p(-betas), dim=0)
        if zero_terminal_snr:
            log_alpha_bar = _with_zero_terminal_snr(log_alpha_bar)
        # [T + 1]; entry t + 1 belongs to t, so that the clean data at t = -1 needs no special case anywhere.
        table = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha_bar])
        self.register_buffer("_log_alpha_bar", table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `fn` may move the table to another device, but not change its precision: `.half()` leaves the schedule exact.
        device = fn(self._log_alpha_bar.float()).device
        # Apple's GPUs have no float64; in the log domain float32 keeps its relative accuracy.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._log_alpha_bar = self._log_alpha_bar.to(device, dtype)
        return self

    @property
    def timesteps(self) -> int:
        """T, the number of steps of the forward process."""
        return len(self._log_alpha_bar) - 1

    @property
    def device(self) -> torch.device:
        return self._log_alpha_bar.device

    @property
    def ends_in_noise(self) -> bool:
        """Whether x_{T-1} is pure noise, without a trace of x_0: its signal-to-noise ratio is zero."""
        return self._log_alpha_bar[-1].item() == -math.inf

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
            `[B, 1, ..., 1]` in float32, also under autocast.
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
        return _broadcast(self._step(t, s).beta, shape)

    def log_step_variance(self, t: Tensor, s: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Logarithm of `step_variance`."""
        return _broadcast(self._step(t, s).beta.log(), shape)

    def posterior(self, t: Tensor, s: Tensor, shape: torch.Size | tuple[int, ...]) -> Posterior:
        """q(x_s | x_t, x_0) for any s < t: DDPM eq. 6 and 7 with the step from t to s instead of t to t - 1.

        Args:
            t: `[B]` int64 in `{0 .. T-1}`.
            s: `[B]` int64 in `{-1 .. t-1}`; -1 is clean data, where the posterior is x_0 itself.
        """
        step = self._step(t, s)
        return Posterior(
            x_0_factor=_broadcast(
                (0.5 * self._log_alpha_bar.gather(0, s + 1)).exp() * step.beta / step.variance_t, shape
            ),
            x_t_factor=_broadcast((0.5 * step.log_ratio).exp() * step.variance_s / step.variance_t, shape),
            variance=_broadcast(step.posterior_variance, shape),
        )

    def log_posterior_variance(self, t: Tensor, s: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Logarithm of `posterior`'s variance; of beta_tilde_1 where s is clean data and the variance would be 0.

        DDPM's code does the same, for the decoder of L_0. A schedule of one step has no beta_tilde_1 and uses beta_0.
        """
        if self.timesteps == 1:
            return self.log_step_variance(t, s, shape)
        to_data = s < 0
        return _broadcast(
            self._step(torch.where(to_data, 1, t), torch.where(to_data, 0, s)).posterior_variance.log(), shape
        )

    def ddim_factors(
        self, t: Tensor, s: Tensor, eta: float, shape: torch.Size | tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """The factors of eps and of fresh noise in DDIM's step from t to s (Song et al. 2021, eq. 12 and 16)."""
        step = self._step(t, s)
        fresh = eta**2 * step.posterior_variance
        return _broadcast((step.variance_s - fresh).clamp(min=0).sqrt(), shape), _broadcast(fresh.sqrt(), shape)

    def _step(self, t: Tensor, s: Tensor) -> _Step:
        log_alpha_bar_t, log_alpha_bar_s = self._log_alpha_bar.gather(0, t + 1), self._log_alpha_bar.gather(0, s + 1)
        return _Step(log_alpha_bar_t - log_alpha_bar_s, -torch.expm1(log_alpha_bar_t), -torch.expm1(log_alpha_bar_s))

    def points(self, times: Sequence[int]) -> list[Point]:
        """alpha, sigma and log(alpha / sigma) at each t of `times`, in `{-1 .. T-1}`, for solvers that step in them."""
        log_alpha_bar = self._log_alpha_bar.cpu().double()[torch.tensor(times, dtype=torch.int64) + 1]
        variance = -torch.expm1(log_alpha_bar)
        columns = (0.5 * log_alpha_bar).exp(), variance.sqrt(), 0.5 * (log_alpha_bar - variance.log())
        return [Point(*row) for row in torch.stack(columns, dim=1).tolist()]


def expand_t(t: int, x: Tensor) -> Tensor:
    """t for each image of x, `[B]` int64 on x's device, without a copy for which the host would wait."""
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def append_dims(values: Tensor, ndim: int) -> Tensor:
    """`[B]` as `[B, 1, ..., 1]` of `ndim` dimensions, to broadcast against images."""
    return values.reshape(-1, *[1] * (ndim - 1))


def _broadcast(values: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    return append_dims(values.float(), len(shape))


def _with_zero_terminal_snr(log_alpha_bar: Tensor) -> Tensor:
    if len(log_alpha_bar) == 1:
        raise ValueError("zero_terminal_snr needs at least 2 timesteps: it keeps the first and changes the last")
    root = (0.5 * log_alpha_bar).exp()
    return 2 * torch.log((root - root[-1]) * (root[0] / (root[0] - root[-1])))
