"""A run as its newest whole checkpoint left it: read, reconciled with the command line, checked, restored.

Heavy modules are imported inside the functions: a mistyped key is answered without torch.
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
    """A whole checkpoint of a run, read and checked."""

    path: Path
    metadata: "Metadata"
    state: "TrainingState"
    damaged: dict[Path, str]  # newer ones that are not whole: what is wrong with each
    newer: list[Path]  # newer ones, where this one was asked for


def names_a_run(invocation: Invocation) -> bool:
    """Whether the command line says which run to resume: then its configuration counts, with a few changes."""
    return invocation.resume is not None and invocation.resume != AUTO


def directory_key(invocation: Invocation) -> str:
    """The option that says where the run is to lie."""
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
    """The run in `directory` where a checkpoint left it, and what there is to say about newer ones.

    Args:
        checkpoint: that one; None: the newest that is whole.

    Raises:
        ConfigError: if there is no such checkpoint, or not with this configuration, or not on this data.
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
                f"resume: {saved.path}: its training state is of step {step}, it says {saved.metadata.step}"
            )
    world.barrier()  # until every rank has read what rank 0 is about to rename
    return training, [*warnings, *set_newer_aside(saved)] if world.main else []


def read_checkpoint(directory: Path, checkpoint: Path | None, trust: Iterable[str], world: "World") -> Saved:
    """A checkpoint of a run, of which everything has been checked that can be without its data.

    Args:
        checkpoint: that one; None: the newest that is whole.
        trust: the full names of classes beside ours that it may ask for.

    Raises:
        ConfigError: if there is none, or it asks for what it may not, or its parts do not belong together.
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
            f"{whole.path} was imported, and has weights but no state of a training; {init} begins a new run with them"
        )
    if not world.main:
        durable.wait_for(*(whole.path / name for name in checkpoints.FILES))
    return Saved(whole.path, whole.metadata, load_state(whole, trust=trust), damaged, newer)


def reconcile(saved: dict, config: dict, directory: Path, invocation: Invocation) -> TrainOptions:
    """The options to resume with: the `saved` configuration with the few changes that may be made to it.

    Args:
        config: the whole configuration of the command line, which counts unless that names the run. Where it leaves
            `trainer.accumulate` to be found, the run keeps the number that was found when it began; where it leaves
            `data.extensions` open, those it began with: earlier versions had a list of them.

    Raises:
        ConfigError: if it would be another run; says how it would differ.
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
        others = ["choose another name, or resume=null to begin another run under this one"]
        if invocation.directory is not None:
            key, others = directory_key(invocation), ["choose another directory"]
        another = "name=ANOTHER" if invocation.run_directory is None else "hydra.run.dir=ANOTHER"
        others.append(
            f"{word(override('fork', directory))} {another} KEY=VALUE begins a new run with what this one has learned"
        )
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
    """Raise ConfigError where going further would raise the learning rate, and nothing says that it should.

    A rate that decays to 0 at the last step is another one at every step once there are more of them.
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
        f"{would_be:.2g}: a {decay} decay over {steps:,} steps is another one. Say which is meant:\n"
        f"  {LR_DECAY}={decay} takes that jump and decays to step {steps:,}\n"
        f"  {LR_DECAY}=constant stays at {options.optimizer['lr']:.2g}\n"
        f"  {new} {STEPS}={steps} {LR_DECAY}=constant optimizer.lr={was:.2g} begins a new run at that rate"
    )


def _rate(step: int, config: "TrainerConfig", peak: float) -> float:
    from ddpm_cli.training import lr_schedule

    factor = lr_schedule.factor(step, steps=config.steps, warmup_steps=config.warmup_steps, decay=config.lr_decay)
    return peak * factor


def check_same_data(images: "ImageSet", metadata: "Metadata", directory: Path) -> list[str]:
    """Make sure that these are the images that the run in `directory` was trained on.

    Returns:
        What is to be said where that cannot be told.

    Raises:
        ConfigError: if they are others; says what differs.
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
        raise ConfigError(f"data: {differs}. {new} begins a new run from it on this data")
    if images.fingerprint is not None and not metadata.data:
        return ["data     the checkpoint is of an earlier version: whether these are the same images is not known"]
    return []


def set_newer_aside(saved: Saved) -> list[str]:
    """Rename newer checkpoints, so that their steps can be saved again; what is to be said of each."""
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
        warnings.append(f"damaged  resumes from the newest whole checkpoint, {saved.path}")
    return warnings


def trusted(config: dict, invocation: Invocation) -> list[str]:
    """The classes that the command line itself names: in `trust`, or, where it is the whole configuration, anywhere."""
    trust = invocation.changes.get("trust", [])
    trust = [trust] if isinstance(trust, str) else trust
    if not isinstance(trust, list):
        raise ConfigError(f"trust: expected a list of full names, as trust=[package.Class], got {trust!r}")
    return [str(name) for name in trust] + list(targets_in(config | invocation.chosen))
