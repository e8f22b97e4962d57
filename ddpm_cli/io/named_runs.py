"""Which run a directory of runs of one name stands for: of outputs/NAME the one begun last that has saved something."""

import os
from pathlib import Path
from typing import NamedTuple

from ddpm_cli.io.run_dir import CHECKPOINTS, CONFIG_FILE, RUN_FILE, by_step, is_dated
from ddpm_cli.io.run_identity import identity_of
from ddpm_cli.io.text import printable


class Newest(NamedTuple):
    """The run that a directory of runs stands for."""

    directory: Path
    said: str  # which of how many it is


def newest_of(directory: Path) -> Newest | None:
    """The run begun last of those directly in `directory` that are called DATE_TIME and have a checkpoint.

    None where there is nothing to choose: `directory` is a run itself, or holds no directory of such a name, as one of
    names (outputs) or of a sweep's runs.

    Raises:
        ValueError: if none has a checkpoint yet; if `directory` is a run and holds others too.
    """
    if not os.path.isdir(directory):  # False too for what can be no path, as a name of 300 letters
        return None
    runs = [path for path in directory.iterdir() if is_dated(path) and _is_run(path)]
    saved = sorted((path for path in runs if by_step(path / CHECKPOINTS)), key=_begun)
    if (directory / CHECKPOINTS).is_dir():
        if saved:
            raise ValueError(
                f"{directory} is a run, and holds another, {saved[-1].name}: "
                f"{directory / CHECKPOINTS} or {saved[-1]} says which is meant"
            )
        return None
    if not runs or _is_run(directory):
        return None
    if not saved:
        count = f"{len(runs):,} runs" if len(runs) > 1 else f"one run, {runs[0].name}"
        raise ValueError(f"{directory} holds {count}, and no checkpoint: none has saved one yet")
    meant = saved[-1]
    of = f", begun last of {len(saved):,} with a checkpoint" if len(saved) > 1 else ""
    later = [path.name for path in runs if path not in saved and _begun(path) > _begun(meant)]
    without = f"; {', '.join(sorted(later))} has none yet" if len(later) == 1 else ""
    without = f"; {len(later):,} begun later have none yet" if len(later) > 1 else without
    return Newest(meant, printable(f"{directory}: takes {meant.name}{of}{without}"))


def _is_run(directory: Path) -> bool:
    return (directory / CHECKPOINTS).is_dir() or any((directory / name).is_file() for name in (CONFIG_FILE, RUN_FILE))


def _begun(run: Path) -> tuple[str, str]:
    """By what runs are put into order: when they were begun, and, where nothing says so, what they are called."""
    try:
        identity = identity_of(run)
    except (OSError, ValueError):  # for whoever takes this run to refuse
        identity = None
    return "" if identity is None else identity.begun, run.name
