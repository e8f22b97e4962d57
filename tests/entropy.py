"""The variational bound where it is known: for Gaussian data, with the exact denoiser."""

import math
from typing import ClassVar, NamedTuple

import torch
from gaussian import GaussianDenoiser
from torch import Tensor

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.diffusion.variance import Variance

STD = 0.25
IMAGES, TIMESTEPS = 64, 300


def rounded(x: Tensor) -> Tensor:
    """To the 256 levels that images have."""
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


class Exact:
    """The variance of x_s given x_t for data N(0, STD^2): the posterior's, and what x_0 leaves open."""

    learned: ClassVar[bool] = False

    def log_variance(
        self, schedule: NoiseSchedule, t: Tensor, s: Tensor, shape: torch.Size, output: Tensor | None
    ) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t, shape)
        posterior = schedule.posterior(t, s, shape)
        of_x_0 = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
        return (posterior.variance + posterior.x_0_factor**2 * of_x_0).log()


EXACT = Exact()


class Measured(NamedTuple):
    """Bits per dimension."""

    bounds: Tensor  # [IMAGES]
    error: float  # of the mean of these, by their own scatter
    entropy: float
    gap: float  # by which the bound is more than the entropy: 0 with the exact variance


def measured(variance: Variance) -> Measured:
    """The bound of images of independent Gaussian pixels.

    Gaussian data of std s, in levels 1/127.5 apart, have log2(s 127.5 sqrt(2 pi e)) bits per dimension. With the exact
    variance too, the bound is that. With another it is more by KL(exact || that one) in every step.
    """
    generator = torch.Generator().manual_seed(0)
    x_0 = rounded(STD * torch.randn(IMAGES, 1, 16, 16, generator=generator))
    schedule = linear(TIMESTEPS, beta_start=1e-3, beta_end=0.06)
    ddpm = DDPM(GaussianDenoiser(schedule, 0.0, STD), schedule, variance=variance)
    found = ddpm.variational_bound(x_0, generator=generator)
    assert found.terms.shape == (IMAGES, TIMESTEPS)
    t = torch.arange(TIMESTEPS)
    step = schedule, t, t - 1, torch.Size([TIMESTEPS, 1]), None
    log_ratio = EXACT.log_variance(*step) - variance.log_variance(*step)
    return Measured(
        found.total,
        error=found.total.std().item() / math.sqrt(IMAGES),
        entropy=math.log2(STD * 127.5 * math.sqrt(2 * math.pi * math.e)),
        gap=0.5 * (log_ratio.exp() - 1 - log_ratio).sum().item() / math.log(2),
    )
