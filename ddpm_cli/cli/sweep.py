"""Sweeps (`-m`): how one begins or goes on, what each run leaves behind, the table and the comparison at the end."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.cli import hydra_launchers
from ddpm_cli.cli.arguments import key_of
from ddpm_cli.cli.hydra_launchers import BASIC, SUBMITIT
from ddpm_cli.cli.launchers import refuse_copies
from ddpm_cli.cli.references import check_references
from ddpm_cli.cli.run_result import RunResult, result_in
from ddpm_cli.cli.sweep_plan import DIR, SUBDIR, PlannedRun, SweepPlan, plan_sweep
from ddpm_cli.cli.sweep_progress import SweepProgress, in_columns, varying
from ddpm_cli.config.errors import ConfigError, shown
from ddpm_cli.io.command_line import command
from ddpm_cli.io.own_output import RESULT_FILE, SHEET_FILE
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.exit_codes import FAILED, RESUME_LATER, RunError

WIDTH = 120  # characters, where standard output is no terminal and COLUMNS says nothing
DONE, STOPPED, NOT_BEGUN, NO_RESULT, FAILURE = "done", "stopped", "not begun", "without a result", "failed"
_NOT_DONE = (STOPPED, NOT_BEGUN, NO_RESULT, FAILURE)  # in the order in which they are counted


class RefusedSweep(BaseException):
    """A sweep that is not to be begun. Not an Exception: of those that a callback raises Hydra makes warnings."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class SweepReport:
    """What one process knows of the sweep that it runs; prints a line per run with what was swept and its ending.

    Where the runs have left pictures, they are put together on one sheet; runs that were trained are compared.

    Args:
        program: the command's name.

    Attributes:
        begun: whether there is a sweep.
        progress: what its runs say of how far it has come, once it has begun.
    """

    def __init__(self, program: str) -> None:
        self.begun = False
        self.progress = SweepProgress()
        self._program = program
        self._launcher = BASIC
        self._plan = SweepPlan(Path(), [], [])
        self._counts: Counter[str] = Counter()  # of runs, by how they ended, once they have been printed

    @contextmanager
    def told_by_hydra(self) -> Iterator[None]:
        """Inside, this is the report that `SweepCallback` tells when a sweep begins."""
        token = _report_to_tell.set(self)
        try:
            yield
        finally:
            _report_to_tell.reset(token)

    def begin(self, config: DictConfig) -> None:
        """Raises ConfigError, or what Hydra does, if it cannot be planned, or runs of another sweep are in its way."""
        refuse_copies(None)
        check_references(config)
        self._launcher = config.hydra.launcher._target_
        self._plan = plan_sweep(config)
        self._refuse_another()
        self.progress.runs = self._plan.runs or ()
        hydra_launchers.prepare(config)
        self.begun = True

    def _refuse_another(self) -> None:
        """Finished runs are skipped, and the others resumed: they have to be those of this sweep."""
        if self._plan.runs is None:
            for directory in _below(self._plan.home):
                raise ConfigError(f"{DIR}: {directory} already holds a run; choose another directory")
        for run in self._plan.runs or []:
            result = result_in(run.directory)
            if result is not None and result.overrides != run.overrides:
                raise ConfigError(
                    f"{DIR}: {run.directory} already holds a run of another sweep: "
                    f"{_differing(result.overrides, run.overrides)}; choose another directory"
                )

    def print(self, *, sheet: bool) -> None:
        """Print the table, make the sheet of the pictures where it is asked for and possible, and compare the runs.

        Raises:
            RunError: if the sheet cannot be written.
        """
        print(f"\nsweep in {self._plan.home}")
        pictures, endings, runs = [], [], self._runs()
        self._counts.clear()
        for run in runs:
            try:
                result = result_in(run.directory)
                state, ending = _state(result)
            except (ConfigError, OSError) as error:
                result, state, ending = None, FAILURE, f"FAILED: {error}"
            self._counts[state] += 1
            endings.append(printable(ending))
            pictures.append((run.overrides, None if result is None else _picture(run, result)))
        swept = [list(map(printable, overrides)) for overrides in varying([run.overrides for run in runs])]
        rows = [[self._name(run), *texts, ending] for run, texts, ending in zip(runs, swept, endings, strict=True)]
        for line in in_columns(rows):
            print(f"  {line}")
        if sheet and any(picture is not None for _, picture in pictures):
            self._make_sheet(pictures)
        self._compare([run.directory for run in runs])

    def _compare(self, directories: list[Path]) -> None:
        """Write the comparison, and say where it is. What is wrong with it is no failure of the sweep."""
        from ddpm_cli.comparison.of_sweep import compare_sweep  # brings TensorBoard with it

        try:
            compared = compare_sweep(self._plan.home, directories, shutil.get_terminal_size((WIDTH, 24)).columns - 2)
        except Exception as error:
            first, *_ = str(error).strip().splitlines() or [type(error).__name__]
            print(f"  compare  not written: {printable(first)}")
            return
        if compared is not None:
            for line in compared.lines:
                print(f"  {line}")
            print(f"  compare  {printable(str(compared.page))}")

    def _runs(self) -> list[PlannedRun]:
        if self._plan.runs is not None:
            return self._plan.runs
        runs = []
        for directory in _below(self._plan.home):
            try:
                result = result_in(directory)
            except ConfigError:
                result = None
            runs.append(PlannedRun([] if result is None else result.overrides, directory))
        return sorted(runs, key=lambda run: (len(str(run.directory)), run.directory))

    def _name(self, run: PlannedRun) -> str:
        name = os.path.relpath(run.directory, self._plan.home)
        return str(run.directory) if name.startswith(os.pardir) else name

    def _make_sheet(self, pictures: list[tuple[list[str], Path | None]]) -> None:
        from ddpm_cli.cli.contact_sheet import contact_sheet  # brings torch with it

        file = self._plan.home / SHEET_FILE
        try:
            sheet = contact_sheet(pictures)
            if sheet is not None:
                file.unlink(missing_ok=True)
                sheet.save(file)
                print(f"  {file}")
        except OSError as error:
            raise RunError(f"{file} cannot be made: {error}") from error

    def lost(self, error: Exception) -> bool:
        """Report on a sweep whose launcher has lost jobs, say because one was killed; False if it is not about that."""
        library = type(error).__module__.partition(".")[0]
        if not self.begun or library not in ("joblib", "submitit") or not self._plan.home.is_dir():
            return False
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        print(f"the sweep has lost a job: {first}", file=sys.stderr)
        self.print(sheet=True)
        return True

    def unfinished(self, signal: str | None) -> str | None:
        """Of what has been printed, what to say of runs that are not done, and how the sweep goes on; None: all are.

        Args:
            signal: that has asked the sweep to stop, if one has.
        """
        total = self._counts.total()
        if self._counts[DONE] == total:
            return None
        said = [f"{self._counts[DONE]} of {total} runs done"]
        said += [f"{self._counts[state]} {state}" for state in _NOT_DONE if self._counts[state] > 0]
        asked = "" if signal is None else f"{signal}: "
        if signal is not None and self._launcher in SUBMITIT:
            asked = f"{signal}: waits no longer; jobs that were submitted go on by themselves. "
        return f"{asked}{', '.join(said)}{self._how_to_go_on()}"

    def _how_to_go_on(self) -> str:
        if self._plan.runs is None:
            return ""
        same = [argument for argument in sys.argv[1:] if key_of(argument) not in (DIR, SUBDIR)]
        return f". To go on, without those that are done: {command(self._program, *same, *self._plan.places)}"

    def status(self, *, asked_to_stop: bool) -> int:
        """The exit status, by what has been printed."""
        if self._counts[DONE] == self._counts.total():
            return 0
        only_stopped = self._counts[STOPPED] > 0 and self._counts[FAILURE] + self._counts[NO_RESULT] == 0
        return RESUME_LATER if asked_to_stop or only_stopped else FAILED


