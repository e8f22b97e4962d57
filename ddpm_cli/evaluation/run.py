"""A run of `ddpm-eval`: from checked options to figures on record, and the ways it may end.

Heavy modules are imported inside the functions: `--help` and a mistyped key are answered without torch.
"""

from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from ddpm_cli.config.errors import ConfigError, naming, shown
from ddpm_cli.config.eval_options import EvalOptions
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.outcome import Outcome
from ddpm_cli.config.sampler_spacing import check_chosen_for_one_model
from ddpm_cli.evaluation import table
from ddpm_cli.evaluation.record import Record
from ddpm_cli.evaluation.task import Task
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.text import printable
from ddpm_cli.runtime import console
from ddpm_cli.runtime.exit_codes import RunError
from ddpm_cli.runtime.logs import said_on_terminal
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.sampling.ending import say_on_stderr
from ddpm_cli.sampling.model import run_meant

if TYPE_CHECKING:
    from ddpm_cli.evaluation.setting import Setting


def start(config: dict, invocation: Invocation, stop: Stop) -> Outcome:
    """Evaluate and put the figures on record; returns the first of them, of the newest checkpoint.

    Raises:
        ConfigError: before anything has been written, if the configuration or the checkpoint cannot be used.
        RunError: if it had to end early; what has been drawn is kept.
        Stopped: if it was asked to end early; what has been drawn is kept.
    """
    from ddpm_cli.distributed.process_group import LostRankError, join

    try:
        world, options = join(), EvalOptions(**config)
        check_chosen_for_one_model(options.sampler)
        with ExitStack() as held:
            return _evaluate(Task(options, invocation, world, stop), held)
    except LostRankError as error:  # once drawing, what is there is said too
        raise RunError(str(error)) from error


def _evaluate(task: Task, held: ExitStack) -> Outcome:
    from ddpm_cli.evaluation.one import evaluate
    from ddpm_cli.evaluation.setting import prepare

    options, world = task.options, task.world
    held.enter_context(console.telling(say_on_stderr("eval")))
    if world.main:
        held.enter_context(said_on_terminal())
    newest = None if options.ckpt is None else run_meant(options.ckpt, world)
    if newest is not None:
        task = task._replace(options=replace(options, ckpt=str(newest.directory)))
    setting = prepare(task.options, task.invocation.changes, world)
    directory = world.on_main(lambda: _directory(task, setting, held))
    if world.main and newest is not None:
        print(newest.said)
    records: list[Record] = []
    paths: list[str] = []
    for selection in setting.checkpoints or [None]:
        path, record, before = evaluate(task, setting, selection, directory)
        records.append(record)
        paths.append(str(path))
        if world.main and options.checkpoints is None:
            _print(record, path, before)
    call = task.invocation
    if world.main and call.record is not None and call.run_directory is not None:  # the directory is Hydra's own
        run_dir.keep_hydra(directory, call.record(directory, None))
    task.stop.finish()
    if world.main and options.checkpoints is not None:
        print("\n".join(map(printable, ["", *table.curve(records), "", *paths])))
    headline = records[-1].headline
    return Outcome(headline.value, headline.name)


def _print(record: Record, path: Path, before: bool) -> None:
    if before:
        print(f"{printable(str(path))} holds these figures already:")
    try:
        lines = table.table(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # it may be somebody else's
        raise ConfigError(f"out: {path} is no record of an evaluation ({shown(str(error))})") from error
    print("\n".join(map(printable, [*lines, str(path)])))
    for name in record.files:
        print(printable(str(path.parent / name)))


def _directory(task: Task, setting: "Setting", held: ExitStack) -> Path:
    """Where records are written; made if it is not there, and taken back if nothing comes of it."""
    out, in_hydra = task.options.out, task.invocation.run_directory
    if out is not None and in_hydra is not None:
        raise ConfigError("hydra.run.dir: out= names the directory already; leave out either")
    with naming("out" if in_hydra is None else "hydra.run.dir"):
        directory = Path(out) if out is not None else in_hydra
        if directory is None:
            directory = (setting.run if setting.run is not None else Path("outputs")) / run_dir.EVAL
            if directory.is_symlink():
                raise ConfigError(f"out: {directory} is a link; choose a directory with out=DIR")
        made = durable.absent(directory)
        if not directory.is_dir():
            with suppress(FileExistsError):
                durable.make_directory(directory)
        held.callback(durable.remove_empty, made)
        with TemporaryFile(dir=directory):  # whether it can be written to is better known before than after sampling
            return directory
