"""All that a run goes on from, as named tensors, and back."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm_cli.distributed.fsdp import part_for
from ddpm_cli.training.step_stats import StepResult, grad_norms

if TYPE_CHECKING:
    from ddpm_cli.training.trainer import Trainer

_SCALER_KEYS = ("scale", "_growth_tracker")


def named_tensors(trainer: "Trainer") -> dict[str, Tensor]:
    """Everything of a trainer besides its main EMA; of sharded tensors this rank's parts."""
    tensors = {f"model.{name}": value for name, value in trainer.ddpm.model.state_dict().items()}
    for name, parameter in trainer.ddpm.model.named_parameters():
        moments = trainer.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    counters = {
        "step": trainer.step,
        "ema_updates": trainer.ema.updates,
        "overflows": trainer.overflows,
        "overflows_in_a_row": trainer.overflows_in_a_row,
    }
    tensors |= {f"counter.{name}": torch.tensor(value) for name, value in counters.items()}
    if trainer.pending:  # so that the next entry of the log is the one it would have been
        losses, t, weights, _, skipped = zip(*trainer.pending, strict=True)
        tensors |= {"unlogged.losses": torch.stack(losses), "unlogged.t": torch.stack(t)}
        tensors["unlogged.weights"] = torch.stack(weights)
        tensors["unlogged.grad_norm"] = torch.tensor(grad_norms(trainer.pending), dtype=torch.float64)
        tensors["unlogged.skipped"] = torch.tensor(skipped)
    tensors |= {f"timesteps.{name}": tensor for name, tensor in trainer.timesteps.state().items()}
    tensors |= trainer.ema.state()
    if trainer.scaler.is_enabled():
        scaler = trainer.scaler.state_dict()
        tensors |= {f"scaler.{key}": torch.tensor(scaler[key]) for key in _SCALER_KEYS}
    return tensors


def restore(trainer: "Trainer", state: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
    """Go back to what `named_tensors` and the main EMA's weights were, each tensor in one piece.

    Raises:
        KeyError, RuntimeError, ValueError: if names or shapes are not those of this trainer.
    """
    for model, tensors in ((trainer.ddpm.model, _below("model.", state)), (trainer.ema.model, ema)):
        own = model.state_dict()
        model.load_state_dict({name: part_for(own.get(name), value) for name, value in tensors.items()})
    trainer.ema.load_state({name: value for name, value in state.items() if name.startswith(("ema.", "posthoc."))})
    moments = {
        index: {key: _laid_out_as(parameter, value) for key, value in _below(f"optimizer.{name}.", state).items()}
        for index, (name, parameter) in enumerate(trainer.ddpm.model.named_parameters())
    }
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    counters = {name: _count(name, value) for name, value in _below("counter.", state).items()}
    trainer.step = counters["step"]
    trainer.ema.updates = counters["ema_updates"]
    trainer.overflows, trainer.overflows_in_a_row = counters["overflows"], counters["overflows_in_a_row"]
    log = _below("unlogged.", state)
    if log:
        device = trainer.compute.device
        rows = zip(
            log["losses"].to(device),
            log["t"].to(device),
            log.get("weights", torch.ones_like(log["losses"])).to(device),
            log["grad_norm"].to(device, torch.float32),
            log["skipped"].tolist(),
            strict=True,
        )
        trainer.pending = [StepResult(*row) for row in rows]
    trainer.timesteps.load_state(_below("timesteps.", state))
    if trainer.scaler.is_enabled():
        saved = {key: state[f"scaler.{key}"].item() for key in _SCALER_KEYS}
        trainer.scaler.load_state_dict(trainer.scaler.state_dict() | saved)


def _count(name: str, value: Tensor) -> int:
    count = value.item()
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"the training state says counter.{name} is {count}")
    return count


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in its parameter's memory format: fused optimizers walk both in the order they lie in memory."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(part_for(parameter, value))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
