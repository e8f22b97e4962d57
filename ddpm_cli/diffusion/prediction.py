"""What the network predicts: its regression target, and how x_0 and eps follow from its output.

In all of them x_t = alpha x_0 + sigma eps; images are `[B, C, H, W]`, factors `[B, 1, 1, 1]`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class Epsilon:
    """The network predicts the noise eps (DDPM, section 3.2)."""

    def input(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The network's input, made from x_t."""
        return x_t

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The network's target."""
        return eps

    def x_0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean image that the network's output implies."""
        return (x_t - sigma * output) / alpha

    def eps(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise that the network's output implies."""
        return output

    def log_scale(self, log_snr: Tensor) -> Tensor:
        """Log of the squared error of this output over that of the x_0 it implies: SNR."""
        return log_snr

    def check(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError if a network with this prediction cannot work with the schedule."""
        if schedule.ends_in_noise:
            raise ValueError(
                "prediction=eps cannot work with a schedule that ends in pure noise (zero_terminal_snr), where the "
                "noise says nothing of the image; choose prediction=v or prediction=x0"
            )


@dataclass(frozen=True)
class X0:
    """The network predicts the clean image x_0 (DDPM, section 3.2)."""

    def input(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.input`."""
        return x_t

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
        """As `Epsilon.check`: any schedule works."""


@dataclass(frozen=True)
class Velocity:
    """The network predicts v = alpha eps - sigma x_0 (Salimans & Ho 2022, appendix D)."""

    def input(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.input`."""
        return x_t

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
        """As `Epsilon.check`: any schedule works."""


@dataclass(frozen=True, kw_only=True)
class Preconditioned:
    """The network's input and target have unit variance at every t, if the images have the variance sigma_data^2.

    This is the preconditioning of Karras et al. 2022 (EDM, eq. 7 and table 1) in terms of alpha and sigma. With their
    noise level s = sigma / alpha and d = `sigma_data`, x_0 = c_skip(s) x_t / alpha + c_out(s) F, where F is the
    network at c_in(s) x_t / alpha. The network here predicts -F, which is v for d = 1.

    Args:
        sigma_data: standard deviation d of the pixels, which lie in [-1, 1]; 0.5 in the paper.

    Raises:
        ValueError: if `sigma_data` is not positive.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_sigma_data(self.sigma_data)

    def _size(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        return (sigma.square() + (self.sigma_data * alpha).square()).sqrt()

    def input(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.input`."""
        return x_t / self._size(alpha, sigma)

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.target`."""
        return (self.sigma_data * alpha * eps - sigma / self.sigma_data * x_0) / self._size(alpha, sigma)

    def x_0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.x_0`."""
        size = self._size(alpha, sigma)
        return self.sigma_data * (self.sigma_data * alpha / size * x_t - sigma * output) / size

    def eps(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """As `Epsilon.eps`."""
        size = self._size(alpha, sigma)
        return (sigma / size * x_t + self.sigma_data * alpha * output) / size

    def log_scale(self, log_snr: Tensor) -> Tensor:
        """As `Epsilon.log_scale`: SNR + 1 / sigma_data^2."""
        return log_edm_weight(log_snr, self.sigma_data)

    def check(self, schedule: NoiseSchedule) -> None:
        """As `Epsilon.check`: any schedule works."""


Prediction = Epsilon | X0 | Velocity | Preconditioned


def check_sigma_data(sigma_data: float) -> None:
    """Raise ValueError unless images can have this standard deviation."""
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data must be positive, got {sigma_data:g}")


def log_edm_weight(log_snr: Tensor, sigma_data: float) -> Tensor:
    """Log of EDM's weight of the squared error of x_0, SNR + 1 / sigma_data^2 (Karras et al. 2022, section 5)."""
    log_variance = 2 * math.log(sigma_data)
    return F.softplus(log_snr + log_variance) - log_variance


def noise_of(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The eps that belongs to a clean image: the rest of x_t, over sigma."""
    return (x_t - alpha * x_0) / sigma
