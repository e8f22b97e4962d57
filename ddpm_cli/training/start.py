"""A run of `ddpm-train`, new or resumed: which run is meant, its parts, and its training.

Heavy modules are imported inside the functions: `--help`, `--cfg job` and mistyped keys are handled without torch.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.init_options import init_options
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.io import durable, run_dir, run_identity
from ddpm_cli.io.run_identity import Identity
from ddpm_cli.runtime.exit_codes import RunError
from ddpm_cli.runtime.logs import logging_to
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.training.build import build_training
from ddpm_cli.training.fork import Origin, fork, on_held_out, read_origin
from ddpm_cli.training.init import began_with, check_alone, on_classes, take_weights
from ddpm_cli.training.init_source import read_source
from ddpm_cli.training.new_run import begin
from ddpm_cli.training.resume import AUTO, directory_key, names_a_run, resume, run_and_checkpoint

if TYPE_CHECKING:
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.training.build import Parts, Training
    from ddpm_cli.training.trainer import Trainer

OTHERS_SHOWN = 8  # runs of the same name, in a message


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
        with ExitStack() as held:
            return _start(config, invocation, stop, world, held)
    except LostRankError as error:  # once training, the run itself says more
        raise RunError(str(error)) from error


class _Meant(NamedTuple):
    """The run that a command line means."""

    directory: Path | None  # None: it has not been started yet
    checkpoint: Path | None = None  # from which to resume it; None: the newest
    remarks: tuple[str, ...] = ()  # on how it was found


def _start(config: dict, invocation: Invocation, stop: Stop, world: "World", held: ExitStack) -> float:
    from ddpm_cli.io.metrics_file import last_loss, lines_of
    from ddpm_cli.training.checks import check_space
    from ddpm_cli.training.measured import last_evaluation, outcome
    from ddpm_cli.training.run import TrainingRun

    origin = None
    check_alone(invocation)
    if invocation.fork is not None:
        origin = read_origin(invocation, world)
        config = origin.config
    directory, checkpoint, remarks = world.on_main(lambda: _meant(config, invocation))
    if directory is not None:
        _lock(directory, world, held, "resume")
    if directory is not None and (names_a_run(invocation) or _has_checkpoint(directory)):
        training, warnings = resume(directory, checkpoint, config, invocation, world)
        metrics = directory / run_dir.METRICS_FILE
        if world.broadcast(_is_done(training.trainer, metrics)):
            if world.main:
                _say_done(directory, training.trainer.step, by_name=_by_name(invocation))
            return outcome(training.options.objective, last_loss(metrics), last_evaluation(lines_of(metrics)))
        with naming("resume"):
            check_space(directory, training.trainer)
            if world.main:
                _keep_identity(directory, config["name"] if _by_name(invocation) else None)
    else:
        training, identity, warnings = _new(config, origin, invocation, world)
        directory = begin(directory, training, identity, invocation, world, held)
    if world.main:
        with naming(directory_key(invocation)):
            durable.unshare(directory / run_dir.LOG_FILE)
            held.enter_context(logging_to(directory / run_dir.LOG_FILE))
    return TrainingRun(training, directory, stop, sweep=invocation.sweep).run(remarks, warnings)


class _New(NamedTuple):
    """A run that is about to start."""

    training: "Training"
    identity: Identity
    warnings: list[str]  # to be logged first


def _new(config: dict, origin: Origin | None, invocation: Invocation, world: "World") -> _New:
    """The run of a checked configuration, or of `origin`, at its first step.

    Raises:
        ConfigError: if it cannot be run here, or the weights from which it should start do not fit.
    """
    if origin is not None:
        training = fork(origin, world)
        said = on_held_out(origin.saved.path, origin.saved.metadata, training)
        return _New(training, origin.identity(training.options.name), said)
    options = TrainOptions(**config)
    init = init_options(options.init)
    if init.path is None:
        identity = Identity(name=options.name, begun_in=os.getcwd())
        return _New(build_training(options, world), identity, [])
    source = read_source(init, invocation, world)
    said: list[str] = []

    def begin_with(parts: "Parts") -> None:
        said.extend(take_weights(source, parts, options, strict=init.strict))

    training = build_training(options, world, classes=source.classes, begin_with=begin_with)
    said += on_classes(source, training)
    if source.metadata is not None:
        said += on_held_out(source.path, source.metadata, training)
    return _New(training, source.identity(options), said)


def _meant(config: dict, invocation: Invocation) -> _Meant:
    if names_a_run(invocation):
        if invocation.run_directory is not None:
            raise ConfigError("hydra.run.dir: resume= names the directory already; leave out either")
        with naming("resume"):
            assert invocation.resume is not None
            found = run_and_checkpoint(invocation.resume, "resume")
            return _Meant(found.run, found.checkpoint, () if found.said is None else (f"resume   {found.said}",))
    in_sweep = invocation.sweep_directory
    if in_sweep is not None and (in_sweep / run_dir.CHECKPOINTS).is_dir():
        return _Meant(in_sweep)  # it has been stopped, and the sweep goes on; or a queue starts the job again
    name = config["name"]
    if name is not None:
        with naming("name"):
            run_dir.check_name(name)
    if invocation.directory is not None:
        return _in_directory(invocation.directory, config, invocation)
    if name is None and "resume" in invocation.changes and invocation.resume == AUTO:
        raise ConfigError("resume=auto: finds a run by its name; add name=NAME")
    if invocation.resume is None or name is None:
        return _Meant(None)
    return _of_name(name, config, invocation)


def _in_directory(directory: Path, config: dict, invocation: Invocation) -> _Meant:
    """The run that exists already in a directory: a scheduler has requeued a job of a sweep and starts it again, or the
    same `hydra.run.dir` is given again.
    """
    with naming(directory_key(invocation)):
        identity = run_identity.identity_of(directory)
        if identity is None and not (directory / run_dir.CHECKPOINTS).is_dir():
            return _Meant(None)
        if invocation.sweep_directory is None:
            if invocation.resume is None:
                raise ValueError(f"{directory} holds a run, and resume=null starts a new one; choose another directory")
            _check_same_origin(directory, identity, config, invocation)
    return _Meant(directory)


def _of_name(name: str, config: dict, invocation: Invocation) -> _Meant:
    """The run of this name that was started last, and the names of the others."""
    try:
        directory, others = run_identity.find(config["output_dir"], name)
        if directory is None:
            return _Meant(None)
        identity = run_identity.identity_of(directory)
    except ValueError as error:
        raise ConfigError(f"name: {error}. resume=RUN_DIR chooses one, resume=null starts another") from error
    _check_same_origin(directory, identity, config, invocation)
    remarks = []
    if others:
        shown = others[:OTHERS_SHOWN] + ([f"{len(others) - OTHERS_SHOWN} more"] if len(others) > OTHERS_SHOWN else [])
        remarks.append(f"name     {name}: {directory.name}, started last; there are also {', '.join(shown)}")
    return _Meant(directory, None, tuple(remarks))


def _check_same_origin(directory: Path, identity: "Identity | None", config: dict, invocation: Invocation) -> None:
    """Raise ConfigError if this existing run did not start from what `fork=` or `init=` names."""
    if invocation.fork is not None:
        own = None if identity is None else identity.fork_of
        with naming("fork"):
            run = run_and_checkpoint(invocation.fork, "fork").run
        origin = run_identity.identity_of(run)
        if own is not None and origin is not None and own == origin.id:
            return
        what = f"was not forked from {run}"
    else:
        init = init_options(config.get("init"))
        if init.path is None or began_with(identity, init):
            return
        what = f"did not start from the {init.weights} weights of {init.path}"
    if invocation.run_directory is not None:
        raise ConfigError(f"hydra.run.dir: {directory} holds a run that {what}; choose another directory")
    raise ConfigError(
        f"name: {directory} is of this name and {what}; "
        "choose another name, or resume=null to start another run of this name"
    )


def _has_checkpoint(directory: Path) -> bool:
    return len(run_dir.by_step(directory / run_dir.CHECKPOINTS)) > 0


def _is_done(trainer: "Trainer", metrics: Path) -> bool:
    """Whether a run has done its steps, and has recorded the last one with its evaluation."""
    from ddpm_cli.io.metrics_file import lines_of, recorded_to
    from ddpm_cli.training.measured import last_evaluation

    step, config = trainer.step, trainer.config
    if step < config.steps or (trainer.owes_progress and recorded_to(metrics) < step):
        return False
    evaluated = last_evaluation(lines_of(metrics)) if config.due(config.eval_every, step) else {"step": step}
    return evaluated is not None and evaluated["step"] >= step


def _by_name(invocation: Invocation) -> bool:
    """Whether a run that is resumed was found by its name."""
    return not names_a_run(invocation) and invocation.directory is None


def _say_done(directory: Path, step: int, *, by_name: bool) -> None:
    again = "resume=null starts another run of this name, " if by_name else ""
    print(f"{directory} has done its {step} steps; {again}trainer.steps=N trains further")


def _keep_identity(directory: Path, name: str | None) -> None:
    """Give a run of an early version an identity; if it was found by its name, let the name find it again."""
    identity = run_identity.identity_of(directory)
    if identity is None:
        identity = Identity(name=name)
        identity.write(directory)
    if name is not None and directory.parent.name == name:
        run_identity.remember(directory.parent.parent, name, directory, identity)


def _lock(directory: Path, world: "World", held: ExitStack, key: str) -> None:
    """Keep other trainers out of `directory` until `held` is closed."""
    if world.main:
        with naming(key):
            held.enter_context(run_dir.locked_for_training(directory))
