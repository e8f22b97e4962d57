"""From the shell to a checked configuration: Hydra composes, every key is checked, and only then work begins.

A mistake is answered with one message and exit status 2. `HYDRA_FULL_ERROR=1` shows the traceback instead.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.cli import lazy_help
from ddpm_cli.cli.arguments import read_arguments
from ddpm_cli.cli.error_messages import explain
from ddpm_cli.cli.hydra_launchers import stop_workers
from ddpm_cli.cli.hydra_mode import compose_once
from ddpm_cli.cli.job import Job
from ddpm_cli.cli.launchers import speaks
from ddpm_cli.cli.other_primary import completed
from ddpm_cli.cli.own_yaml import check_what_hydra_loads
from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.cli.sweep import RefusedSweep, SweepReport
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.io.text import printable
from ddpm_cli.runtime import console
from ddpm_cli.runtime.exit_codes import FAILED, INTERRUPTED, MISTAKE, RESUME_LATER, RunError, Stopped, leave
from ddpm_cli.runtime.logs import log
from ddpm_cli.runtime.signals import Stop

LONGEST_LINE, MOST_LINES = 5000, 1000  # of a message: characters (a path may have 4096), and lines (of bad images)


def launch(program: str, config_name: str, target: str, job: Callable[[dict, Invocation], Any], *, stop: Stop) -> None:
    """Run `job(config, call)` once, or once per run of a sweep; ends the process with the status the shell should see.

    Args:
        program: the command's name, for messages.
        config_name: of the YAML file in configs/ to start from.
        target: the class whose fields are the configuration's top-level keys.
        job: gets the checked configuration as plain dicts; returns a final loss, or the picture that it has made. A
            launcher may pickle it into other processes.
        stop: tells whether the job was asked to stop.
    """
    console.install()
    report, status = SweepReport(program), 0
    called = Job(program, target, job, stop, progress=report.progress)
    try:
        _launch(called, config_name, report)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else FAILED
    if status == 0 and not (called.called or report.begun):
        status = _shown(program)
    stop.finish(status)
    leave(status)
    if status != 0:
        sys.exit(status)


def _shown(program: str) -> int:
    """The exit status of a command whose whole result is what it printed (help, a configuration)."""
    error = console.output_error()
    if error is None or error.errno == errno.EPIPE:  # a reader that has seen enough, such as `head`
        return 0
    _say(f"{program}: standard output: {error.strerror}")
    return FAILED


def _launch(job: Job, config_name: str, report: SweepReport) -> None:
    show_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as exceptions instead of being printed by Hydra
    register_resolvers()
    log.addFilter(_printable_record)
    stop = job.stop
    stop.pass_on = stop_workers
    try:
        with stop.unmistaken(), report.told_by_hydra(), job.run_directory.told_by_hydra():
            sys.argv[1:] = completed(read_arguments(sys.argv[1:]), config_name).as_hydra_takes_them()
            check_what_hydra_loads()
            compose_once()
            with lazy_help.unchecked():
                hydra.main(version_base="1.3", config_path=str(configs_directory()), config_name=config_name)(job)()
            if report.begun:
                report.print(sheet=not stop.requested)
            if job.failure is not None:
                raise job.failure
    except RefusedSweep as refused:
        if show_traceback:
            raise
        _say(f"{job.program}: {explain(refused.reason, sys.argv[1:], config_name, job.target)}")
        sys.exit(MISTAKE)
    except Exception as error:
        if not show_traceback and report.lost(error):
            _end_unfinished(job, report)
        if not show_traceback and _no_memory(error):
            _say(f"{job.program}: out of memory: the machine has no more, or this process has reached its limit")
            sys.exit(FAILED)
        # Whatever Hydra raises before it has a configuration is about the command line or a YAML file.
        about_the_call = isinstance(error, ConfigError | HydraException | OmegaConfBaseException) or not job.called
        if show_traceback or not (about_the_call or isinstance(error, RunError)):
            raise
        _say(f"{job.program}: {explain(error, sys.argv[1:], config_name, job.target)}")
        sys.exit(error.status if isinstance(error, RunError) else MISTAKE)
    except Stopped as stopped:
        if report.begun:
            report.print(sheet=False)
            _end_unfinished(job, report)
        _say(f"{job.program}: {stopped}")
        sys.exit(RESUME_LATER)
    except KeyboardInterrupt:
        print(f"{job.program}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if report.begun:
        _end_unfinished(job, report)


def _end_unfinished(job: Job, report: SweepReport) -> None:
    """Say so and end this process if runs of the sweep, whose report has just been printed, are not done."""
    unfinished = report.unfinished(job.stop.signal)
    if unfinished is not None:
        _say(f"{job.program}: {unfinished}")
        sys.exit(report.status(asked_to_stop=job.stop.requested))


def _no_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from ddpm_cli.runtime.device import out_of_memory

    return out_of_memory(error)


def _say(message: str) -> None:
    """Print one message, also if several processes do so together.

    Names and values in it can neither move the cursor nor start a line (our own lists are indented), nor fill the
    screen.
    """
    if speaks():
        lines = _lines(message.strip())
        said = [printable(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}...") for line in lines]
        more = [f"  and {len(said) - MOST_LINES:,} more"] if len(said) > MOST_LINES else []
        print("\n".join([*said[:MOST_LINES], *more]), file=sys.stderr)


def _printable_record(record: logging.LogRecord) -> bool:
    """Escape control characters for the terminal and train.log: a logging filter that drops nothing."""
    record.msg = "\n".join(map(printable, _lines(str(record.msg))))
    return True


def _lines(message: str) -> list[str]:
    """The lines of a message: those after the first begin with two spaces."""
    return re.split(r"\n(?=  )", message)
