"""Weights of the per-image loss as functions of the signal-to-noise ratio.

Each takes log SNR `[B]` and `log_scale` `[B]`, with which the prediction converts the error of x_0 to that of its own
output (`Epsilon.log_scale`), and returns the weight of the output's squared error, `[B]`. A paper gives its weight for
one prediction; through `log_scale` it means the same for all others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.diffusion.prediction import check_sigma_data, log_edm_weight

Weighting = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Uniform:
    """Weight 1 at every noise level, for every prediction: L_simple (DDPM eq. 14)."""

    def __call__(self, log_snr: Tensor, log_scale: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


@dataclass(frozen=True, kw_only=True)
class MinSNR:
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023, section 3.4): 5 is the paper's gamma.

    Raises:
        ValueError: if `gamma` is not positive.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma:g}")

    def __call__(self, log_snr: Tensor, log_scale: Tensor) -> Tensor:
        return (log_snr.clamp(max=math.log(self.gamma)) - log_scale).exp()


@dataclass(frozen=True, kw_only=True)
class P2:
    """1 / (k + SNR)^gamma on the error of eps (Choi et al. 2022, eq. 8): gamma 0.5 or 1 and k 1 in the paper.

    Raises:
        ValueError: if `gamma` is negative or `k` is not positive.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma must not be negative, got {self.gamma:g}")
        if not self.k > 0:
            raise ValueError(f"k must be positive, got {self.k:g}")

    def __call__(self, log_snr: Tensor, log_scale: Tensor) -> Tensor:
        log_weight = -self.gamma * (math.log(self.k) + F.softplus(log_snr - math.log(self.k)))
        return (log_weight + log_snr - log_scale).exp()


@dataclass(frozen=True, kw_only=True)
class EDM:
    """SNR + 1 / sigma_data^2 on the error of x_0: 1 / c_out^2 (Karras et al. 2022, table 1), 1 with `prediction=edm`.

    Raises:
        ValueError: if `sigma_data` is not positive.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_sigma_data(self.sigma_data)

    def __call__(self, log_snr: Tensor, log_scale: Tensor) -> Tensor:
        return (log_edm_weight(log_snr, self.sigma_data) - log_scale).exp()


@dataclass(frozen=True)
class TruncatedSNR:
    """max(SNR, 1) on the error of x_0: the worse of the errors of eps and x_0 (Salimans & Ho 2022, section 4)."""

    def __call__(self, log_snr: Tensor, log_scale: Tensor) -> Tensor:
        return (log_snr.clamp(min=0) - log_scale).exp()
