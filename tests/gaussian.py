"""Models with known answers: exact denoisers of Gaussian data and of mixtures, for tests of samplers and losses."""

import torch
from torch import Tensor, nn

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, Point


class GaussianDenoiser(nn.Module):
    """The eps-network that is optimal for data N(mean, std^2 I): eps = sigma (x_t - alpha mean) / Var(x_t)."""

    def __init__(self, schedule: NoiseSchedule, mean: float, std: float):
        super().__init__()
        self.schedule, self.mean, self.std = schedule, mean, std
        self.anchor = nn.Parameter(torch.zeros(()))  # a module's device is that of its parameters

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma(t, x_t.shape)
        return sigma * (x_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)


class Gaussian:
    """Data N(mean, covariance) over the d pixels of images `[B, 1, 1, d]`, in float64."""

    def __init__(self, mean: list[float], covariance: list[list[float]]):
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.covariance = torch.tensor(covariance, dtype=torch.float64)
        self.variances, self.axes = torch.linalg.eigh(self.covariance)  # [d], and the columns of [d, d]

    def denoised(self, x: Tensor, alpha: float, sigma: float) -> Denoised:
        """E[x_0 | x_t] and E[eps | x_t]: with C = Var(x_t), x_0 = m + alpha S C^-1 (x_t - alpha m)."""
        along = (x - alpha * self.mean) @ self.axes / (alpha**2 * self.variances + sigma**2)
        return Denoised(self.mean + alpha * (self.variances * along) @ self.axes.T, sigma * along @ self.axes.T)

    def denoiser(self, schedule: NoiseSchedule) -> Denoiser:
        return _at(self, schedule)

    def carried(self, x: Tensor, start: Point, end: Point) -> Tensor:
        """Where the probability flow takes x: each axis is scaled as the marginals' standard deviations are."""
        ratio = (_variance(self.variances, end) / _variance(self.variances, start)).sqrt()
        return end.alpha * self.mean + ((x - start.alpha * self.mean) @ self.axes * ratio) @ self.axes.T


class Mixture:
    """Data in K clusters N(mean_k, std^2 I) over the d pixels of images `[B, 1, 1, d]`, in float64.

    Args:
        weights: each cluster's share of the data; None: they are equal.
    """

    def __init__(self, means: list[list[float]], std: float, weights: list[float] | None = None):
        self.means = torch.tensor(means, dtype=torch.float64)  # [K, d]
        self.variance = std**2
        self.weights = torch.tensor([1 / len(means)] * len(means) if weights is None else weights, dtype=torch.float64)

    def denoised(self, x: Tensor, alpha: float, sigma: float) -> Denoised:
        variance = alpha**2 * self.variance + sigma**2
        away = x[:, 0, 0, None] - alpha * self.means  # [B, K, d]
        share = torch.softmax(self.weights.log() - away.square().sum(2) / (2 * variance), dim=1)[:, :, None]
        x_0 = (share * (self.means + alpha * self.variance / variance * away)).sum(1)
        return Denoised(x_0[:, None, None], (share * away).sum(1)[:, None, None] * sigma / variance)

    def denoiser(self, schedule: NoiseSchedule) -> Denoiser:
        return _at(self, schedule)


def _at(data: Gaussian | Mixture, schedule: NoiseSchedule) -> Denoiser:
    """The exact denoiser as a sampler calls it."""

    def denoise(x: Tensor, t: int) -> Denoised:
        [point] = schedule.points([t])
        return data.denoised(x, point.alpha, point.sigma)

    return denoise


def _variance(variances: Tensor, point: Point) -> Tensor:
    return point.alpha**2 * variances + point.sigma**2
