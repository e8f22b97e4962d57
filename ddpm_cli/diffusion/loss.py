"""The losses: squared error, variational bound, or both.

Each takes the `Terms` of a batch and returns the loss of each image, `[B]` in float32.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ddpm_cli.diffusion import bound
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.prediction import Prediction
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.diffusion.weighting import Uniform, Weighting


@dataclass(frozen=True, kw_only=True)
class Terms:
    """A batch at its timesteps, the network's output for it, and the two errors of that output.

    Args:
        x_0, x_t, noise, output: `[B, C, H, W]` in float32; output is what the prediction says (eps, x_0, v...).
        t: `[B]` int64.
        alpha, sigma: `[B, 1, 1, 1]`, with x_t = alpha x_0 + sigma noise.
        variance_output: the network's further channels, for a learned variance, or None.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    weighting: Weighting
    variance: Variance
    x_0: Tensor
    x_t: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    noise: Tensor
    output: Tensor
    variance_output: Tensor | None

    def squared_error(self) -> Tensor:
        """Weighted squared error of the output, averaged over pixels, `[B]`."""
        target = self.prediction.target(self.x_0, self.noise, self.alpha, self.sigma)
        error = (self.output - target).square().flatten(1).mean(1)
        log_snr = self.schedule.log_snr.gather(0, self.t)
        return self.weighting(log_snr, self.prediction.log_scale(log_snr)).float() * error

    def bound(self, *, of_variance_only: bool = False) -> Tensor:
        """T L_t in bits per dimension, `[B]`: over uniform t its mean is the bound without the prior's constant.

        Args:
            of_variance_only: train only the variance with it, not the mean.
        """
        output = self.output.detach() if of_variance_only else self.output
        predicted_x_0 = self.prediction.x_0(output, self.x_t, self.alpha, self.sigma)
        term = bound.term(
            self.schedule,
            self.variance,
            self.x_0,
            self.t,
            predicted_x_0=predicted_x_0,
            variance_output=self.variance_output,
        )
        return self.schedule.timesteps * term


class Loss(Protocol):
    """The interface of a loss, as `DDPM` uses it."""

    weighted: ClassVar[bool]  # whether the weighting counts
    trains_variance: ClassVar[bool]  # whether a learned variance gets a gradient
    needs_learned_variance: ClassVar[bool]

    def __call__(self, terms: Terms, /) -> Tensor:
        """The loss of each image, `[B]` in float32."""
        ...


@dataclass(frozen=True)
class Simple:
    """The weighted squared error alone: L_simple (DDPM eq. 14) where the weight is 1."""

    weighted: ClassVar[bool] = True
    trains_variance: ClassVar[bool] = False
    needs_learned_variance: ClassVar[bool] = False

    def __call__(self, terms: Terms) -> Tensor:
        return terms.squared_error()


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """L_simple + `bound_weight` L_vlb, where the bound trains only the learned variance (Improved DDPM, eq. 16).

    Raises:
        ValueError: if `bound_weight` is not positive.
    """

    weighted: ClassVar[bool] = True
    trains_variance: ClassVar[bool] = True
    needs_learned_variance: ClassVar[bool] = True

    bound_weight: float = 0.001

    def __post_init__(self) -> None:
        if not self.bound_weight > 0:
            raise ValueError(f"bound_weight must be positive, got {self.bound_weight:g}")

    def __call__(self, terms: Terms) -> Tensor:
        return terms.squared_error() + self.bound_weight * terms.bound(of_variance_only=True)


@dataclass(frozen=True)
class VariationalBound:
    """L_vlb in bits per dimension (DDPM eq. 5), of which each image shows one term, times T."""

    weighted: ClassVar[bool] = False
    trains_variance: ClassVar[bool] = True
    needs_learned_variance: ClassVar[bool] = False

    def __call__(self, terms: Terms) -> Tensor:
        return terms.bound()


def check_loss(loss: Loss, weighting: Weighting, *, learns_variance: bool) -> None:
    """Raise ValueError for a loss with a weighting, or a variance, that it takes no notice of or cannot do without."""
    if learns_variance and not loss.trains_variance:
        raise ValueError(
            "loss=simple does not train the variance that variance=learned_range learns; choose loss=hybrid or loss=vlb"
        )
    if loss.needs_learned_variance and not learns_variance:
        raise ValueError(
            "loss=hybrid trains a learned variance, but this one is fixed; choose variance=learned_range, "
            "or loss=simple or loss=vlb"
        )
    if not loss.weighted and not isinstance(weighting, Uniform):
        raise ValueError("weighting has no effect with loss=vlb, which has its own; choose weighting=uniform")
