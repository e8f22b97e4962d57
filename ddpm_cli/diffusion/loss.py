"""What is minimised: squared error, variational bound, or both.

Each gets the `Terms` of a batch and returns the loss of each image, `[B]` in float32.
"""

from dataclasses import dataclass

from torch import Tensor

from ddpm_cli.diffusion import bound
from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.prediction import Prediction
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.diffusion.weighting import Weighting


@dataclass(frozen=True, kw_only=True)
class Terms:
    """A batch at its timesteps, what the network made of it, and the two errors of that.

    Args:
        x_0, x_t, noise, output: `[B, C, H, W]` in float32; output is in the prediction's own terms.
        t: `[B]` int64.
        variance_output: what a learned variance makes of the network's further channels, or None.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    weighting: Weighting
    variance: Variance
    x_0: Tensor
    x_t: Tensor
    t: Tensor
    noise: Tensor
    output: Tensor
    variance_output: Tensor | None

    def squared_error(self) -> Tensor:
        """Weighted squared error of the output, averaged over pixels, `[B]`."""
        alpha, sigma = self.schedule.alpha_sigma(self.t, self.x_0.shape)
        target = self.prediction.target(self.x_0, self.noise, alpha, sigma)
        error = (self.output - target).square().flatten(1).mean(1)
        log_snr = self.schedule.log_snr.gather(0, self.t)
        return self.weighting(log_snr, self.prediction.log_scale(log_snr)).float() * error

    def bound(self, *, of_variance_only: bool = False) -> Tensor:
        """T L_t in bits per dimension, `[B]`: over uniform t its mean is the bound without the prior's constant.

        Args:
            of_variance_only: let it move the variance and not the mean.
        """
        alpha, sigma = self.schedule.alpha_sigma(self.t, self.x_0.shape)
        output = self.output.detach() if of_variance_only else self.output
        x_0 = self.prediction.x_0(output, self.x_t, alpha, sigma)
        denoised = Denoised(x_0, x_0, self.variance_output)  # eps has no part in it
        term = bound.term(self.schedule, self.variance, self.x_0, self.x_t, self.t, denoised)
        return self.schedule.timesteps * term


class Simple:
    """The weighted squared error alone: L_simple (DDPM eq. 14) where the weight is 1."""

    weighted = True  # the weighting counts
    trains_variance = False

    def __call__(self, terms: Terms) -> Tensor:
        return terms.squared_error()


class Hybrid:
    """L_simple + `bound_weight` L_vlb, the bound moving the learned variance alone (Improved DDPM, eq. 16).

    Raises:
        ValueError: if `bound_weight` is not positive.
    """

    weighted = True
    trains_variance = True

    def __init__(self, *, bound_weight: float = 0.001):
        if not bound_weight > 0:
            raise ValueError(f"bound_weight must be positive, got {bound_weight:g}")
        self.bound_weight = bound_weight

    def __call__(self, terms: Terms) -> Tensor:
        return terms.squared_error() + self.bound_weight * terms.bound(of_variance_only=True)


class VariationalBound:
    """L_vlb in bits per dimension (DDPM eq. 5), of which each image shows one term, times T."""

    weighted = False
    trains_variance = True

    def __call__(self, terms: Terms) -> Tensor:
        return terms.bound()


Loss = Simple | Hybrid | VariationalBound
