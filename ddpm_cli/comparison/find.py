"""Finds the directories that are runs, by the files in them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddpm_cli.io.own_output import FINISHED_FILE, RESULT_FILE, UNFINISHED_FOLDER
from ddpm_cli.io.run_dir import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, RUN_FILE

MOST_RUNS = 500  # in one comparison
MOST_DIRECTORIES = 50_000  # that are looked into


@dataclass
class Found:
    """The directories of runs, in natural order, and remarks on where the search stopped."""

    directories: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_runs(directories: Sequence[Path]) -> Found:
    """The runs that are these directories or below them, each once. Links and hidden directories are not followed.

    Raises:
        ValueError: if one of them is not there, or cannot be read; names it.
    """
    found, looked_into, known = Found(), 0, set()
    for home in directories:
        _check(home)
        below = []
        for place, inner, files in os.walk(home):
            looked_into += 1
            if looked_into > MOST_DIRECTORIES:
                found.left_out.append(f"{home}: only the first {MOST_DIRECTORIES:,} directories were searched")
                break
            if is_run(inner, files):
                real = os.path.realpath(place)
                if real not in known:
                    below.append(Path(place))
                known.add(real)
                inner.clear()
            elif FINISHED_FILE in files or UNFINISHED_FOLDER in inner:  # what ddpm-sample drew
                inner.clear()
            inner[:] = [name for name in inner if not name.startswith(".")]
        found.directories += sorted(below, key=lambda path: natural(str(path)))
    if len(found.directories) > MOST_RUNS:
        found.left_out.append(f"{len(found.directories):,} runs were found; only the first {MOST_RUNS} are compared")
        del found.directories[MOST_RUNS:]
    return found


def is_run(folders: Sequence[str], files: Sequence[str]) -> bool:
    """Whether a directory with these entries is of a training run, or of a failed run of a sweep."""
    trained = CONFIG_FILE in files and (METRICS_FILE in files or CHECKPOINTS in folders)
    failed = RESULT_FILE in files and FINISHED_FILE not in files and UNFINISHED_FOLDER not in folders
    return RUN_FILE in files or trained or failed


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key for names, in which numbers count as numbers: 2 before 10."""
    parts, digits = [], ""
    for character in f"{name}\0":
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((0, int(digits[:300])))
            digits = ""
        parts.append((1, character))
    return parts


def _check(directory: Path) -> None:
    if not directory.is_dir():
        what = "is not a directory" if os.path.lexists(directory) else "no such directory"
        raise ValueError(f"{directory}: {what}")
    try:
        os.scandir(directory).close()
    except OSError as error:
        raise ValueError(f"{directory}: {error.strerror}") from error
