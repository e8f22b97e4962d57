"""What the network is asked for: its regression target, and the ways back from its output to x_0 and eps.

All with x_t = alpha x_0 + sigma eps; images `[B, C, H, W]`, factors `[B, 1, 1, 1]`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Epsilon:
    """The network predicts the noise eps (DDPM, section 3.2)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer."""
        return eps

    def x_0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean image that the network's answer implies."""
        return (x_t - sigma * output) / alpha

    def eps(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise that the network's answer implies."""
        return output

    def log_scale(self, log_snr: Tensor) -> Tensor:
        """Log of the squared error of this output over that of the x_0 it implies: SNR."""
        return log_snr

    def check(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError where a network that answers so cannot work with the schedule."""
        if schedule.ends_in_noise:
            raise ValueError(
                "prediction=eps cannot work with a schedule that ends in pure noise (zero_terminal_snr): there the "
                "noise says nothing of the image; choose prediction=v or prediction=x0"
            )


@dataclass(frozen=True)
class X0:
    """The network predicts the clean image x_0, where the process started (DDPM, section 3.2)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.target`."""
        return x_0

    def x_0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.x_0`."""
        return output

    def eps(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.eps`."""
        return noise_of(output, x_t, alpha, sigma)

    def log_scale(self, log_snr: Tensor) -> Tensor:
        """As `Epsilon.log_scale`: 1."""
        return torch.zeros_like(log_snr)

    def check(self, schedule: NoiseSchedule) -> None:
        """As `Epsilon.check`: any schedule will do."""


@dataclass(frozen=True)
class Velocity:
    """The network predicts v = alpha eps - sigma x_0 (Salimans & Ho 2022, appendix D)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.target`."""
        return alpha * eps - sigma * x_0

    def x_0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.x_0`."""
        return alpha * x_t - sigma * output

    def eps(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.eps`."""
        return sigma * x_t + alpha * output

    def log_scale(self, log_snr: Tensor) -> Tensor:
        """As `Epsilon.log_scale`: SNR + 1."""
        return F.softplus(log_snr)

    def check(self, schedule: NoiseSchedule) -> None:
        """As `Epsilon.check`: any schedule will do."""


Prediction = Epsilon | X0 | Velocity


def noise_of(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The eps that goes with a clean image: what of x_t it leaves unexplained."""
    return (x_t - alpha * x_0) / sigma
