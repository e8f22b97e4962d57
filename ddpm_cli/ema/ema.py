"""Moving averages of a network's parameters, from which images are sampled."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ddpm_cli.distributed.fsdp import distribute_as, local_tensors
from ddpm_cli.ema.posthoc import check_lengths, ema_prefix, exponent, newest_weight, posthoc_prefix


class EMA:
    """Averages that follow a network: ema <- d ema + (1 - d) parameter after every optimizer step.

    Exponential averages have d = min(decay, (1 + n) / (10 + n)) at the n-th update, n = 0, 1, ..., so that they soon
    forget the random start. Power-function averages have d = (1 - 1 / t)^(gamma + 1) at the t-th update, t = 1, 2, ...:
    an average of any length is reconstructed from their snapshots after the run (Karras et al. 2024; see
    `ddpm_cli.ema.posthoc`).

    Args:
        model: the network to follow. `self.model` is a copy in eval mode that holds the average of the first decay;
            its buffers are copied, not averaged.
        replica: that copy, if it has been made already; None: it is made here.
        decays: d of each exponential average, in [0, 1); 0 makes the average the network itself.
        posthoc: relative length of each power-function average, at most 8 of them, from 0.001 up to below
            1 / sqrt(12).

    Raises:
        ValueError: if a value lies outside its range or is given twice, there is no decay, or there are too many
            lengths.
    """

    def __init__(
        self,
        model: nn.Module,
        replica: nn.Module | None = None,
        *,
        decays: Sequence[float] = (0.9999,),
        posthoc: Sequence[float] = (),
    ):
        if len(decays) == 0:
            raise ValueError("decays must have at least one; decays=[0.0] makes the average the network itself")
        for decay in decays:
            if not 0 <= decay < 1:
                raise ValueError(f"decays must lie in [0, 1), got {decay:g}")
        if len(set(decays)) < len(decays):
            raise ValueError(f"decays must differ from each other, got {list(decays)}")
        try:
            check_lengths(posthoc)
        except ValueError as error:
            raise ValueError(f"posthoc {error}") from error
        self.decays = tuple(float(decay) for decay in decays)
        self.posthoc = tuple(float(length) for length in posthoc)
        self.updates = 0
        self.model = (copy.deepcopy(model) if replica is None else replica).eval().requires_grad_(False)
        # The parameters of the other averages, each list in the order and the memory format of the network's.
        self._exponential = {decay: _copies(model) for decay in self.decays[1:]}
        self._power = {length: _copies(model) for length in self.posthoc}
        self._gamma = {length: exponent(length) for length in self.posthoc}

    @property
    def current_decay(self) -> float:
        """d of the main average's next update."""
        return self._current(self.decays[0])

    @torch.no_grad()
    def update(self, model: nn.Module, *, unless: Tensor | None = None) -> None:
        """Follow the network after one optimizer step; if `unless` is 1, no average changes."""
        follow = partial(_follow, list(model.parameters()), unless=unless)
        follow(list(self.model.parameters()), 1 - self.current_decay)
        for decay, averages in self._exponential.items():
            follow(averages, 1 - self._current(decay))
        for length, averages in self._power.items():
            follow(averages, newest_weight(self.updates + 1, self._gamma[length]))
        for copied, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of all averages but the main one, `model`; each name is the parameter's with a prefix."""
        places = {id(parameter): i for i, parameter in enumerate(self.model.parameters())}
        main = self.model.state_dict(keep_vars=True)
        return {
            f"{prefix}{name}": averages[places[id(tensor)]] if id(tensor) in places else tensor
            for prefix, averages in self._further()
            for name, tensor in main.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict()` returned; `model`, with its buffers, must be restored before.

        Raises:
            ValueError: if names or shapes are not those of this run.
        """
        own = self.state_dict()
        misplaced = min(own.keys() ^ state.keys(), default=None)
        if misplaced is not None:
            problem = "is missing" if misplaced in own else "has no place"
            raise ValueError(f"the run kept other averages: {misplaced} {problem}")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} is {list(state[name].shape)}, should be {list(tensor.shape)}")
            tensor.copy_(distribute_as(state[name], tensor))

    def snapshot(self) -> dict[str, Tensor]:
        """The parameters of the power-function averages, to be kept for good."""
        names = [name for name, _ in self.model.named_parameters()]
        return {
            f"{posthoc_prefix(length)}{name}": average.float()
            for length, averages in self._power.items()
            for name, average in zip(names, averages, strict=True)
        }

    def _current(self, decay: float) -> float:
        return min(decay, _risen(self.updates))

    def _further(self) -> Iterator[tuple[str, list[Tensor]]]:
        for decay, averages in self._exponential.items():
            yield ema_prefix(decay), averages
        for length, averages in self._power.items():
            yield posthoc_prefix(length), averages


def _copies(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _follow(parameters: list[Tensor], averages: list[Tensor], weight: float, *, unless: Tensor | None) -> None:
    averages, parameters = local_tensors(averages), local_tensors(parameters)
    if unless is None:
        torch._foreach_lerp_(averages, parameters, weight)  # pyright: ignore[reportPrivateImportUsage]
        return
    steps = torch._foreach_sub(parameters, averages)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_mul_(steps, weight * (1 - unless))  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(averages, steps)  # pyright: ignore[reportPrivateImportUsage]


def _risen(updates: int) -> float:
    """The most that a decay can be after as many updates."""
    return (1 + updates) / (10 + updates)


def updates_until(decay: float) -> float:
    """After how many updates an average has its decay: where `_risen` is it."""
    return (10 * decay - 1) / (1 - decay)
