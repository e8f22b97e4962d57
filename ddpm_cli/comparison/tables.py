"""compare.csv, which has everything, and compare.md, for notes and pull requests."""

import csv
import io
import re

from ddpm_cli.comparison.again import command_again
from ddpm_cli.comparison.seeds import SAID, over_seeds
from ddpm_cli.comparison.table import FIGURE, KEY, Comparison
from ddpm_cli.io.text import printable

CSV_BEGINS = "run,directory,state,step,steps,"
MARKDOWN_BEGINS = "<!-- ddpm-compare -->"
LONGEST = 60  # characters of a cell of Markdown


def csv_text(comparison: Comparison) -> str:
    """A row for each run: what differs, every figure with its error and how it was made, and the command."""
    columns = [column for column in comparison.columns if column.kind in (KEY, FIGURE)]
    header = [*CSV_BEGINS.rstrip(",").split(","), "images_per_second", "seconds"]
    for column in columns:
        header += [column.key, *([f"{column.key}: how"] if column.kind == FIGURE else [])]
    rows: list[list[object]] = [[*header, "command"]]
    for i, run in enumerate(comparison.runs):
        row: list[object] = [run.name, printable(str(run.directory.absolute())), run.state, run.step, run.steps]
        row += [run.images_per_second, run.seconds]
        for column in columns:
            cell = column.cells[i]
            row += [cell.text] if column.kind == KEY else [cell.value, cell.detail]
        rows.append([*row, command_again(run)])
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def _harmless(cell: object) -> object:
    """A text that no spreadsheet reads as a formula."""
    if not isinstance(cell, str) or not re.match(r"[=+@\t\r-]", cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def markdown(comparison: Comparison) -> str:
    """The table, with the best figures in bold, that of the means over seeds, and what is to be said of them."""
    means = over_seeds(comparison)
    of_seeds = [] if means is None else ["", f"{SAID}:", "", *_table(means)]
    said = [*comparison.notes, *(f"left out: {line}" for line in comparison.left_out)]
    lines = [
        MARKDOWN_BEGINS,
        "",
        *_table(comparison),
        *of_seeds,
        "",
        *(f"- {_escaped(line, most=1000)}" for line in said),
    ]
    return "\n".join([*lines, ""])


def _table(comparison: Comparison) -> list[str]:
    columns = [column for column in comparison.columns if any(cell.text for cell in column.cells)]
    lines = [
        f"| run | {' | '.join(_escaped(column.heading) for column in columns)} |",
        f"| --- | {' | '.join('---:' if column.numeric else '---' for column in columns)} |",
    ]
    for i, run in enumerate(comparison.runs):
        cells = [_escaped(column.cells[i].text) for column in columns]
        best = [column.cells[i].best for column in columns]
        shown = (f"**{text}**" if bold else text for text, bold in zip(cells, best, strict=True))
        lines.append(f"| {_escaped(run.name)} | {' | '.join(shown)} |")
    return lines


def _escaped(text: str, most: int = LONGEST) -> str:
    text = printable(text) if len(text) <= most else f"{printable(text[:most])}..."
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", text)
