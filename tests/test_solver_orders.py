"""Solvers against closed forms: their order of convergence, and the distribution that the noisy ones draw from."""

import math
from functools import partial

import pytest
import torch
from convergence import (
    CORRELATED,
    DATA,
    T,
    errors_of,
    exact_answers,
    fitted_slope,
    integrated,
    noise_to_start_from,
    smooth_schedule,
)
from gaussian import Gaussian, Mixture
from torch import Tensor

from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.diffusion.variance import fixed_large, fixed_small


@pytest.fixture(scope="module")
def exact() -> dict[str, Tensor]:
    return exact_answers()


def test_the_reference_integrator_finds_the_closed_form():
    schedule, x = smooth_schedule(), noise_to_start_from()
    start, end = schedule.points([T - 1, 0])
    one_cluster = Gaussian([0.2, -0.9, 0.5], [[0.09, 0, 0], [0, 0.09, 0], [0, 0, 0.09]])
    found = integrated(Mixture([[0.2, -0.9, 0.5]], 0.3), schedule, x)
    torch.testing.assert_close(found, one_cluster.carried(x, start, end), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("data", ["correlated", "clusters"])
@pytest.mark.parametrize(
    ("sampler", "lowest", "highest"),
    [
        (samplers.ddim, 0.8, 1.2),
        (samplers.heun, 1.8, 2.2),
        (samplers.dpmpp_2m, 1.8, 2.2),
        # The corrector is of third order, and all but the last step are built on what it corrected.
        (samplers.unipc, 1.8, 3.5),
    ],
)
def test_solvers_have_their_order(sampler: Sampler, lowest: float, highest: float, data: str, exact: dict[str, Tensor]):
    errors = errors_of(sampler, DATA[data], exact[data])
    slope = fitted_slope(errors)
    assert lowest <= slope <= highest, errors


@pytest.mark.parametrize(
    ("sampler", "bias"),
    [
        # How far the sampler's own covariance is from the data's, in units of the data's variances, at this T and these
        # steps: found with 300,000 draws. fixed_small and DDIM at eta = 1 are the same chain.
        (partial(samplers.ddpm, variance=fixed_small), 0.034),
        (partial(samplers.ddpm, variance=fixed_large), 0.005),
        (partial(samplers.ddim, steps=400, eta=1.0), 0.034),
        (partial(samplers.dpmpp_2m_sde, steps=100, spacing="trailing"), 0.031),
        (partial(samplers.dpmpp_2m_sde, steps=100, spacing="log_snr"), 0.005),
    ],
    ids=["ddpm small", "ddpm large", "ddim", "dpmpp_2m_sde", "dpmpp_2m_sde log_snr"],
)
def test_noisy_samplers_draw_correlated_data(sampler: Sampler, bias: float):
    schedule, n = linear(400, beta_start=2.5e-4, beta_end=0.05), 20_000
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn((n, 1, 1, 3), generator=generator)

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        x_0, eps, _ = CORRELATED.denoiser(schedule)(x.double(), t)
        return Denoised(x_0.float(), eps.float())

    *_, last = sampler(denoise, schedule, noise(), noise)
    x = last.x[:, 0, 0].double()
    scale = CORRELATED.covariance.diagonal().sqrt()
    mean = (x.mean(0) - CORRELATED.mean) / scale
    covariance = (x.T.cov() - CORRELATED.covariance) / torch.outer(scale, scale)
    assert mean.abs().max() < 4 / math.sqrt(n)
    assert covariance.abs().max() < bias + 4 * math.sqrt(2 / n)
