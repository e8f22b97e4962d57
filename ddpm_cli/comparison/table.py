"""The table of a comparison, for all outputs: a row for each run, columns for differences and results."""

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddpm_cli.comparison.figures import HIGHER, Figures, compare_figures
from ddpm_cli.comparison.find import find_runs
from ddpm_cli.comparison.flat_config import differing, short_names
from ddpm_cli.comparison.run import FINISHED, Run, read_run
from ddpm_cli.io.text import printable

PROGRESS, KEY, FIGURE, SPEED, TIME = "progress", "key", "figure", "speed", "time"
HIGHER_BETTER = "higher is better"


@dataclass(frozen=True)
class Cell:
    """The text of a cell, the value that it is sorted by, and its details."""

    text: str = ""
    value: float | str | None = None
    detail: str = ""
    best: bool = False


@dataclass
class Column:
    """A column; `heading` is its short title, `key` the whole one."""

    kind: str
    key: str
    heading: str
    cells: list[Cell]
    numeric: bool = False
    about: str = ""


@dataclass
class Comparison:
    """Runs side by side.

    Attributes:
        notes: lines on what cannot be compared, and on runs that did not finish.
        left_out: lines on what could not be read.
    """

    home: Path
    runs: list[Run]
    columns: list[Column]
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def compare(directories: Sequence[Path]) -> Comparison:
    """Read and compare the runs in and below directories.

    Raises:
        ValueError: if a directory is not there.
    """
    found = find_runs(directories)
    runs = [run for directory in found.directories if (run := read_run(directory)) is not None]
    home = _name_all(runs)
    figures, notes = compare_figures(runs)
    columns = [*_keys(runs), _progress(runs), *(_figures(kind, len(runs)) for kind in figures), *_costs(runs)]
    ended = [
        f"{run.name}: {run.state}: {_first_line(run.ending)}" for run in runs if run.ending and run.state != FINISHED
    ]
    left_out = [*found.left_out, *(line for run in runs for line in run.left_out)]
    return Comparison(home, runs, columns, [*notes, *ended], left_out)


def _name_all(runs: Sequence[Run]) -> Path:
    """Name runs by their paths from their common directory; returns that directory."""
    if not runs:
        return Path()
    places = [os.path.abspath(run.directory) for run in runs]
    home = os.path.commonpath([os.path.dirname(place) for place in places])
    for run, place in zip(runs, places, strict=True):
        run.name = printable(os.path.relpath(place, home))
    return Path(home)


def _first_line(text: str) -> str:
    line = printable(text.strip().splitlines()[0]) if text.strip() else ""
    return line if len(line) <= 300 else f"{line[:300]}..."


def _keys(runs: Sequence[Run]) -> list[Column]:
    whole = [run.config for run in runs if run.nodes is not None]
    keys = differing(whole, [run.config for run in runs if run.nodes is None and run.config is not None])
    headings = short_names(keys)
    columns = []
    for key in keys:
        texts = [printable((run.config or {}).get(key, "")) for run in runs]
        values = [_as_number(text) for text in texts]
        numeric = all(value is not None for text, value in zip(texts, values, strict=True) if text)
        cells = [Cell(text, value if numeric else text) for text, value in zip(texts, values, strict=True)]
        columns.append(Column(KEY, printable(key), printable(headings[key]), cells, numeric))
    return columns


def _as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _progress(runs: Sequence[Run]) -> Column:
    cells = []
    for run in runs:
        of = "" if run.steps is None else f"/{run.steps}"
        state = "" if run.state == FINISHED else f" {run.state}"
        cells.append(Cell(f"{run.step}{of}{state}", run.step, printable(run.ending or "")))
    return Column(PROGRESS, "step", "step", cells, numeric=True)


def _figures(figures: Figures, runs: int) -> Column:
    digits = decimals([figure.value for figure in figures.of.values()])
    cells = []
    for i in range(runs):
        figure = figures.of.get(i)
        if figure is None:
            cells.append(Cell())
            continue
        error = "" if figure.standard_error is None else f" ± {fixed(figure.standard_error, digits)}"
        text = f"{fixed(figure.value, digits)}{error}"
        cells.append(Cell(text, figure.value, printable(figure.detail), i in figures.best))
    better = HIGHER_BETTER if figures.better == HIGHER else "lower is better" if figures.better else ""
    about = ", ".join(part for part in (better, printable(figures.about)) if part)
    title = printable(figures.title)
    return Column(FIGURE, title, title, cells, numeric=True, about=about)


def decimals(values: Sequence[float]) -> int:
    """As many decimals as show four digits of a usual value, so that numbers below each other can be compared."""
    sizes = [abs(value) for value in values if value != 0]
    return min(max(3 - math.floor(math.log10(statistics.median(sizes))), 0), 10) if sizes else 4


def fixed(value: float, digits: int) -> str:
    """A value with so many decimals, unless it is so large that nobody wants them."""
    return f"{value:.{digits}f}" if abs(value) < 1e12 else f"{value:.4g}"


def _costs(runs: Sequence[Run]) -> list[Column]:
    speeds, times = ([getattr(run, name) for run in runs] for name in ("images_per_second", "seconds"))
    decimals = 0 if max((speed for speed in speeds if speed is not None), default=0) >= 100 else 1
    return [
        Column(
            SPEED,
            "images per second",
            "img/s",
            [Cell() if speed is None else Cell(f"{speed:.{decimals}f}", speed) for speed in speeds],
            numeric=True,
            about="median over the log",
        ),
        Column(
            TIME,
            "seconds",
            "time",
            [Cell() if time is None else Cell(time_text(time), time) for time in times],
            numeric=True,
            about="of the steps, without previews and checkpoints",
        ),
    ]


def time_text(seconds: float) -> str:
    """A time in people's units."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (360_000, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"
