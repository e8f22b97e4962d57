"""Resumes a run from its newest complete checkpoint: read, reconciled with the command line, checked, restored.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddpm_cli.config.compare import LR_DECAY, STEPS, differences, merge
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.paths import seen_from
from ddpm_cli.config.schema import check, targets_in
from ddpm_cli.config.train_options import OPTIONS, TrainOptions
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.command_line import override, word
from ddpm_cli.io.named_runs import newest_of
from ddpm_cli.io.run_identity import identity_of
from ddpm_cli.training.build import build_training

if TYPE_CHECKING:
    from ddpm_cli.checkpoint import Metadata
    from ddpm_cli.checkpoint.training_state import TrainingState
    from ddpm_cli.data.image_set import ImageSet
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.training.build import Training
    from ddpm_cli.training.trainer_config import TrainerConfig


AUTO = "auto"  # resume=auto: resume the newest run of this name, if there is one


class Named(NamedTuple):
    """What a command line names to begin from."""

    run: Path
    checkpoint: Path | None  # in it; None: the newest that is whole
    said: str | None = None  # which run it is, where a directory of several was named


class Saved(NamedTuple):
    """A complete checkpoint of a run, read and checked."""

    path: Path
    metadata: "Metadata"
    state: "TrainingState"
    damaged: dict[Path, str]  # newer ones that are damaged, with the error of each
    newer: list[Path]  # newer ones, if this one was requested


def names_a_run(invocation: Invocation) -> bool:
    """Whether the command line names the run to resume: then the run's configuration holds, with a few changes."""
    return invocation.resume is not None and invocation.resume != AUTO


def directory_key(invocation: Invocation) -> str:
    """The option that sets the run's directory."""
    if invocation.directory is None:
        return "output_dir"
    return "hydra.run.dir" if invocation.sweep_directory is None else "hydra.sweep.dir"


def run_and_checkpoint(named: str, key: str) -> Named:
    """The run directory in what `resume=` or `fork=` (`key`) names, and the checkpoint in it if one is named.

    Of a directory of runs of one name it is the run begun last, as `ddpm_cli.io.named_runs` has it.

    Raises:
        ValueError: if it names neither.
    """
    try:
        of_name = newest_of(Path(named)) if named else None
        if of_name is not None:
            return Named(of_name.directory, None, of_name.said)
        return Named(*run_dir.run_and_checkpoint(named))
    except ValueError as error:
        from ddpm_cli.checkpoint.find import runs_to_choose_from

        raise ValueError(f"{error}{runs_to_choose_from(Path(named), 'ddpm-train', key)}") from error


def resume(
    directory: Path, checkpoint: Path | None, config: dict, invocation: Invocation, world: "World"
) -> "tuple[Training, list[str]]":
    """The run in `directory`, restored from a checkpoint, and remarks on newer ones.

    Args:
        checkpoint: the checkpoint; None: the newest complete one.

    Raises:
        ConfigError: if there is no such checkpoint, or it does not fit this configuration or this data.
    """
    from ddpm_cli.training import train_state

    with naming("resume"):
        saved = read_checkpoint(directory, checkpoint, trusted(config, invocation), world)
    options = reconcile(saved.metadata.config, config, directory, invocation)
    check_learning_rate(saved.metadata, options, directory, invocation)
    training = build_training(options, world, classes=saved.metadata.classes)
    warnings = check_same_data(training.trainer.batches.images, saved.metadata, directory)
    with naming("resume"):
        train_state.restore(training.trainer, saved.state.training, saved.state.ema)
        step = training.trainer.step
        if step != saved.metadata.step:
            raise ConfigError(
                f"resume: {saved.path}: its training state is of step {step}, its metadata of {saved.metadata.step}"
            )
    world.barrier()  # until every rank has read what rank 0 is about to rename
    return training, [*warnings, *set_newer_aside(saved)] if world.main else []


def read_checkpoint(directory: Path, checkpoint: Path | None, trust: Iterable[str], world: "World") -> Saved:
    """Read a checkpoint of a run, and check everything that can be checked without its data.

    Args:
        checkpoint: the checkpoint; None: the newest complete one.
        trust: full names of classes beside ours that it may build.

    Raises:
        ConfigError: if there is none, or it names classes that it may not, or its parts do not belong together.
    """
    from ddpm_cli import checkpoint as checkpoints
    from ddpm_cli.checkpoint.find import newer_than
    from ddpm_cli.checkpoint.training_state import load_state

    damaged, newer = {}, []
    if checkpoint is None:
        whole, damaged = world.on_main(lambda: checkpoints.newest_whole(directory))  # one hashes the files for all
    else:
        whole = world.on_main(lambda: checkpoints.verify(checkpoint, *checkpoints.FILES))
        newer = newer_than(checkpoint)
    if whole.metadata.imported:
        init = word(override("init", directory))
        raise ValueError(
            f"{whole.path} was imported: it has weights, but no training state; {init} starts a new run from them"
        )
    if not world.main:
        durable.wait_for(*(whole.path / name for name in checkpoints.FILES))
    return Saved(whole.path, whole.metadata, load_state(whole, trust=trust), damaged, newer)


