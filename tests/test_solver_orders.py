"""Solvers against closed forms: their order of convergence, and the distribution that the noisy ones draw from."""

import math
from itertools import pairwise

import chains
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

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.samplers import (
    DDIM,
    Ancestral,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    Heun,
    Noise,
    Sampler,
    UniPC,
)
from ddpm_cli.diffusion.spacing import visited
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall, LearnedRange


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
        (DDIM(), 0.8, 1.2),
        (Heun(), 1.8, 2.2),
        (DPMSolverPP2M(), 1.8, 2.2),
        # The corrector is of third order, and all but the last step are built on what it corrected.
        (UniPC(), 1.8, 3.5),
    ],
    ids=["ddim", "heun", "dpmpp_2m", "unipc"],
)
def test_solvers_have_their_order(sampler: Sampler, lowest: float, highest: float, data: str, exact: dict[str, Tensor]):
    errors = errors_of(sampler, DATA[data], exact[data])
    slope = fitted_slope(errors)
    assert lowest <= slope <= highest, errors


# What noisy samplers draw ---------------------------------------------------------------------------------------------


def betas_of(timesteps: int) -> Tensor:
    """The same process in steps of different length. It leaves less than 1e-4 of x_0 in x_{T-1}."""
    return torch.linspace(0.1 / timesteps, 40 / timesteps, timesteps, dtype=torch.float64)


BETAS = betas_of(100)
EVERY, STRIDED = list(range(99, -1, -1)), list(range(99, -1, -4))
UNEVEN = visited(NoiseSchedule(BETAS), 30, "log_snr")
# The sampler, its step as papers have it, and the timesteps visited.
CHAINS = {
    "ddpm fixed_small": (Ancestral(variance=FixedSmall()), chains.ddpm(0.0), EVERY),
    "ddpm fixed_large": (Ancestral(variance=FixedLarge()), chains.ddpm(1.0), EVERY),
    "ddpm learned_range": (Ancestral(variance=LearnedRange()), chains.ddpm(0.65), EVERY),
    "ddpm strided": (Ancestral(variance=FixedLarge()), chains.ddpm(1.0), STRIDED),
    "ddim eta 1": (DDIM(eta=1.0), chains.ddim(1.0), EVERY),
    "ddim eta 0.5 strided": (DDIM(eta=0.5), chains.ddim(0.5), STRIDED),
    "dpmpp_2m_sde": (DPMSolverPP2MSDE(), chains.dpmpp_2m_sde, EVERY),
    "dpmpp_2m_sde uneven": (DPMSolverPP2MSDE(), chains.dpmpp_2m_sde, UNEVEN),
}
SCALE = CORRELATED.covariance.diagonal().sqrt()


def drawn(sampler: Sampler, times: list[int], x: Tensor, noise: Noise) -> Tensor:
    """What `sampler` makes of x with CORRELATED's exact denoiser, `[B, 3]`."""
    schedule = NoiseSchedule(BETAS)
    exact = CORRELATED.denoiser(schedule)
    fraction = torch.full_like(x, 0.3)  # of which learned_range makes (0.3 + 1) / 2 = 0.65

    def denoise(x: Tensor, t: int) -> Denoised:
        return exact(x, t)._replace(variance=fraction)

    *_, last = sampler.solve(denoise, schedule, times, x, noise)
    return last[:, 0, 0]


@pytest.mark.parametrize(
    ("rule", "lowest", "highest"),
    [
        *((rule, 1.8, 2.2) for rule in (chains.ddpm(0.0), chains.ddpm(0.65), chains.ddpm(1.0))),
        *((rule, 1.8, 2.2) for rule in (chains.ddim(0.5), chains.ddim(1.0))),
        (chains.dpmpp_2m_sde, 3.5, 4.5),
    ],
)
def test_the_exact_chains_approach_the_data(rule: chains.Rule, lowest: float, highest: float):
    """Twice the steps halve the covariance's error, or quarter it; the mean is wrong by what x_{T-1} keeps of x_0."""
    errors = []
    for timesteps in (400, 800, 1600):
        mean, covariance = chains.moments(CORRELATED, betas_of(timesteps), list(range(timesteps))[::-1], rule)
        assert ((mean - CORRELATED.mean) / SCALE).abs().max() < 1e-4
        errors.append(((covariance - CORRELATED.covariance) / torch.outer(SCALE, SCALE)).abs().max().item())
    assert all(lowest < error / half < highest for error, half in pairwise(errors)), errors


