"""Thresholds, which keep the predicted x_0 a possible image, `[B, C, H, W]` in [-1, 1]."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, append_dims, expand_t
from ddpm_cli.diffusion.prediction import noise_of

Threshold = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Static:
    """Clipped to [-1, 1], as DDPM did."""

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """Each image clipped to [-s, s] and divided by s, its `quantile` of |x_0|, at least 1 (Saharia et al. 2022, 2.3).

    Raises:
        ValueError: if `quantile` lies outside (0, 1].
    """

    quantile: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile must lie in (0, 1], got {self.quantile:g}")

    def __call__(self, x_0: Tensor) -> Tensor:
        s = x_0.abs().flatten(1).float().quantile(self.quantile, dim=1).clamp(min=1)
        s = append_dims(s.to(x_0.dtype), x_0.ndim)
        return x_0.clamp(-s, s) / s


@dataclass(frozen=True)
class Unbounded:
    """x_0 as the network predicts it."""

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0


def bounded(denoised: Denoised, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, threshold: Threshold) -> Denoised:
    """`denoised` with `threshold` applied to its x_0, and eps derived again from that x_0.

    Args:
        x_t: `[B, C, H, W]`, what was denoised.
        t: `[B]` int64.
    """
    if isinstance(threshold, Unbounded):
        return denoised
    x_0 = threshold(denoised.x_0)
    alpha, sigma = schedule.alpha_sigma(t, x_t.shape)
    return Denoised(x_0, noise_of(x_0, x_t, alpha, sigma), denoised.variance)


def thresholded(denoise: Denoiser, schedule: NoiseSchedule, threshold: Threshold) -> Denoiser:
    """`denoise` with its x_0 kept in bounds: before a sampler forms the posterior mean, and after guidance."""

    def clipped(x_t: Tensor, t: int) -> Denoised:
        return bounded(denoise(x_t, t), x_t, expand_t(t, x_t), schedule, threshold)

    return clipped
