"""The variance of the reverse step from x_t to x_s, p(x_s | x_t): fixed in one of DDPM's two ways, or learned."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, append_dims


class Variance(Protocol):
    """The interface of a variance, as the reverse process uses it."""

    learned: ClassVar[bool]  # whether the network needs output channels for it

    def log_variance(
        self, schedule: NoiseSchedule, t: Tensor, s: Tensor, shape: torch.Size, output: Tensor | None
    ) -> Tensor:
        """Logarithm of the variance, finite at every t; broadcasts to `shape`.

        Args:
            t, s: `[B]` int64 with s < t.
            shape: `[B, C, H, W]`, of the images.
            output: the network's output for the variance, of that shape; None from a network without one.
        """
        ...


@dataclass(frozen=True)
class FixedSmall:
    """The posterior's own variance, beta_tilde_t (DDPM eq. 7): right if the data were a single point."""

    learned: ClassVar[bool] = False

    def log_variance(
        self, schedule: NoiseSchedule, t: Tensor, s: Tensor, shape: torch.Size, output: Tensor | None = None
    ) -> Tensor:
        """As `Variance.log_variance`."""
        return schedule.log_posterior_variance(t, s, shape)


@dataclass(frozen=True)
class FixedLarge:
    """The forward step's variance, beta_t: right if the data were standard normal.

    The step to clean data has `FixedSmall`'s, for the decoder of L_0, as in DDPM's code.
    """

    learned: ClassVar[bool] = False

    def log_variance(
        self, schedule: NoiseSchedule, t: Tensor, s: Tensor, shape: torch.Size, output: Tensor | None = None
    ) -> Tensor:
        """As `Variance.log_variance`."""
        smallest, largest = schedule.log_posterior_variance(t, s, shape), schedule.log_step_variance(t, s, shape)
        return torch.where(append_dims(s < 0, len(shape)), smallest, largest)


@dataclass(frozen=True)
class LearnedRange:
    """The network's choice between the two, pixel by pixel in log space (Improved DDPM, eq. 15)."""

    learned: ClassVar[bool] = True

    def log_variance(
        self, schedule: NoiseSchedule, t: Tensor, s: Tensor, shape: torch.Size, output: Tensor | None
    ) -> Tensor:
        """As `Variance.log_variance`; raises ValueError for a network without an output for it."""
        if output is None:
            raise ValueError("learned_range needs a network trained with it (model.learn_variance)")
        smallest, largest = schedule.log_posterior_variance(t, s, shape), schedule.log_step_variance(t, s, shape)
        fraction = (output + 1) / 2
        return fraction * largest + (1 - fraction) * smallest
