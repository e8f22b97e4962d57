"""Converts the whole state of a run to named tensors and back."""

import torch
from torch import Tensor

from ddpm_cli.checkpoint.tensor_names import AVERAGES, COUNTER, MODEL, OPTIMIZER, SCALER, TIMESTEPS, UNLOGGED, below
from ddpm_cli.distributed.fsdp import distribute_as
from ddpm_cli.training.step_stats import StepResult, grad_norms
from ddpm_cli.training.trainer import Trainer

_SCALER_KEYS = ("scale", "_growth_tracker")


def capture(trainer: Trainer) -> dict[str, Tensor]:
    """The state of a trainer except its main EMA; of sharded tensors this rank's parts.

    Raises:
        NonFiniteError: if a step so far was not finite; the trainer is then as it was before that step.
    """
    trainer.check_finite()
    tensors = {f"{MODEL}{name}": value for name, value in trainer.ddpm.model.state_dict().items()}
    for name, parameter in trainer.ddpm.model.named_parameters():
        moments = trainer.optimizer.state.get(parameter, {})
        tensors |= {f"{OPTIMIZER}{name}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    counters = {
        "step": trainer.step,
        "ema_updates": trainer.ema.updates,
        "overflows": trainer.overflows,
        "overflows_in_a_row": trainer.overflows_in_a_row,
    }
    tensors |= {f"{COUNTER}{name}": torch.tensor(value) for name, value in counters.items()}
    tensors |= {f"{UNLOGGED}{name}": tensor for name, tensor in _stacked(trainer.pending).items()}
    tensors |= {f"{TIMESTEPS}{name}": tensor for name, tensor in trainer.timestep_sampler.state_dict().items()}
    tensors |= trainer.ema.state_dict()
    if trainer.scaler.is_enabled():
        scaler = trainer.scaler.state_dict()
        tensors |= {f"{SCALER}{key}": torch.tensor(scaler[key]) for key in _SCALER_KEYS}
    return tensors


def restore(trainer: Trainer, state: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
    """Restore what `capture` returned, and the main EMA's weights, each tensor in one piece.

    Raises:
        ValueError: if names or shapes are not those of this trainer.
    """
    try:
        _restore_weights(trainer, state, ema)
        _restore_moments(trainer, state)
        counters = {name: _count(name, value) for name, value in below(COUNTER, state).items()}
        trainer.step = counters["step"]
        trainer.ema.updates = counters["ema_updates"]
        trainer.overflows, trainer.overflows_in_a_row = counters["overflows"], counters["overflows_in_a_row"]
        trainer.pending = _unstacked(below(UNLOGGED, state), trainer.compute.device)
        trainer.timestep_sampler.load_state_dict(below(TIMESTEPS, state))
        if trainer.scaler.is_enabled():
            saved = {key: state[f"{SCALER}{key}"].item() for key in _SCALER_KEYS}
            trainer.scaler.load_state_dict(trainer.scaler.state_dict() | saved)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the training state does not fit this configuration: {error}") from error


def _stacked(pending: list[StepResult]) -> dict[str, Tensor]:
    """The steps that have not been logged, so that the next entry of the log is that of an uninterrupted run."""
    if not pending:
        return {}
    losses, t, weights, _, skipped = zip(*pending, strict=True)
    return {
        "losses": torch.stack(losses),
        "t": torch.stack(t),
        "weights": torch.stack(weights),
        "grad_norm": torch.tensor(grad_norms(pending), dtype=torch.float64),
        "skipped": torch.tensor(skipped),
    }


def _unstacked(pending: dict[str, Tensor], device: torch.device) -> list[StepResult]:
    if not pending:
        return []
    rows = zip(
        pending["losses"].to(device),
        pending["t"].to(device),
        pending.get("weights", torch.ones_like(pending["losses"])).to(device),
        pending["grad_norm"].to(device, torch.float32),
        pending["skipped"].tolist(),
        strict=True,
    )
    return [StepResult(*row) for row in rows]


def _restore_weights(trainer: Trainer, state: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
    for model, tensors in ((trainer.ddpm.model, below(MODEL, state)), (trainer.ema.model, ema)):
        own = model.state_dict()
        model.load_state_dict({name: distribute_as(value, own.get(name)) for name, value in tensors.items()})
    further = {name: value for name, value in state.items() if name.startswith(AVERAGES)}
    trainer.ema.load_state_dict(further)


def _restore_moments(trainer: Trainer, state: dict[str, Tensor]) -> None:
    moments = {
        index: {key: _laid_out_as(parameter, value) for key, value in below(f"{OPTIMIZER}{name}.", state).items()}
        for index, (name, parameter) in enumerate(trainer.ddpm.model.named_parameters())
    }
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _count(name: str, value: Tensor) -> int:
    count = value.item()
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"the training state says {COUNTER}{name} is {count}")
    return count


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in its parameter's memory format: fused optimizers read both in memory order."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(distribute_as(value, parameter))
