"""A new run that starts from another run's whole state, with other settings.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddpm_cli.config import compare
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.paths import seen_from
from ddpm_cli.config.schema import check
from ddpm_cli.config.train_options import OPTIONS, TrainOptions
from ddpm_cli.io.command_line import override, word
from ddpm_cli.io.run_identity import Identity, identity_of
from ddpm_cli.training.build import build_training
from ddpm_cli.training.resume import Saved, read_checkpoint, run_and_checkpoint, trusted

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.checkpoint import Metadata
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.training.build import Training
    from ddpm_cli.training.trainer import Trainer


class Origin(NamedTuple):
    """The state from which a new run starts."""

    saved: Saved
    config: dict  # of the new run
    run: Path  # the directory of the old one
    differs: list[str]  # one line for every option that differs in the new run

    def identity(self, name: str | None) -> Identity:
        """The identity of a new run that starts from it."""
        own = identity_of(self.run)
        return Identity(
            name=name,
            begun_in=os.getcwd(),
            forked_from=str(self.saved.path.absolute()),
            fork_of=None if own is None else own.id,
            differs=tuple(self.differs),
        )


def read_origin(invocation: Invocation, world: "World") -> Origin:
    """The checked checkpoint that `fork=` names, and the configuration of the run that will start from it.

    Raises:
        ConfigError: if there is no such checkpoint, or an option that nothing takes.
    """
    if invocation.resume not in (None, "auto"):
        raise ConfigError("fork: starts a new run, resume=RUN_DIR resumes the old one; leave out either")
    assert invocation.fork is not None
    with naming("fork"):
        run, checkpoint, _ = run_and_checkpoint(invocation.fork, "fork")
        saved = read_checkpoint(run, checkpoint, trusted({}, invocation), world)
        identity = identity_of(run)
    config = compare.fork(saved.metadata.config, invocation.changes, invocation.chosen)
    config = check(config, OPTIONS, spelt=invocation.spelt)
    differs = compare.all_differences(saved.metadata.config, config)
    if "data" not in invocation.chosen:
        config = seen_from(None if identity is None else identity.begun_in, config, invocation.changes)
    return Origin(saved, config, run, differs)


def fork(origin: Origin, world: "World") -> "Training":
    """A run of the new configuration, with the weights, moments, averages and step of the origin.

    Raises:
        ConfigError: if it cannot be run here, or its network does not fit these weights.
    """
    from ddpm_cli.training import train_state

    training = build_training(TrainOptions(**origin.config), world, classes=origin.saved.metadata.classes)
    trainer, saved = training.trainer, origin.saved
    if saved.metadata.step >= trainer.config.steps:
        raise ConfigError(f"fork: {saved.path} has done {saved.metadata.step} steps; add trainer.steps=N for more")
    try:
        train_state.restore(trainer, _state(origin, trainer), saved.state.ema)
    except ValueError as error:
        init = word(override("init", origin.run))
        raise ConfigError(f"fork: {error}; {init} starts a new run from the weights that fit") from error
    return training


def on_held_out(checkpoint: Path, saved: "Metadata", training: "Training") -> list[str]:
    """A warning if a checkpoint was trained on some of the images that are held out now.

    Args:
        saved: the checkpoint's description.
    """
    if training.held_out is None:
        return []
    images = training.trainer.batches.images
    if saved.data and images.fingerprint is not None and saved.data.get("images") != images.fingerprint["images"]:
        return []
    if "data" not in saved.config:  # of a model that another program trained
        return []
    before = saved.config["data"].get("holdout", 0) if saved.config["seed"] == training.options.seed else 0
    if before >= len(training.held_out):
        return []
    return [
        f"held out {checkpoint} was trained on some of the images that are held out now: the loss on them does "
        "not show what it learned by heart before"
    ]


def _state(origin: Origin, trainer: "Trainer") -> "dict[str, Tensor]":
    """The origin's training state; parts of it that belong to changed settings start again."""
    from ddpm_cli.checkpoint.tensor_names import OPTIMIZER, SCALER, TIMESTEPS, UNLOGGED
    from ddpm_cli.training.train_state import capture

    old, new = origin.saved.metadata.config, origin.config
    anew = [UNLOGGED]  # steps of the old run are not for the log of the new one
    if old["optimizer"]["_target_"] != new["optimizer"]["_target_"]:
        anew.append(OPTIMIZER)
    if old["timestep_sampler"] != new["timestep_sampler"] or old["schedule"] != new["schedule"]:
        anew.append(TIMESTEPS)
    if old["trainer"].get("precision") != new["trainer"].get("precision"):
        anew.append(SCALER)
    fresh = {name: value for name, value in capture(trainer).items() if name.startswith(tuple(anew))}
    kept = {name: value for name, value in origin.saved.state.training.items() if not name.startswith(tuple(anew))}
    return kept | fresh
