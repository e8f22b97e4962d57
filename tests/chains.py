"""The mean and the covariance that ancestral samplers draw, exactly, where the data are Gaussian.

There the exact denoiser is affine in x, so every step is too, and a Gaussian stays one: its two moments are carried
from step to step in float64. The steps are written from the papers, in alpha_bar, and share no code with ours.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from gaussian import Gaussian
from torch import Tensor


class Moments(NamedTuple):
    mean: Tensor  # [d]
    covariance: Tensor  # [d, d]


class Step(NamedTuple):
    """x_s = of_x x_t + of_x_0 x_0 + of_last x_0' + sqrt(variance) noise; x_0 seen in x_t, x_0' in the step before."""

    of_x: float
    of_x_0: float
    of_last: float
    variance: float


# alpha_bar where the step before began (None: there was none), where this one begins, and where it leads.
Rule = Callable[[float | None, float, float], Step]


def ddpm(large: float) -> Rule:
    """DDPM eq. 7, with beta_tilde for a variance at 0, beta at 1, and between them Improved DDPM's eq. 15."""

    def rule(last: float | None, t: float, s: float) -> Step:
        beta = 1 - t / s
        beta_tilde = (1 - s) / (1 - t) * beta
        variance = beta**large * beta_tilde ** (1 - large)
        return Step(math.sqrt(t / s) * (1 - s) / (1 - t), math.sqrt(s) * beta / (1 - t), 0.0, variance)

    return rule


def ddim(eta: float) -> Rule:
    """DDIM eq. 12 with sigma of eq. 16."""

    def rule(last: float | None, t: float, s: float) -> Step:
        variance = eta**2 * (1 - s) / (1 - t) * (1 - t / s)
        of_eps = math.sqrt(1 - s - variance)
        of_x = of_eps / math.sqrt(1 - t)  # eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t)
        return Step(of_x, math.sqrt(s) - of_x * math.sqrt(t), 0.0, variance)

    return rule


def dpmpp_2m_sde(last: float | None, t: float, s: float) -> Step:
    """SDE-DPM-Solver++(2M), in Lu et al. 2022 (DPM-Solver++), section 5; of first order where there was no step."""

    def half_log_snr(alpha_bar: float) -> float:
        return 0.5 * math.log(alpha_bar / (1 - alpha_bar))

    h = half_log_snr(s) - half_log_snr(t)
    growth = 0.0 if last is None else h / (half_log_snr(t) - half_log_snr(last))  # 1 / r
    of_x_0 = math.sqrt(s) * (1 - math.exp(-2 * h))
    return Step(
        of_x=math.sqrt((1 - s) / (1 - t)) * math.exp(-h),
        of_x_0=of_x_0 * (1 + growth / 2),
        of_last=-of_x_0 * growth / 2,
        variance=(1 - s) * (1 - math.exp(-2 * h)),
    )


def moments(data: Gaussian, betas: Tensor, times: list[int], rule: Rule) -> Moments:
    """Of what a sampler ends on that starts from N(0, I), visits `times` and then, without noise, the x_0 it sees."""
    alpha_bar = torch.cumprod(1 - betas.double(), 0).tolist()
    d = len(data.mean)
    one, nothing = torch.eye(d, dtype=torch.float64), torch.zeros((d, d), dtype=torch.float64)
    # Of (x, x_0'), jointly, since a step of second order needs both: [2 d] and [2 d, 2 d].
    mean, covariance = torch.zeros(2 * d, dtype=torch.float64), torch.block_diag(one, nothing)
    last = None
    for i, t in enumerate(alpha_bar[time] for time in times):
        # E[x_0 | x_t] = m + sqrt(alpha_bar) S Var(x_t)^-1 (x_t - sqrt(alpha_bar) m) = G x_t + g
        G = math.sqrt(t) * data.covariance @ torch.linalg.inv(t * data.covariance + (1 - t) * one)
        g = data.mean - math.sqrt(t) * G @ data.mean
        final = i + 1 == len(times)
        step = Step(0.0, 1.0, 0.0, 0.0) if final else rule(last, t, alpha_bar[times[i + 1]])
        to_x = torch.cat([step.of_x * one + step.of_x_0 * G, step.of_last * one], dim=1)
        matrix = torch.cat([to_x, torch.cat([G, nothing], dim=1)])
        mean = matrix @ mean + torch.cat([step.of_x_0 * g, g])
        covariance = matrix @ covariance @ matrix.T + torch.block_diag(step.variance * one, nothing)
        last = t
    return Moments(mean[:d], covariance[:d, :d])
