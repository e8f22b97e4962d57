"""A model with a known answer: the exact denoiser of Gaussian data, for tests of samplers and losses."""

import torch
from torch import Tensor, nn

from ddpm_cli.diffusion.schedule import NoiseSchedule


class GaussianDenoiser(nn.Module):
    """The eps-network that is optimal for data N(mean, std^2 I): eps = sigma (x_t - alpha mean) / Var(x_t)."""

    def __init__(self, schedule: NoiseSchedule, mean: float, std: float):
        super().__init__()
        self.schedule, self.mean, self.std = schedule, mean, std
        self.anchor = nn.Parameter(torch.zeros(()))  # a module's device is that of its parameters

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma(t, x_t.shape)
        return sigma * (x_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