@pytest.mark.parametrize(("sampler", "rule", "times"), CHAINS.values(), ids=CHAINS)
def test_noisy_samplers_are_the_papers_chains(sampler: Sampler, rule: chains.Rule, times: list[int]):
    """Without chance: what each number of x_{T-1} and of each step's noise does to the result, one number an image."""
    d = len(SCALE)
    sources = torch.eye(d * (1 + len(times)), dtype=torch.float64).view(-1, 1 + len(times), 1, 1, d)
    sources = torch.cat([torch.zeros_like(sources[:1]), sources])  # the first image gets nothing: it is the mean
    given = iter(sources.unbind(1))
    x = drawn(sampler, times, next(given), lambda: next(given))
    responses = x[1:] - x[0]
    mean, covariance = chains.moments(CORRELATED, BETAS, times, rule)
    torch.testing.assert_close(x[0], mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(responses.T @ responses, covariance, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "rule", "times"), CHAINS.values(), ids=CHAINS)
def test_noisy_samplers_draw_correlated_data(sampler: Sampler, rule: chains.Rule, times: list[int]):
    n, generator = 50_000, torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn((n, 1, 1, 3), generator=generator, dtype=torch.float64)

    x = drawn(sampler, times, noise(), noise)
    mean, covariance = chains.moments(CORRELATED, BETAS, times, rule)
    variances = covariance.diagonal()
    mean_error = (variances / n).sqrt()
    covariance_error = ((torch.outer(variances, variances) + covariance.square()) / n).sqrt()
    assert ((x.mean(0) - mean).abs() < 4.5 * mean_error).all()
    assert ((x.T.cov() - covariance).abs() < 4.5 * covariance_error).all()


MIXED = Mixture([[-1.6, 0.8, 0.0], [1.2, 1.4, -0.6], [0.4, -1.8, 1.0]], 0.3, [0.5, 0.3, 0.2])


@pytest.mark.parametrize("n", [1500, pytest.param(6000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["ddpm fixed_small", "ddpm fixed_large", "dpmpp_2m_sde"])
def test_noisy_samplers_draw_a_mixture(name: str, n: int):
    """Each cluster has its share, its mean, and the variance that the exact chain of its Gaussian alone has, which
    1000 steps bring within 5 % of the cluster's own.

    The clusters lie five standard deviations and more from the borders between them, so that all are told apart.
    """
    timesteps, generator = 1000, torch.Generator().manual_seed(0)
    sampler, rule, _ = CHAINS[name]
    schedule, times = NoiseSchedule(betas_of(timesteps)), list(range(timesteps))[::-1]

    def noise() -> Tensor:
        return torch.randn((n, 1, 1, 3), generator=generator, dtype=torch.float64)

    *_, last = sampler.solve(MIXED.denoiser(schedule), schedule, times, noise(), noise)
    x = last[:, 0, 0]
    nearest = torch.cdist(x, MIXED.means).argmin(1)
    for k, (weight, centre) in enumerate(zip(MIXED.weights.tolist(), MIXED.means, strict=True)):
        of_cluster = x[nearest == k]
        m = len(of_cluster)
        assert abs(m / n - weight) < 4.5 * math.sqrt(weight * (1 - weight) / n)
        alone = Gaussian(centre.tolist(), (MIXED.variance * torch.eye(3)).tolist())
        _, covariance = chains.moments(alone, betas_of(timesteps), times, rule)
        variance = covariance[0, 0].item()
        assert variance == pytest.approx(MIXED.variance, rel=0.05)
        assert ((of_cluster.mean(0) - centre).abs() < 4.5 * math.sqrt(variance / m)).all()
        assert of_cluster.var(0).mean().item() == pytest.approx(variance, rel=4.5 * math.sqrt(2 / (3 * m)))
