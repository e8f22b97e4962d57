"""A run, read from its directory: its identity, its progress, its curves, its evaluations, its last preview."""

import os
import re
import socket
import statistics
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ddpm_cli.comparison import record_files
from ddpm_cli.comparison.evaluations import Evaluation, read_evaluations
from ddpm_cli.comparison.flat_config import DECIDE_NOTHING, flat
from ddpm_cli.comparison.series import IMAGES_PER_SECOND, Series, read_series
from ddpm_cli.io import run_dir
from ddpm_cli.io.own_output import RESULT_FILE
from ddpm_cli.io.run_identity import Identity, identity_of
from ddpm_cli.io.text import printable

FINISHED, STOPPED, FAILED, RUNNING, UNFINISHED = "finished", "stopped", "failed", "running", "unfinished"
_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) (.*)$", re.MULTILINE)
_OF_SAMPLES = ("ckpt", "samples")  # keys without which nothing is drawn, or evaluated, and that no training has


@dataclass
class Run:
    """A run, read from its records. `left_out` has a line for each thing that could not be read."""

    directory: Path
    name: str = ""  # by which the report calls it
    identity: Identity | None = None
    nodes: dict | None = field(
        default=None, repr=False
    )  # config.yaml, which may be more than memory holds, written out
    config: dict[str, str] | None = None  # the same by dotted keys
    overrides: list[str] | None = None  # of a run of a sweep, as its command line had them
    state: str = UNFINISHED
    ending: str | None = None  # why it was stopped, or failed
    step: int = 0
    steps: int | None = None  # wanted
    series: Series = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    preview: tuple[int, Path] | None = None  # its step and file
    left_out: list[str] = field(default_factory=list)

    @property
    def has_something(self) -> bool:
        """Whether it has anything to compare."""
        return bool(self.series or self.evaluations or self.preview)

    @property
    def images_per_second(self) -> float | None:
        """The median over the log."""
        speeds = [value for _, value in self.series.get(IMAGES_PER_SECOND, [])]
        return statistics.median(speeds) if speeds else None

    @property
    def seconds(self) -> float | None:
        """What the steps took that its log speaks of, without previews, checkpoints and the times it stood still."""
        batch = record_files.whole(_number_at(self.nodes, "trainer", "batch_size"))
        if batch is None:
            return None
        total, before = 0.0, 0
        for step, speed in self.series.get(IMAGES_PER_SECOND, []):
            total += batch * (step - before) / speed if speed > 0 else 0.0
            before = step
        return total or None


def read_run(directory: Path) -> Run | None:
    """Everything known about the run in a directory; None if it samples or evaluates, and does not train."""
    run = Run(directory, name=str(directory))
    result = _attempt(run, lambda: record_files.read_json(directory / RESULT_FILE)) or {}
    overrides = result.get("overrides")
    if isinstance(overrides, list) and all(isinstance(text, str) for text in overrides):
        run.overrides = overrides
        if any(_key(text) in _OF_SAMPLES for text in overrides):
            return None
    run.identity = _attempt(run, lambda: identity_of(directory))
    run.nodes = _attempt(run, lambda: record_files.read_yaml(directory / run_dir.CONFIG_FILE))
    if run.nodes is not None:
        run.config = flat(run.nodes)
    elif run.overrides is not None:
        run.config = _of_overrides(run.overrides)
    run.series, damaged = _attempt(run, lambda: read_series(directory / run_dir.METRICS_FILE)) or ({}, None)
    if damaged is not None:
        run.left_out.append(damaged)
    run.step = max((points[-1][0] for points in run.series.values()), default=0)
    run.steps = record_files.whole(_number_at(run.nodes, "trainer", "steps"))
    run.evaluations, damaged = read_evaluations(directory)
    run.left_out += damaged
    run.preview = _last_preview(directory / run_dir.PREVIEWS)
    _take_state(run, result)
    return run


def _attempt(run: Run, read):
    """The result of `read`; None if there is no such file; errors are noted."""
    try:
        return read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        run.left_out.append(printable(str(error)))
        return None


def _number_at(nodes: dict | None, group: str, key: str) -> object:
    node = (nodes or {}).get(group)
    return node.get(key) if isinstance(node, dict) else None


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _of_overrides(overrides: list[str]) -> dict[str, str]:
    """What is known about the configuration of a run that failed before it was written."""
    pairs = [text.lstrip("+").partition("=") for text in overrides if not text.startswith("~")]
    found = {key.replace("/", "."): value for key, _, value in pairs}
    for key, value in found.items():
        with suppress(yaml.YAMLError, ValueError, RecursionError):
            if isinstance(plain := yaml.safe_load(value), str):  # without its quotes
                found[key] = plain
    return {key: value for key, value in found.items() if key.partition(".")[0] not in DECIDE_NOTHING}


def _last_preview(directory: Path) -> tuple[int, Path] | None:
    if directory.is_symlink():
        return None
    drawn = {step: path for step, path in run_dir.by_step(directory, ".png").items() if not path.is_symlink()}
    return max(drawn.items(), default=None)


# How it ended --------------------------------------------------------------------------------------------------------


def _take_state(run: Run, result: dict) -> None:
    """By the record of a sweep, by the last line of its log, by how far it came, by its lock; in this order."""
    if result and result.get("under_way") is False:
        run.ending = record_files.text(result.get("error"), 2000)
        stopped = result.get("stopped") is True
        run.state = FINISHED if run.ending is None else STOPPED if stopped else FAILED
        return
    level, said = _last_said(run.directory / run_dir.LOG_FILE)
    if level == "ERROR":
        run.state, run.ending = FAILED, said
    elif run.steps is not None and run.step >= run.steps > 0:
        run.state = FINISHED
    elif _runs_here(run.directory / run_dir.LOCK_FILE):
        run.state = RUNNING
    elif level == "WARNING" and "stopped at step" in said:
        run.state, run.ending = STOPPED, said
    else:
        run.ending = "it was killed, or is still running elsewhere"


def _last_said(log: Path) -> tuple[str, str]:
    """The level and the text of the last entry of a log; empty where there is none."""
    try:
        said = _LOG_LINE.findall(record_files.end_of(log, record_files.MOST_LOG))
    except (OSError, ValueError):
        return "", ""
    return (said[-1][0], said[-1][1][:2000]) if said else ("", "")


def _runs_here(lock: Path) -> bool:
    """Whether a process of this machine is recorded as training there. The lock is not tried, as that would take it."""
    try:
        pid, host, *_ = record_files.read(lock, 4096).decode().splitlines()
        if host != socket.gethostname() or os.name == "nt":
            return False
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True
