"""Weights of the per-image loss as functions of the log signal-to-noise ratio."""

import torch
from torch import Tensor


def simple(log_snr: Tensor) -> Tensor:
    """Weight 1 at every noise level: L_simple (DDPM eq. 14). `[B]` -> `[B]`."""
    return torch.ones_like(log_snr)
