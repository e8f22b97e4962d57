"""`ddpm-train`: from a checked configuration to a trained model.

Heavy modules are imported inside the functions: `--help`, `--cfg job` and a mistyped key are answered without torch.
"""

from contextlib import ExitStack
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.cli.launch import launch
from ddpm_cli.config.compare import differences, merge
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.schema import check, targets_in
from ddpm_cli.config.train_options import OPTIONS, TrainOptions
from ddpm_cli.io import run_dir as run_directory
from ddpm_cli.runtime.exit_codes import RunError
from ddpm_cli.runtime.logs import logging_to
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.training.build import prepare

if TYPE_CHECKING:
    from ddpm_cli.diffusion.samplers import Sampler
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.training.trainer import Trainer

AUTO = "auto"  # resume=auto: go on with the newest run of this name, if there is one


def main() -> None:
    stop = Stop()
    stop.listen()
    launch("ddpm-train", "train", OPTIONS, partial(start, stop=stop), stop=stop)


def start(config: dict, call: Invocation, stop: Stop) -> float:
    """Set up a run, new or resumed, and train it. Returns its final loss.

    Raises:
        ConfigError: before anything has been written, if the configuration cannot be run here.
        RunError: if the run had to end early.
        Stopped: if it was asked to end early.
    """
    from ddpm_cli.distributed.process_group import LostRankError, join

    try:
        world = join()
        if world.size > 1 and call.sweep_directory is not None:
            raise ConfigError("-m: a sweep cannot run in several processes that train together; start its runs singly")
        with ExitStack() as held:
            return _start(config, call, stop, world, held)
    except LostRankError as error:  # once training, the run itself says more
        raise RunError(str(error)) from error


def _start(config: dict, call: Invocation, stop: Stop, world: "World", held: ExitStack) -> float:
    from ddpm_cli.training.run import TrainingRun, check_readable, check_space

    directory = _to_go_on_with(config, call, world)
    if directory is not None:
        _hold(directory, world, held, "resume")
    asked = call.resume not in (None, AUTO)
    going_on = directory is not None and (asked or any(directory.glob(f"{run_directory.CHECKPOINTS}/step_*")))
    if directory is None or not going_on:
        options = TrainOptions(**config)
        trainer, sampler = prepare(options, world)
        warnings = []
        with naming("the configuration"):
            check_readable(trainer, options)
        with naming("output_dir"):
            check_space(Path(options.output_dir), trainer)
            if directory is None:
                directory = _new_directory(options, call, trainer, world)
                _hold(directory, world, held, "output_dir")
    else:
        options, trainer, sampler, warnings = _resume(directory, config, call, world)
        if trainer.step >= trainer.settings.steps:
            done = f"{directory} has done its {trainer.step} steps"
            if asked:
                raise ConfigError(f"resume: {done}; to go further add trainer.steps=N")
            print(f"{done}; resume=null begins another run of this name, trainer.steps=N goes further")
            return float("nan")
        with naming("resume"):
            check_space(directory, trainer)
    if world.main:
        with naming("output_dir"):
            held.enter_context(logging_to(directory / run_directory.LOG_FILE))
    return TrainingRun(trainer, sampler, options, directory, stop).go(warnings)


def _to_go_on_with(config: dict, call: Invocation, world: "World") -> Path | None:
    """The directory of the run that is meant, if there is one already."""
    if call.resume not in (None, AUTO):
        directory = Path(call.resume)
        with naming("resume"):
            if not call.resume or not directory.is_dir():
                raise ConfigError(f"resume: there is no run directory {call.resume!r}")
            if not (directory / run_directory.CHECKPOINTS).is_dir():
                raise ConfigError(f"resume: {directory} holds no checkpoint")
        return directory
    if call.sweep_directory is not None and (call.sweep_directory / run_directory.CHECKPOINTS).is_dir():
        return call.sweep_directory  # a scheduler has put the job back into its queue, and starts it again
    name = config["name"]
    if name is not None:
        with naming("name"):
            run_directory.check_name(name)
    elif "resume" in call.changes and call.resume == AUTO:
        raise ConfigError("resume=auto: finds a run by its name; add name=NAME")
    if call.resume is None or name is None or call.sweep_directory is not None:
        return None
    return world.broadcast(run_directory.newest(config["output_dir"], name))


def _new_directory(options: TrainOptions, call: Invocation, trainer: "Trainer", world: "World") -> Path:
    if call.sweep_directory is not None:
        return call.sweep_directory
    if not world.main:
        return world.broadcast(None)
    name = run_directory.plain_name(trainer.batches.images.name) if options.name is None else options.name
    return world.broadcast(run_directory.create(options.output_dir, name))


def _hold(directory: Path, world: "World", held: ExitStack, key: str) -> None:
    if world.main:
        with naming(key):
            held.enter_context(run_directory.locked_for_training(directory))


def _resume(
    directory: Path, config: dict, call: Invocation, world: "World"
) -> "tuple[TrainOptions, Trainer, Sampler, list[str]]":
    """The run in `directory` at its newest whole checkpoint, and what there is to say about newer ones."""
    from ddpm_cli import checkpoint
    from ddpm_cli.checkpoint.training_state import load_state

    with naming("resume"):
        newest, damaged = world.on_main(lambda: checkpoint.newest_whole(directory))
        state, ema = load_state(newest, trust=_trusted(config, call))
    description = newest.metadata
    saved = description.config
    if call.resume in (None, AUTO):
        changed = differences(saved, config)
        if changed:
            key, other = "name", "choose another name, or resume=null to begin another run under this one"
            if call.sweep_directory is not None:
                key, other = "hydra.sweep.dir", "choose another directory"
            listed = "\n  ".join([*changed, other])
            raise ConfigError(f"{key}: {directory} was trained with another configuration:\n  {listed}")
        merged = config
        if merged["trainer"].get("accumulate") == "auto":
            merged["trainer"]["accumulate"] = saved["trainer"]["accumulate"]  # as was found when it began
    else:
        merged = merge(saved, call.changes)
        check(merged, OPTIONS)
    options = TrainOptions(**merged)
    trainer, sampler = prepare(options, world)
    images = len(trainer.batches.images)
    if images != description.images:
        raise ConfigError(f"data: the run was trained on {description.images} images, there are now {images}")
    classes = tuple(trainer.batches.images.class_names)
    if classes != description.classes:
        first = next((a, b) for a, b in zip_longest(description.classes, classes) if a != b)
        raise ConfigError(f"data: the run was trained on other classes: {first[0]!r} then, {first[1]!r} now")
    with naming("resume"):
        trainer.load_state(state, ema)
        if trainer.step != description.step:
            raise ConfigError(
                f"resume: {newest.path}: its training state is of step {trainer.step}, it says {description.step}"
            )
    world.wait()  # until every rank has read what rank 0 is about to rename
    warnings = []
    if world.main:
        with naming("resume"):
            for path, what in damaged.items():
                warnings.append(f"damaged  {what}; set aside as {checkpoint.set_aside(path).name}")
        if damaged:
            warnings.append(f"damaged  goes on from the newest whole checkpoint, {newest.path}")
    return options, trainer, sampler, warnings


def _trusted(config: dict, call: Invocation) -> list[str]:
    """The classes that the command line itself names: in `trust`, or, where it is the whole configuration, anywhere."""
    trust = call.changes.get("trust", [])
    if not isinstance(trust, list):
        raise ConfigError(f"trust: expected a list of full names, as trust=[package.Class], got {trust!r}")
    return [str(name) for name in trust] + list(targets_in(config))


if __name__ == "__main__":
    main()
