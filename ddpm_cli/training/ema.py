"""Exponential moving average of a network's parameters: what is sampled from."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A second network that follows the first: ema <- d ema + (1 - d) parameter after every optimizer step.

    d = min(decay, (1 + n) / (10 + n)) for the n-th update, so that the random start is forgotten soon. Buffers are
    copied, not averaged.

    Args:
        model: the network to follow; `self.model` is a copy in eval mode.
        decay: d in [0, 1); 0 makes the average the network itself.

    Raises:
        ValueError: if `decay` lies outside [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay:g}")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @property
    def current_decay(self) -> float:
        """d of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        averages: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, list(model.parameters()), 1 - self.current_decay)  # pyright: ignore[reportPrivateImportUsage]
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
        self.updates += 1
