"""Optimizers, by torch. The learning rate given here is the peak; `lr_schedule.py` shapes it over the run."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
    _check(lr, betas, eps)
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay:g}")
    return _without_copies(torch.optim.AdamW(parameters, lr, betas, eps, weight_decay, fused=True))


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
    _check(lr, betas, eps)
    return _without_copies(torch.optim.Adam(parameters, lr, betas, eps, fused=True))


def _check(lr: float, betas: tuple[float, float], eps: float) -> None:
    # torch takes 0 for two of them: a learning rate that trains nothing, and an eps that makes 0 / 0 of a gradient of
    # 0, which all layers but the last have in the first step. Its own messages do not name the keys.
    for name, value in (("lr", lr), ("eps", eps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value:g}")
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"betas must lie in [0, 1), got {beta:g}")


def _without_copies(optimizer: torch.optim.Adam) -> torch.optim.Optimizer:
    """The optimizer without a copy of every gradient in channels last, which torch's kernel for a CPU makes unread."""
    collect = optimizer._init_group

    def collect_in_memory_order(group, params_with_grad, grads, *state):
        has_complex = collect(group, params_with_grad, grads, *state)
        grads[:] = map(_in_memory_order, grads)
        return has_complex

    vars(optimizer)["_init_group"] = collect_in_memory_order
    return optimizer


def _in_memory_order(gradient: Tensor) -> Tensor:
    """A gradient in channels last on a CPU, as a contiguous view: the kernel reads what lies in memory."""
    if type(gradient) is not Tensor or gradient.device.type != "cpu" or gradient.is_contiguous():
        return gradient
    return gradient.permute(0, 2, 3, 1) if gradient.is_contiguous(memory_format=torch.channels_last) else gradient
