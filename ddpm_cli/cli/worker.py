"""What a run needs in a launcher's worker process: a file for its output, and its signals."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from ddpm_cli.cli.hydra_launchers import JOBLIB, SLURM, SUBMITIT
from ddpm_cli.io import durable
from ddpm_cli.runtime import console, openmp
from ddpm_cli.runtime.exit_codes import Stopped
from ddpm_cli.runtime.signals import Stop

CONSOLE_FILE = "console.log"


def worker_process(launcher: str, directory: Path, stop: Stop) -> AbstractContextManager[None]:
    """A context for one run in `directory`, for the launcher that has sent it.

    Entering or leaving it raises Stopped if the process has been asked to stop, perhaps while it was at another run.
    """
    console.install()
    if launcher != SLURM:
        openmp.prepare(wait_passively=True)  # jobs on the same cores, which would all but stop each other
    if launcher == JOBLIB:
        return _of_joblib(directory / CONSOLE_FILE, stop)
    if launcher in SUBMITIT:
        return _of_submitit(stop)
    return stop.installed_for_job()


@contextmanager
def _of_joblib(console_file: Path, stop: Stop) -> Iterator[None]:
    """Send output to a file for each run, as several runs at once would mix theirs."""
    console_file.parent.mkdir(parents=True, exist_ok=True)
    durable.unshare(console_file)
    with (
        console.opened(console_file) as file,
        redirect_stdout(file),
        redirect_stderr(file),
        stop.installed_for_job(),
    ):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the command passes it on
        yield


@contextmanager
def _of_submitit(stop: Stop) -> Iterator[None]:
    """On submitit's signal too, save the run, stop it, and only then requeue the job.

    Submitit's own handler ends the process at once, saved or not.
    """
    name = f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    assert callable(handler)
    try:
        with stop.installed_for_job(name):
            yield
    except Stopped as stopped:
        if stop.signal != name:
            raise
        raise Stopped(f"{stopped}. {_requeue(handler, number)}") from stopped


def _requeue(handler: Callable, number: int) -> str:
    """Have submitit requeue the job, which ends this process; returns why it was not requeued."""
    try:
        handler(number, None)
    except Exception as error:  # submitit's own
        return str(error)
    return "The job was not requeued"
