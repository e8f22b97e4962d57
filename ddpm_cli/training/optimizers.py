"""Optimizers, by torch. The learning rate given here is the peak; `lr_schedule.py` shapes it over the run."""

from collections.abc import Iterable

import torch
from torch import nn


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 2e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019).

    Raises:
        ValueError: if a value is out of its range.
    """
    _check_lr(lr)
    return torch.optim.AdamW(parameters, lr, betas, eps, weight_decay, fused=True)


def adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 2e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015), as DDPM used it.

    Raises:
        ValueError: if a value is out of its range.
    """
    _check_lr(lr)
    return torch.optim.Adam(parameters, lr, betas, eps, fused=True)


def _check_lr(lr: float) -> None:
    # torch checks the others itself, but takes a learning rate of 0, which trains nothing.
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be positive, got {lr:g}")
