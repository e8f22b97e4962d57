"""A run of `ddpm-train`, new or resumed: which one is meant, what it is made of, and its training.

Heavy modules are imported inside the functions: `--help`, `--cfg job` and a mistyped key are answered without torch.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.io import run_dir
from ddpm_cli.runtime.exit_codes import RunError
from ddpm_cli.runtime.logs import logging_to
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.training.build import build_training
from ddpm_cli.training.resume import AUTO, names_a_run, resume

if TYPE_CHECKING:
    from ddpm_cli.data.image_set import ImageSet
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.training.build import Training


def start(config: dict, invocation: Invocation, stop: Stop) -> float:
    """Set up a run, new or resumed, and train it. Returns its final loss.

    Raises:
        ConfigError: before anything has been written, if the configuration cannot be run here.
        RunError: if the run had to end early.
        Stopped: if it was asked to end early.
    """
    from ddpm_cli.distributed.process_group import LostRankError, join

    try:
        world = join()
        if world.size > 1 and invocation.sweep_directory is not None:
            raise ConfigError("-m: a sweep cannot run in several processes that train together; start its runs singly")
        with ExitStack() as held:
            return _start(config, invocation, stop, world, held)
    except LostRankError as error:  # once training, the run itself says more
        raise RunError(str(error)) from error


def _start(config: dict, invocation: Invocation, stop: Stop, world: "World", held: ExitStack) -> float:
    from ddpm_cli.training.run import TrainingRun

    directory = _existing_run(config, invocation, world)
    if directory is not None:
        _lock(directory, world, held, "resume")
    warnings = []
    if directory is not None and (names_a_run(invocation) or _has_checkpoint(directory)):
        training, warnings = _resume(directory, config, invocation, world)
        if training is None:
            return float("nan")
    else:
        directory, training = _begin(directory, TrainOptions(**config), invocation, world, held)
    if world.main:
        with naming("output_dir"):
            held.enter_context(logging_to(directory / run_dir.LOG_FILE))
    return TrainingRun(training, directory, stop).run(warnings)


def _existing_run(config: dict, invocation: Invocation, world: "World") -> Path | None:
    """The directory of the run that is meant, if there is one already."""
    if invocation.resume is not None and invocation.resume != AUTO:
        directory = Path(invocation.resume)
        with naming("resume"):
            if not invocation.resume or not directory.is_dir():
                raise ConfigError(f"resume: there is no run directory {invocation.resume!r}")
            if not (directory / run_dir.CHECKPOINTS).is_dir():
                raise ConfigError(f"resume: {directory} holds no checkpoint")
        return directory
    in_sweep = invocation.sweep_directory
    if in_sweep is not None and (in_sweep / run_dir.CHECKPOINTS).is_dir():
        return in_sweep  # a scheduler has put the job back into its queue, and starts it again
    name = config["name"]
    if name is not None:
        with naming("name"):
            run_dir.check_name(name)
    elif "resume" in invocation.changes and invocation.resume == AUTO:
        raise ConfigError("resume=auto: finds a run by its name; add name=NAME")
    if invocation.resume is None or name is None or in_sweep is not None:
        return None
    return world.broadcast(run_dir.newest(config["output_dir"], name))


def _has_checkpoint(directory: Path) -> bool:
    return len(run_dir.by_step(directory / run_dir.CHECKPOINTS)) > 0


def _resume(
    directory: Path, config: dict, invocation: Invocation, world: "World"
) -> "tuple[Training | None, list[str]]":
    """The run in `directory` where its newest checkpoint left it, None if it has done all its steps; and warnings."""
    from ddpm_cli.training.metrics import recorded_to
    from ddpm_cli.training.run import check_space

    training, warnings = resume(directory, config, invocation, world)
    trainer = training.trainer
    # Where the last step was saved and could not be put on record, that is left to do.
    on_record = not trainer.owes_progress or recorded_to(directory / run_dir.METRICS_FILE) >= trainer.step
    if trainer.step >= trainer.config.steps and world.broadcast(on_record):
        if world.main:
            again = "" if names_a_run(invocation) else "resume=null begins another run of this name, "
            print(f"{directory} has done its {trainer.step} steps; {again}trainer.steps=N goes further")
        return None, warnings
    with naming("resume"):
        check_space(directory, trainer)
    return training, warnings


def _begin(
    directory: Path | None, options: TrainOptions, invocation: Invocation, world: "World", held: ExitStack
) -> "tuple[Path, Training]":
    """A new run, and its directory: `directory`, if one has been begun there that has saved nothing, or a new one."""
    from ddpm_cli.training.run import check_readable, check_space

    training = build_training(options, world)
    with naming("the configuration"):
        check_readable(training.trainer, training.options)
    with naming("output_dir"):
        check_space(Path(options.output_dir), training.trainer)
        if directory is None:
            directory = _new_directory(options, invocation, training.trainer.batches.images, world)
            _lock(directory, world, held, "output_dir")
    return directory, training


def _new_directory(options: TrainOptions, invocation: Invocation, images: "ImageSet", world: "World") -> Path:
    if invocation.sweep_directory is not None:
        return invocation.sweep_directory
    if not world.main:
        return world.broadcast(None)
    name = run_dir.plain_name(images.name) if options.name is None else options.name
    return world.broadcast(run_dir.create(options.output_dir, name))


def _lock(directory: Path, world: "World", held: ExitStack, key: str) -> None:
    """Keep other trainers out of `directory` until `held` is closed."""
    if world.main:
        with naming(key):
            held.enter_context(run_dir.locked_for_training(directory))