def reconcile(saved: dict, config: dict, directory: Path, invocation: Invocation) -> TrainOptions:
    """The options to resume with: the `saved` configuration with the few changes that are allowed.

    Args:
        config: the whole configuration of the command line, which is used unless that names the run. With
            `trainer.accumulate=auto`, the run keeps the number that was found when it started; if `data.extensions` is
            null, the run keeps its own, as earlier versions had a list of them.

    Raises:
        ConfigError: if this would be another run; the message says how it would differ.
    """
    if names_a_run(invocation):
        with naming("resume"):
            identity = identity_of(directory)
        merged = merge(saved, invocation.changes, invocation.chosen)
        merged = seen_from(None if identity is None else identity.begun_in, merged, invocation.changes)
        return TrainOptions(**check(merged, OPTIONS, spelt=invocation.spelt))
    config = _with_extensions_of(saved, config)
    changed = differences(saved, config)
    if changed:
        key = "name"
        others = ["choose another name, or resume=null to start another run of this name"]
        if invocation.directory is not None:
            key, others = directory_key(invocation), ["choose another directory"]
        another = "name=ANOTHER" if invocation.run_directory is None else "hydra.run.dir=ANOTHER"
        others.append(f"{word(override('fork', directory))} {another} KEY=VALUE starts a new run from this run's state")
        listed = "\n  ".join([*changed, *others])
        raise ConfigError(f"{key}: {directory} was trained with another configuration:\n  {listed}")
    trainer = config["trainer"]
    if trainer.get("accumulate") == "auto":
        trainer = trainer | {"accumulate": saved["trainer"]["accumulate"]}
    return TrainOptions(**config | {"trainer": trainer})


def _with_extensions_of(saved: dict, config: dict) -> dict:
    data, before = config["data"], saved["data"]
    if data.get("extensions", ...) is not None or data["_target_"] != before.get("_target_"):
        return config
    return config | {"data": data | {"extensions": before.get("extensions")}}


def check_learning_rate(metadata: "Metadata", options: TrainOptions, directory: Path, invocation: Invocation) -> None:
    """Raise ConfigError if training for more steps would raise the learning rate without the user's word.

    A rate that decays to 0 at the last step changes at every step if there are more steps.
    """
    then, now = (instantiate(trainer, "trainer") for trainer in (metadata.config["trainer"], options.trainer))
    if metadata.step == 0 or LR_DECAY in invocation.changes or "lr" not in options.optimizer:
        return
    was, would_be = (_rate(metadata.step - 1, config, options.optimizer["lr"]) for config in (then, now))
    if would_be <= 1.1 * was or metadata.step <= now.warmup_steps:
        return
    decay, steps = now.lr_decay, now.steps
    new = word(override("fork", directory))
    raise ConfigError(
        f"{STEPS}: the learning rate has come down to {was:.2g} at step {metadata.step:,} and would jump to "
        f"{would_be:.2g}: a {decay} decay over {steps:,} steps has another rate here. Choose one of:\n"
        f"  {LR_DECAY}={decay} takes that jump and decays to step {steps:,}\n"
        f"  {LR_DECAY}=constant stays at {options.optimizer['lr']:.2g}\n"
        f"  {new} {STEPS}={steps} {LR_DECAY}=constant optimizer.lr={was:.2g} starts a new run at that rate"
    )


def _rate(step: int, config: "TrainerConfig", peak: float) -> float:
    from ddpm_cli.training import lr_schedule

    factor = lr_schedule.factor(step, steps=config.steps, warmup_steps=config.warmup_steps, decay=config.lr_decay)
    return peak * factor


def check_same_data(images: "ImageSet", metadata: "Metadata", directory: Path) -> list[str]:
    """Check that these are the images that the run in `directory` was trained on.

    Returns:
        Remarks, if this cannot be determined.

    Raises:
        ConfigError: if they are not; the message says what differs.
    """
    from ddpm_cli.data.same_data import difference

    differs = difference(
        images,
        count=metadata.images,
        classes=metadata.classes,
        digests=metadata.data,
        pillow=metadata.versions.get("pillow"),
    )
    if differs is not None:
        new = word(override("fork", directory))
        raise ConfigError(f"data: {differs}. {new} starts a new run from it on this data")
    if images.fingerprint is not None and not metadata.data:
        return ["data     the checkpoint is from an earlier version: it is not known whether these are the same images"]
    return []


def set_newer_aside(saved: Saved) -> list[str]:
    """Rename newer checkpoints, so that their steps can be saved again; returns a remark on each."""
    from ddpm_cli.checkpoint import set_aside

    warnings = []
    with naming("resume"):
        for path, problem in saved.damaged.items():
            warnings.append(f"damaged  {problem}; set aside as {set_aside(path, 'damaged').name}")
        for path in saved.newer:
            warnings.append(
                f"newer    {path} is newer than {saved.path.name}; set aside as {set_aside(path, 'newer').name}"
            )
    if saved.damaged:
        warnings.append(f"damaged  resuming from the newest complete checkpoint, {saved.path}")
    return warnings


def trusted(config: dict, invocation: Invocation) -> list[str]:
    """The classes that the command line itself names: in `trust`, or anywhere if it is the whole configuration."""
    trust = invocation.changes.get("trust", [])
    trust = [trust] if isinstance(trust, str) else trust
    if not isinstance(trust, list):
        raise ConfigError(f"trust: expected a list of full names, such as trust=[package.Class], got {trust!r}")
    return [str(name) for name in trust] + list(targets_in(config | invocation.chosen))
