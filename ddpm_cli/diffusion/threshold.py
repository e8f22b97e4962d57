"""Keeping the x_0 that a denoiser sees among possible images, `[B, C, H, W]` in [-1, 1]."""

from collections.abc import Callable

from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.prediction import noise_of
from ddpm_cli.diffusion.schedule import NoiseSchedule

Threshold = Callable[[Tensor], Tensor]


def static(x_0: Tensor) -> Tensor:
    """Clipped to [-1, 1], as DDPM did."""
    return x_0.clamp(-1, 1)


def dynamic(x_0: Tensor, *, quantile: float = 0.995) -> Tensor:
    """Each image clipped to [-s, s] and divided by s, its `quantile` of |x_0|, at least 1 (Saharia et al. 2022, 2.3).

    Raises:
        ValueError: if `quantile` lies outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile:g}")
    s = x_0.abs().flatten(1).float().quantile(quantile, dim=1).clamp(min=1)
    s = s.to(x_0.dtype).view(-1, *[1] * (x_0.ndim - 1))
    return x_0.clamp(-s, s) / s


def none(x_0: Tensor) -> Tensor:
    """As the network says."""
    return x_0


def thresholded(denoise: Denoiser, schedule: NoiseSchedule, threshold: Threshold) -> Denoiser:
    """`denoise` with its x_0 put through `threshold`, and eps derived again from that x_0 so that they belong together.

    Here and nowhere else: before a sampler forms the posterior mean, and after guidance.
    """
    if getattr(threshold, "func", threshold) is none:
        return denoise

    def clipped(x_t: Tensor, t: Tensor) -> Denoised:
        denoised = denoise(x_t, t)
        x_0 = threshold(denoised.x_0)
        alpha, sigma = schedule.alpha_sigma(t, x_t.shape)
        return Denoised(x_0, noise_of(x_0, x_t, alpha, sigma), denoised.variance)

    return clipped
