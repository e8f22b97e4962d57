"""The result of a sweep's run, kept in its directory: the report finds it there, whichever launcher ran it.

RUN/result.json    its overrides, and its loss, its picture, or why it ended without
RUN/error.log      the traceback of an error that nobody has foreseen
"""

import json
import math
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddpm_cli.config.errors import ConfigError, shown
from ddpm_cli.config.outcome import Outcome
from ddpm_cli.io import durable, plain_files, run_dir
from ddpm_cli.io.named_runs import newest_of
from ddpm_cli.io.own_output import RESULT_FILE
from ddpm_cli.runtime.exit_codes import RunError, Stopped

TRACEBACK_FILE = "error.log"
MOST_RESULT = 2**20  # bytes; ours has the overrides of a run, and what went wrong


@dataclass
class RunResult:
    """How a run of a sweep ended, or that it has started."""

    overrides: list[str]
    final_loss: float | None = None
    error: str | None = None
    stopped: bool = False  # `error` says that it was asked to stop: then it may be resumed here
    picture: str | None = None  # the file to show in the sweep's contact sheet
    gpu: str | None = None  # the one that the run had to itself, if it had to choose one
    under_way: bool = False  # it has begun, and nothing says yet how it has ended
    figure: str | None = None  # what `final_loss` is called, if it is no loss

    @property
    def done(self) -> bool:
        return self.error is None and not self.under_way

    @property
    def ending(self) -> str:
        if self.error is not None:
            return self.error
        return "done" if self.final_loss is None else f"{self.figure or 'loss'} {self.final_loss:.4f}"

    def begin(self, directory: Path) -> None:
        (directory / TRACEBACK_FILE).unlink(missing_ok=True)
        self.under_way = True
        self._write(directory)

    def end(self, directory: Path, outcome: object) -> None:
        """Record that the run is done; `outcome` is its final loss, another figure, or its image."""
        self.under_way, self.error, self.stopped = False, None, False
        if isinstance(outcome, Path):
            self.picture = str(outcome.absolute())
        elif isinstance(outcome, float) and not math.isnan(outcome):
            self.final_loss = float(outcome)
            self.figure = outcome.name if isinstance(outcome, Outcome) else None
        self._write(directory)

    def end_early(self, directory: Path, error: BaseException) -> None:
        """Record why the run is not done."""
        self.under_way, self.final_loss, self.picture = False, None, None
        self.error, self.stopped = str(error), isinstance(error, Stopped)
        if not isinstance(error, ConfigError | RunError | Stopped):
            self.error = f"{type(error).__name__}: {error}"
            directory.mkdir(parents=True, exist_ok=True)
            durable.replace(directory / TRACEBACK_FILE, "".join(traceback.format_exception(error)).encode())
        self._write(directory)

    def _write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        durable.replace(directory / RESULT_FILE, f"{json.dumps(asdict(self), indent=2)}\n".encode())


def result_in(directory: Path) -> RunResult | None:
    """The record of the run in a directory; None if no run of a sweep has started there.

    Raises:
        ConfigError: if that is not what `RunResult` writes.
    """
    file = directory / RESULT_FILE
    if not file.exists():
        return None
    try:
        result = RunResult(**json.loads(plain_files.read(file, MOST_RESULT)))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file} is no result of a run ({shown(str(error))})") from error
    texts = (result.error, result.picture, result.gpu, result.figure)
    loss = result.final_loss
    if (
        not isinstance(result.overrides, list)
        or not all(isinstance(text, str) for text in (*result.overrides, *(t for t in texts if t is not None)))
        or not isinstance(loss, int | float | None)
    ):
        raise ConfigError(f"{file} is no result of a run")
    return result


def run_resumed(resume: str, work: Callable[[], Any]) -> Any:
    """Run `work`, which resumes the run that `resume=` names; if that is part of a sweep, record how it ends.

    A mistake in the command line changes nothing of what is known.
    """
    try:
        of_name = newest_of(Path(resume)) if resume else None
        directory, _ = run_dir.run_and_checkpoint(resume) if of_name is None else (of_name.directory, None)
    except ValueError:  # for `work` to say
        return work()
    result = result_in(directory)
    if result is None:
        return work()
    try:
        outcome = work()
    except ConfigError:
        raise
    except (Exception, Stopped) as error:
        if directory.is_dir():  # it may have been moved meanwhile
            result.end_early(directory, error)
        raise
    result.end(directory, outcome)
    return outcome
