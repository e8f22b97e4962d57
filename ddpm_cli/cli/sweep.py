"""Sweeps (`-m`): what each run leaves behind, the table at the end, and what depends on the launcher."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from ddpm_cli.cli.gpu_lock import visible_gpus
from ddpm_cli.cli.launchers import refuse_copies
from ddpm_cli.cli.references import check_references
from ddpm_cli.config.errors import ConfigError, shown
from ddpm_cli.io import durable, plain_files
from ddpm_cli.io.own_output import RESULT_FILE, SHEET_FILE
from ddpm_cli.runtime.cgroup import cpus

MOST_RESULT = 2**20  # bytes; ours has the overrides of a run, and what went wrong

# Launchers, as Hydra's configuration names them.
_BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
SUBMITIT = (SLURM, "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher")


class RefusedSweep(BaseException):
    """A sweep that is not to be begun. Not an Exception: of those that a callback raises Hydra makes warnings."""


def runs_in_parallel(launcher: str) -> bool:
    """Whether a launcher may run several jobs at a time."""
    return launcher != _BASIC


def device_is_auto(cfg: DictConfig) -> bool:
    """Whether a run takes the GPU that it finds: `trainer.device=auto`, or `device=auto` of ddpm-sample."""
    return OmegaConf.select(cfg, "trainer.device", default=cfg.get("device")) == "auto"


def stop_workers(at_once: bool) -> bool:
    """Ask the processes in which joblib runs jobs for this one to stop, or end them at once; whether there are any."""
    workers = [process for process in multiprocessing.active_children() if "loky" in type(process).__module__]
    for worker in workers:
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL if at_once else signal.SIGTERM)
    return bool(workers)


@dataclass
class RunResult:
    """How a run of a sweep ended, kept in its directory: the report finds it there whichever launcher ran it."""

    overrides: list[str]
    final_loss: float | None = None
    error: str | None = None
    stopped: bool = False  # `error` says that it was asked to stop: then it may be resumed here
    picture: str | None = None  # the file to show in the sweep's contact sheet
    gpu: str | None = None  # the one that the run had to itself, if it had to choose one

    @property
    def ending(self) -> str:
        if self.error is not None:
            return self.error
        return "done" if self.final_loss is None else f"loss {self.final_loss:.4f}"

    def write(self, directory: Path, *, traceback: str | None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if traceback is not None:
            durable.replace(directory / "error.log", traceback.encode())
        durable.replace(directory / RESULT_FILE, f"{json.dumps(asdict(self), indent=2)}\n".encode())

    @classmethod
    def read(cls, file: Path) -> "RunResult":
        """Raises ConfigError if it is not what `write` makes."""
        try:
            return cls(**json.loads(plain_files.read(file, MOST_RESULT)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{file} is no result of a run ({shown(str(error))})") from error


def has_result(directory: Path) -> bool:
    """Whether a run of some sweep has ended in this directory, and was not only asked to stop."""
    file = directory / RESULT_FILE
    return file.exists() and not RunResult.read(file).stopped


class SweepReport:
    """What one process knows of the sweep that it runs; over, it prints a line per run with its overrides and ending.

    Where the runs have left pictures, they are put together on one sheet.

    Attributes:
        begun: whether there is a sweep.
        failed: how many runs have failed, once it is over: the exit status says so.
    """

    def __init__(self) -> None:
        self.begun = False
        self.failed = 0
        self._launcher = _BASIC
        self._directory = Path()
        self._under_way = False

    @contextmanager
    def told_by_hydra(self) -> Iterator[None]:
        """Inside, this is the report that `SweepCallback` tells when a sweep begins and ends."""
        token = _report_to_tell.set(self)
        try:
            yield
        finally:
            _report_to_tell.reset(token)

    def begin(self, config: DictConfig) -> None:
        """Raises RefusedSweep if the directory holds another sweep, or its name cannot be read."""
        try:
            refuse_copies(None)
            check_references(config)
        except ConfigError as error:
            raise RefusedSweep(str(error)) from error
        self._launcher = config.hydra.launcher._target_
        self._directory = Path(config.hydra.sweep.dir)
        earlier = next(self._directory.glob(f"*/{RESULT_FILE}"), None)
        if earlier is not None:
            raise RefusedSweep(f"hydra.sweep.dir: {earlier.parent} already holds a run; choose another directory")
        if self._launcher == JOBLIB:
            os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(cpus()))
            if device_is_auto(config):
                _one_job_per_gpu(config)
        self.begun = self._under_way = True

    def end(self) -> None:
        self._under_way = False
        self._print()

    def lost(self, error: Exception) -> bool:
        """Report on a sweep whose launcher has lost jobs, say because one was killed; False if it is not about that."""
        library = type(error).__module__.partition(".")[0]
        if not self._under_way or library not in ("joblib", "submitit") or not self._directory.is_dir():
            return False
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        print(f"the sweep has lost a job: {first}", file=sys.stderr)
        self._print()
        return True

    def left_behind(self, asked: str | None) -> str | None:
        """What to say where this process stops and its jobs go on; None if they do not."""
        if not self._under_way or self._launcher not in SUBMITIT:
            return None
        return f"{asked}: waits no longer; jobs that were submitted go on by themselves, in {self._directory}"

    def _print(self) -> None:
        from ddpm_cli.cli.contact_sheet import contact_sheet  # brings torch with it

        print(f"\nsweep in {self._directory}")
        pictures = []
        runs = [path for path in self._directory.glob("*") if path.is_dir() and not path.name.startswith(".")]
        for run in sorted(runs, key=lambda path: (len(path.name), path.name)):
            file = run / RESULT_FILE
            if not file.exists():
                print(f"  {run.name}  FAILED: no result; it was killed, or is still running")
                self.failed += 1
                continue
            result = RunResult.read(file)
            failed = "" if result.error is None else "STOPPED: " if result.stopped else "FAILED: "
            print(f"  {run.name}  {' '.join(result.overrides)}  {failed}{result.ending}")
            self.failed += result.error is not None
            pictures.append((result.overrides, None if result.picture is None else Path(result.picture)))
        sheet = contact_sheet(pictures)
        if sheet is not None:
            (self._directory / SHEET_FILE).unlink(missing_ok=True)
            sheet.save(self._directory / SHEET_FILE)
            print(f"  {self._directory / SHEET_FILE}")


# Where a report and its callback meet: Hydra makes callbacks itself, by the name in a YAML file, and hands them nothing
# of ours.
_report_to_tell: ContextVar[SweepReport] = ContextVar("_report_to_tell")


class SweepCallback(Callback):
    """What Hydra calls when a sweep begins and ends, as configs/train.yaml and configs/sample.yaml ask."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _report_to_tell.get().begin(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        _report_to_tell.get().end()


def _one_job_per_gpu(config: DictConfig) -> None:
    """Let joblib run as many jobs at a time as there are GPUs: more would only wait for one of them."""
    gpus, launcher = len(visible_gpus()), config.hydra.launcher
    if gpus > 0 and (launcher.n_jobs < 0 or launcher.n_jobs > gpus):
        with read_write(config):
            launcher.n_jobs = gpus
