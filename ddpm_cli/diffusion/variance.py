"""The variance of the reverse step from x_t to x_s, p(x_s | x_t): fixed in one of DDPM's two ways, or learned.

Each takes the schedule, t and s as `[B]` int64 with s < t, and what the denoiser made of x_t; each returns the
logarithm of the variance, finite at every t, as something that broadcasts to `[B, C, H, W]`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.schedule import NoiseSchedule

Variance = Callable[[NoiseSchedule, Tensor, Tensor, Denoised], Tensor]


class UntrainedError(ValueError):
    """A variance that the network is to say is asked of a network that has no channels for it."""


def fixed_small(schedule: NoiseSchedule, t: Tensor, s: Tensor, denoised: Denoised) -> Tensor:
    """The posterior's own variance, beta_tilde_t (DDPM eq. 7): right if the data were a single point."""
    return schedule.log_posterior_variance(t, s, denoised.x_0.shape)


def fixed_large(schedule: NoiseSchedule, t: Tensor, s: Tensor, denoised: Denoised) -> Tensor:
    """The forward step's variance, beta_t: right if the data were standard normal.

    The step to clean data has `fixed_small`'s, for the decoder of L_0, as in DDPM's code.
    """
    shape = denoised.x_0.shape
    to_data = (s < 0).view(-1, *[1] * (len(shape) - 1))
    return torch.where(to_data, fixed_small(schedule, t, s, denoised), schedule.log_step_variance(t, s, shape))


def learned_range(schedule: NoiseSchedule, t: Tensor, s: Tensor, denoised: Denoised) -> Tensor:
    """The network's choice between the two, pixel by pixel in log space (Improved DDPM, eq. 15).

    Raises:
        UntrainedError: if the network has no channels for it.
    """
    if denoised.variance is None:
        raise UntrainedError("learned_range needs a network that was trained with it (model.learn_variance)")
    smallest = fixed_small(schedule, t, s, denoised)
    largest = schedule.log_step_variance(t, s, denoised.x_0.shape)
    fraction = (denoised.variance + 1) / 2
    return fraction * largest + (1 - fraction) * smallest


def is_learned(variance: Variance) -> bool:
    """Whether a network has to have channels for it."""
    x = torch.zeros(1, 1, 1, 1)
    t = torch.zeros(1, dtype=torch.int64)
    try:
        variance(NoiseSchedule(torch.tensor([0.5, 0.5])), t, t - 1, Denoised(x, x))
    except UntrainedError:
        return True
    return False
