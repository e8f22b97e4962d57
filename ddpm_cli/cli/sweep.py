"""Sweeps (`-m`): what each run leaves behind, the table at the end, and what depends on the launcher."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from ddpm_cli.cli.gpu_lock import visible_gpus

RESULT_FILE = "result.json"
SHEET_FILE = "contact_sheet.png"

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


def stop_workers() -> bool:
    """Ask the processes in which joblib runs jobs for this one to stop; whether there are any."""
    workers = [process for process in multiprocessing.active_children() if "loky" in type(process).__module__]
    for worker in workers:
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGTERM)
    return bool(workers)


def write_result(
    directory: Path,
    *,
    overrides: list[str],
    loss: float | None,
    error: str | None,
    stopped: bool = False,
    details: str | None = None,
    picture: str | None = None,
    gpu: str | None = None,
) -> None:
    """Keep in a run of a sweep how it ended, where `SweepReport` finds it whichever launcher ran it.

    Args:
        stopped: whether `error` says that it was asked to stop: then it may go on here.
        picture: the file to show in the sweep's contact sheet.
        gpu: the one that the run had to itself, if it had to choose one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if details is not None:
        (directory / "error.log").write_text(details, encoding="utf-8")
    result = {"overrides": overrides, "final_loss": loss, "error": error, "stopped": stopped}
    result |= {"picture": picture, "gpu": gpu}
    (directory / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def has_result(directory: Path) -> bool:
    """Whether a run of some sweep has ended in this directory, and was not only asked to stop."""
    file = directory / RESULT_FILE
    return file.exists() and not json.loads(file.read_text(encoding="utf-8")).get("stopped", False)


def ended(loss: float | None) -> str:
    """How a run ended well."""
    return "done" if loss is None else f"loss {loss:.4f}"


class SweepReport(Callback):
    """Hydra callback: when a sweep is over, prints one line per run with its overrides and final loss or error.

    Where the runs have left pictures, they are put together on one sheet.
    """

    failed = 0  # runs of this process's sweep that failed: the exit status says so
    current: "SweepReport | None" = None  # of the sweep that has begun

    def __init__(self) -> None:
        self.launcher = _BASIC
        self.directory = Path()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises RefusedSweep if the directory holds another sweep."""
        self.launcher = config.hydra.launcher._target_
        self.directory = Path(config.hydra.sweep.dir)
        earlier = next(_results(self.directory), None)
        if earlier is not None:
            raise RefusedSweep(f"hydra.sweep.dir: {earlier.parent} already holds a run; choose another directory")
        if self.launcher == JOBLIB and device_is_auto(config):
            _one_job_per_gpu(config)
        SweepReport.current = self

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        SweepReport.current = None
        self._report()

    @classmethod
    def lost(cls, error: Exception) -> bool:
        """Report on a sweep whose launcher has lost jobs, say because one was killed; False if it is not about that."""
        report, library = cls.current, type(error).__module__.partition(".")[0]
        if report is None or library not in ("joblib", "submitit") or not report.directory.is_dir():
            return False
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        print(f"the sweep has lost a job: {first}", file=sys.stderr)
        report._report()
        return True

    @classmethod
    def left_behind(cls, asked: str | None) -> str | None:
        """What to say where this process stops and its jobs go on; None if they do not."""
        if cls.current is None or cls.current.launcher not in SUBMITIT:
            return None
        return f"{asked}: waits no longer; jobs that were submitted go on by themselves, in {cls.current.directory}"

    def _report(self) -> None:
        from ddpm_cli.cli.contact_sheet import contact_sheet  # brings torch with it

        print(f"\nsweep in {self.directory}")
        pictures = []
        runs = [path for path in self.directory.glob("*") if path.is_dir() and not path.name.startswith(".")]
        for run in sorted(runs, key=lambda path: (len(path.name), path.name)):
            file = run / RESULT_FILE
            if not file.exists():
                print(f"  {run.name}  FAILED: no result; it was killed, or is still running")
                SweepReport.failed += 1
                continue
            result = json.loads(file.read_text(encoding="utf-8"))
            print(f"  {run.name}  {' '.join(result['overrides'])}  {_ended(result)}")
            SweepReport.failed += result["error"] is not None
            pictures.append((result["overrides"], None if result["picture"] is None else Path(result["picture"])))
        sheet = contact_sheet(pictures)
        if sheet is not None:
            sheet.save(self.directory / SHEET_FILE)
            print(f"  {self.directory / SHEET_FILE}")


def _one_job_per_gpu(config: DictConfig) -> None:
    """Let joblib run as many jobs at a time as there are GPUs: more would only wait for one of them."""
    gpus, launcher = len(visible_gpus()), config.hydra.launcher
    if gpus > 0 and (launcher.n_jobs < 0 or launcher.n_jobs > gpus):
        with read_write(config):
            launcher.n_jobs = gpus


def _results(directory: Path) -> Iterator[Path]:
    return directory.glob(f"*/{RESULT_FILE}")


def _ended(result: dict) -> str:
    if result["error"] is not None:
        return f"{'STOPPED' if result['stopped'] else 'FAILED'}: {result['error']}"
    return ended(result["final_loss"])