def _state(result: RunResult | None) -> tuple[str, str]:
    """How a run has ended: under which word it is counted, and what the table says of it."""
    if result is None:
        return NOT_BEGUN, NOT_BEGUN
    if result.under_way:
        return NO_RESULT, "no result; it was killed, or is still running"
    if result.done:
        return DONE, result.ending
    return (STOPPED, f"STOPPED: {result.ending}") if result.stopped else (FAILURE, f"FAILED: {result.ending}")


def _picture(run: PlannedRun, result: RunResult) -> Path | None:
    """The picture of a run that is done, also after the sweep's directory has been moved."""
    if not result.done or result.picture is None:
        return None
    file = Path(result.picture)
    return file if file.is_file() else run.directory / file.name


def _differing(then: list[str], now: list[str]) -> str:
    """What of a run's overrides is not in the other's, on both sides."""
    was, would_be = (" ".join(text for text in a if text not in b) for a, b in ((then, now), (now, then)))
    return f"of {shown(was or ' '.join(then)) or 'no overrides'}, not {shown(would_be or ' '.join(now))}"


def _below(home: Path) -> Iterator[Path]:
    """The directories in a sweep's in which runs of a sweep have begun."""
    for directory, inner, files in os.walk(home):
        if RESULT_FILE in files:
            inner.clear()
            yield Path(directory)
        inner[:] = sorted(name for name in inner if not name.startswith("."))


# Where a report and its callback meet: Hydra makes callbacks itself, by the name in a YAML file, and hands them nothing
# of ours.
_report_to_tell: ContextVar[SweepReport] = ContextVar("_report_to_tell")


class SweepCallback(Callback):
    """What Hydra calls when a sweep begins, as configs/train.yaml and configs/sample.yaml ask."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            _report_to_tell.get().begin(config)
        except (ConfigError, HydraException, OmegaConfBaseException, OSError) as error:
            raise RefusedSweep(error) from error
