"""The variance of the reverse step from x_t to x_s, p(x_s | x_t): DDPM section 3.2 names two choices.

Each takes the schedule, t and s as `[B]` int64 with s < t, and the images' shape; each returns `[B, 1, 1, 1]`.
"""

import torch
from torch import Tensor

from ddpm_cli.diffusion.schedule import NoiseSchedule


def fixed_small(schedule: NoiseSchedule, t: Tensor, s: Tensor, shape: torch.Size) -> Tensor:
    """The posterior's own variance, beta_tilde_t (DDPM eq. 7): right if the data were a single point."""
    return schedule.posterior(t, s, shape).variance


def fixed_large(schedule: NoiseSchedule, t: Tensor, s: Tensor, shape: torch.Size) -> Tensor:
    """The forward step's variance, beta_t: right if the data were standard normal."""
    return schedule.step_variance(t, s, shape)
