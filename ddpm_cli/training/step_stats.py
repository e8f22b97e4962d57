"""What a step leaves to log, and what the log says of many."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class StepResult(NamedTuple):
    """What one optimizer step leaves to log. The tensors stay on the device: reading them waits for it."""

    losses: Tensor  # [B], of the whole batch on every rank
    t: Tensor  # [B]
    weights: Tensor  # [B], by which the losses count
    grad_norm: Tensor  # [], before clipping
    skipped: bool  # float16 overflow: nothing was changed


class Progress(NamedTuple):
    """Everything the log says about the steps since it last said something."""

    step: int
    losses: Tensor  # [steps * B], on the CPU
    t: Tensor  # [steps * B], on the CPU
    loss: float  # their weighted mean: that over uniformly drawn t
    grad_norm: float  # mean
    learning_rate: float
    ema_decay: float
    images_per_second: float
    data_fraction: float  # of the time, spent waiting for data
    overflows: int  # steps skipped for float16 overflow since the run began


def of_steps(results: Sequence[StepResult]) -> dict[str, Any]:
    """What a `Progress` says of these steps: `losses`, `t`, `loss` and `grad_norm`. Waits for the device."""
    losses = torch.cat([result.losses for result in results]).cpu()
    weights = torch.cat([result.weights for result in results]).cpu()
    kept = [norm for norm, result in zip(grad_norms(results), results, strict=True) if not result.skipped]
    return {
        "losses": losses,
        "t": torch.cat([result.t for result in results]).cpu(),
        "loss": (weights * losses).mean().item(),
        "grad_norm": sum(kept) / len(kept) if kept else float("nan"),
    }


def grad_norms(results: Sequence[StepResult]) -> list[float]:
    """Of each step, in one read from the device."""
    return torch.stack([result.grad_norm for result in results]).tolist()
