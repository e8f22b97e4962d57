"""The loggers of a run, begun and ended together; and what is said of them on a command line that resumes it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ddpm_cli.config.compare import LOGGER
from ddpm_cli.config.shipped import configs_directory, groups
from ddpm_cli.io import run_dir
from ddpm_cli.io.command_line import hydra_text
from ddpm_cli.loggers.aside import HURRIED_SECONDS, Aside
from ddpm_cli.loggers.logger import Ending, Logger, RunInfo
from ddpm_cli.loggers.process import END_SECONDS
from ddpm_cli.loggers.tensorboard import TensorBoard


class RunLoggers:
    """Those of a run, at work.

    Args:
        loggers: as they were chosen, by name.
        nodes: what builds each of them.
        recorded: the last step that is on record already.
        asked_to_stop: is looked at while the last of them sends what it has left.

    Raises:
        OSError: for files of TensorBoard, here and later; of the others nothing is raised.
    """

    def __init__(
        self,
        loggers: Mapping[str, Logger],
        nodes: Mapping[str, dict[str, Any]],
        run: RunInfo,
        *,
        recorded: int,
        asked_to_stop: Callable[[], bool],
    ):
        self.records = [logger for logger in loggers.values() if isinstance(logger, TensorBoard)]
        self.aside = [
            Aside(name, nodes[name], recorded, run)
            for name, logger in loggers.items()
            if not isinstance(logger, TensorBoard)
        ]
        self._asked_to_stop = asked_to_stop
        self._ended = False
        for logger in self.records:
            logger.begin(run)
        for logger in self.aside:
            logger.begin()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show figures of a step. Of those that are not finite TensorBoard alone knows how to show that."""
        for logger in self.records:
            logger.scalars(step, dict(values))
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for logger in self.aside:
            logger.scalars(step, finite)

    def flush(self) -> None:
        """Have on the disk what is among the run's records."""
        for logger in self.records:
            logger.flush()

    def end(self, ending: Ending) -> None:
        """Show how the run has ended, and return when that is sent, or the time for it is up. Only the first counts."""
        if self._ended:
            return
        self._ended = True
        for logger in (*self.records, *self.aside):
            with suppress(OSError):  # flushed before every checkpoint: what is in it is no longer in question
                logger.end(ending)
        until = time.monotonic() + (END_SECONDS if ending.state == "finished" else HURRIED_SECONDS)
        before = self._asked_to_stop()
        for logger in self.aside:
            with suppress(OSError):  # of the run's own log
                logger.wait(until - time.monotonic(), hurried=lambda: self._asked_to_stop() and not before)


# On a command line ---------------------------------------------------------------------------------------------------


def overrides(nodes: Mapping[str, dict[str, Any]]) -> list[str]:
    """What a command line has to say to have these loggers; nothing, if they are those that it has anyway."""
    found = [] if list(nodes) == groups("train")[LOGGER] else [f"{LOGGER}=[{','.join(nodes)}]"]
    for name, node in nodes.items():
        file = configs_directory() / LOGGER / f"{name}.yaml"
        default = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else node
        found += [f"{LOGGER}.{name}.{key}={_text(value)}" for key, value in node.items() if value != default.get(key)]
    return found


def left_out(directory: Path, nodes: Mapping[str, Any]) -> str | None:
    """What is to be said of a run that was logged elsewhere before, and now is not; None: there is no such place."""
    before = sorted(file.stem for file in (directory / run_dir.LOGGERS).glob("*.json"))
    missing = [name for name in before if name not in nodes]
    if not missing:
        return None
    chosen = ",".join([*nodes, *missing])
    return (
        f"{LOGGER:8} this run has also been logged with {' and '.join(missing)}. Only the command line decides what "
        f"leaves the machine: {LOGGER}=[{chosen}] continues there"
    )


def _text(value: object) -> str:
    if isinstance(value, str):
        return hydra_text(value)
    if isinstance(value, Sequence):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
