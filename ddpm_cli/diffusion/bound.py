"""The variational bound on -log p(x_0) (DDPM eq. 5), in bits per dimension.

Data are integers 0..255 scaled to [-1, 1], as images are.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, append_dims
from ddpm_cli.diffusion.variance import Variance

_HALF_BIN = 1 / 255  # half the distance between two neighbouring levels
_FAR = 1e4  # standard deviations: beyond, float32 cannot tell a bin's two edges apart


class Bound(NamedTuple):
    """The variational bound of images in bits per dimension: the sum of its terms and the prior's."""

    terms: Tensor  # [B, T], L_t at t; the decoder's at 0
    prior: Tensor  # [B]

    @property
    def total(self) -> Tensor:
        """`[B]`"""
        return self.terms.sum(1) + self.prior


def term(
    schedule: NoiseSchedule,
    variance: Variance,
    x_0: Tensor,
    t: Tensor,
    *,
    predicted_x_0: Tensor,
    variance_output: Tensor | None,
) -> Tensor:
    """L_t of each image, `[B]` bits per dimension.

    It is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and at t = 0 the decoder's -log p(x_0 | x_t). The two means
    differ only in the term of x_0: the term of x_t is the same in both.

    Args:
        x_0: `[B, C, H, W]`.
        t: `[B]` int64 in `{0 .. T-1}`.
        predicted_x_0: the x_0 that the model predicts from x_t, `[B, C, H, W]`.
        variance_output: the network's output for a learned variance, of the same shape.
    """
    posterior = schedule.posterior(t, t - 1, x_0.shape)
    log_variance = variance.log_variance(schedule, t, t - 1, x_0.shape, variance_output)
    true_log_variance = schedule.log_posterior_variance(t, t - 1, x_0.shape)
    distance = posterior.x_0_factor * (x_0 - predicted_x_0)
    kl = 0.5 * (
        log_variance - true_log_variance - 1
        + (true_log_variance - log_variance).exp()
        + distance.square() * (-log_variance).exp()
    )  # fmt: skip
    first = append_dims(t == 0, x_0.ndim)
    decoder = -log_likelihood(x_0, torch.where(first, predicted_x_0, x_0), log_variance)
    return _bits(torch.where(first, decoder, kl))


def prior(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """L_T of each image, `[B]` bits per dimension: KL(q(x_T | x_0) || N(0, I)), fixed by the schedule."""
    last = torch.full((len(x_0),), schedule.timesteps - 1, device=x_0.device)
    alpha, sigma = schedule.alpha_sigma(last, x_0.shape)
    return _bits(0.5 * ((alpha * x_0).square() + sigma.square() - 1) - sigma.log())


def log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of the probability that a Gaussian gives to the bin of each value of x_0 (DDPM eq. 13), x_0's shape.

    The bins of the darkest and the brightest level reach to infinity.
    """
    scale = (-0.5 * log_variance).exp()
    centre, half = ((x_0 - mean) * scale).clamp(-_FAR, _FAR), _HALF_BIN * scale
    upper, lower = centre + half, centre - half
    upper = upper.masked_fill(x_0 > 1 - _HALF_BIN, 2 * _FAR)
    lower = lower.masked_fill(x_0 < -1 + _HALF_BIN, -2 * _FAR)
    # A bin in the upper half is as likely as its mirror image below, where no probability is rounded to 1.
    mirrored = upper + lower > 0
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)
