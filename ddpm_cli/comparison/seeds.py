"""Runs that differ in nothing but their seed, put together: of each figure its mean, and how far the runs lie apart."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from ddpm_cli.comparison.run import FINISHED
from ddpm_cli.comparison.table import FIGURE, HIGHER_BETTER, KEY, PROGRESS, Cell, Column, Comparison, decimals, fixed
from ddpm_cli.comparison.terminal import terminal_table
from ddpm_cli.io.text import printable

SEED = "seed"
NAMED = 6  # seeds; of more there is only how many
SAID = "over seeds: mean ± standard deviation"


def over_seeds(comparison: Comparison) -> Comparison | None:
    """A row for each group of finished runs that differ in `seed` alone, and do; None if there is no such group.

    The standard deviation is that of the runs, with n - 1. The best mean is marked where the figures of the runs are
    ranked: where they may not be compared, neither may their means.
    """
    groups: dict[tuple, list[int]] = {}
    for i, run in enumerate(comparison.runs):
        if run.state == FINISHED and run.config is not None:
            groups.setdefault(tuple((key, text) for key, text in run.config.items() if key != SEED), []).append(i)
    rows = [row for row in groups.values() if len({(comparison.runs[i].config or {}).get(SEED) for i in row}) > 1]
    if not rows:
        return None
    runs = [replace(comparison.runs[row[0]], name=" ".join(comparison.runs[i].name for i in row)) for row in rows]
    columns = [_of_seeds(comparison, rows)]
    for column in comparison.columns:
        if column.kind == KEY and column.key != SEED:
            columns.append(replace(column, cells=[column.cells[row[0]] for row in rows]))
        elif column.kind == FIGURE:
            columns.append(_means(column, rows))
    return Comparison(comparison.home, runs, columns)


def seeds_lines(comparison: Comparison, width: int, elsewhere: str) -> list[str]:
    """The table of `over_seeds` as a terminal shows it, below a line that says what it is; nothing where there is none.

    Args:
        width: as of `terminal_table`, and so is `elsewhere`.
    """
    means = over_seeds(comparison)
    return [] if means is None else [SAID, *terminal_table(means, width, elsewhere).splitlines()]


def _of_seeds(comparison: Comparison, rows: Sequence[Sequence[int]]) -> Column:
    seeds = [[(comparison.runs[i].config or {}).get(SEED, "") for i in row] for row in rows]
    texts = [" ".join(of_row) if len(of_row) <= NAMED else f"{len(of_row)} of them" for of_row in seeds]
    return Column(PROGRESS, "seeds", "seeds", [Cell(printable(text)) for text in texts])


def _means(column: Column, rows: Sequence[Sequence[int]]) -> Column:
    found = [[v for i in row if isinstance(v := column.cells[i].value, int | float)] for row in rows]
    means = [statistics.fmean(values) if values else None for values in found]
    digits = decimals([mean for mean in means if mean is not None])
    ranked = any(cell.best for cell in column.cells)
    known = [mean for mean in means if mean is not None]
    best = (max if column.about.startswith(HIGHER_BETTER) else min)(known) if ranked and len(known) > 1 else None
    cells = []
    for mean, values in zip(means, found, strict=True):
        if mean is None:
            cells.append(Cell())
            continue
        spread = f" ± {fixed(statistics.stdev(values), digits)}" if len(values) > 1 else ""
        cells.append(Cell(f"{fixed(mean, digits)}{spread}", mean, best=mean == best))
    return replace(column, cells=cells)
