"""compare.html: one file that needs no other, makes no request, and runs no script but ours."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from ddpm_cli import __version__
from ddpm_cli.comparison.again import command_again
from ddpm_cli.comparison.curves import MOST_CHARTS, Chart, charts_of
from ddpm_cli.comparison.evaluations import Evaluation
from ddpm_cli.comparison.pictures import previews
from ddpm_cli.comparison.run import FINISHED, Run
from ddpm_cli.comparison.svg import number_text, stroke, svg
from ddpm_cli.comparison.table import FIGURE, KEY, PROGRESS, Cell, Column, Comparison
from ddpm_cli.io.text import printable

BEGINS = "<!DOCTYPE html><!-- ddpm-compare -->"
COLOURS = 8  # that can be told apart
MOST_EVALUATIONS = 2000  # rows
MOST_COMMANDS = 100
LONG = 40  # characters of a cell


def page(comparison: Comparison) -> str:
    """The whole page."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    colours = _colours(comparison)
    charts, too_many_charts = _charts(comparison, colours)
    pictures, no_pictures = _previews(comparison, colours)
    evaluations, too_many_evaluations = _evaluations(comparison.runs)
    commands, too_many_commands = _commands(comparison.runs)
    left_out = [*comparison.left_out, *too_many_charts, *no_pictures, *too_many_evaluations, *too_many_commands]
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"{len(comparison.runs)} runs in {printable(str(comparison.home))}"
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by ddpm-cli {__version__}"
    return "\n".join(
        [
            BEGINS,
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style></head><body>",
            f'<h1>{escape(title)}</h1><p class="quiet">Compared {escape(made)}. Only what differs is shown.</p>',
            _table(comparison, colours),
            _list(comparison.notes),
            *charts,
            *pictures,
            *evaluations,
            *commands,
            *_section("Left out", [_list(left_out)] if left_out else []),
            f"<script>{script}</script></body></html>",
            "",
        ]
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _section(title: str, parts: Sequence[str]) -> list[str]:
    return [f"<section><h2>{escape(title)}</h2>", *parts, "</section>"] if parts else []


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="notes quiet">{items}</ul>' if lines else ""


def _colours(comparison: Comparison) -> dict[int, str]:
    """The colours of runs: all of a few runs have one, of many only the best. The others are grey."""
    order = list(range(len(comparison.runs)))
    ranked = [c for c in comparison.columns if c.kind == FIGURE and any(cell.best for cell in c.cells)]
    if len(order) > COLOURS and ranked:
        values = [cell.value for cell in ranked[0].cells]
        best = next(cell.value for cell in ranked[0].cells if cell.best)
        order.sort(key=lambda i: _distance(values[i], best))
    return {i: f"c{place}" for place, i in enumerate(sorted(order[:COLOURS]))}


def _distance(value: float | str | None, best: float | str | None) -> float:
    return abs(value - best) if isinstance(value, float | int) and isinstance(best, float | int) else float("inf")


# The table -----------------------------------------------------------------------------------------------------------


def _table(comparison: Comparison, colours: dict[int, str]) -> str:
    columns = [column for column in comparison.columns if any(cell.text for cell in column.cells)]
    head = [_heading("run", "", numeric=False)]
    head += [_heading(column.heading, _about(column), numeric=column.numeric) for column in columns]
    rows = []
    for i, run in enumerate(comparison.runs):
        name = (
            f'<th scope="row" data-sort="{escape(run.name)}" title="{escape(printable(str(run.directory)))}">'
            f"{_key(i, colours)}{escape(run.name)}</th>"
        )
        cells = [_cell(column, column.cells[i], run) for column in columns]
        rows.append(f'<tr data-run="{i}">{name}{"".join(cells)}</tr>')
    return _scrolled("runs", "Runs", head, rows)


def _scrolled(identity: str, label: str, head: Sequence[str], rows: Sequence[str]) -> str:
    body = "\n".join(rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table id="{identity}">'
        f"<thead><tr>{''.join(head)}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _about(column: Column) -> str:
    return ", ".join(text for text in (column.key if column.kind == KEY else "", column.about) if text)


def _heading(text: str, about: str, *, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    return f'<th scope="col"{kind}><button type="button" title="{escape(about)}">{escape(text)}</button></th>'


def _cell(column: Column, cell: Cell, run: Run) -> str:
    classes = [name for name, holds in (("number", column.numeric), ("best", cell.best)) if holds]
    detail, text = cell.detail, escape(cell.text)
    if column.kind == PROGRESS and run.state != FINISHED:
        text = f'{escape(cell.text.partition(" ")[0])}<span class="state">{escape(run.state)}</span>'
    if len(cell.text) > LONG:
        classes.append("long")
        detail = detail or cell.text
    star = '<span class="star" role="img" aria-label="best">★</span>' if cell.best else ""
    return f"<td{_attributes(classes, cell.value, detail)}>{text}{star}</td>"


def _attributes(classes: Sequence[str], value: float | str | None, title: str = "") -> str:
    found = f' class="{" ".join(classes)}"' if classes else ""
    if value is not None and value != "":
        found += f' data-sort="{escape(printable(str(value)))}"'
    return f'{found} title="{escape(title)}"' if title else found


def _key(run: int, colours: dict[int, str]) -> str:
    return f'<span class="key {colours.get(run, "")}"></span>'


# What is drawn -------------------------------------------------------------------------------------------------------


def _charts(comparison: Comparison, colours: dict[int, str]) -> tuple[list[str], list[str]]:
    runs, charts = comparison.runs, charts_of(comparison.runs)
    if not charts:
        return [], []
    names = [run.name for run in runs]
    legend = [f'<li data-run="{i}">{_key(i, colours)}{escape(names[i])}</li>' for i in colours]
    if len(colours) < len(runs):
        legend.append(f'<li><span class="key"></span>{len(runs) - len(colours)} more</li>')
    drawn = [
        f"<figure><h3>{escape(chart.title)}</h3>{svg(chart, names, colours)}{_strokes(chart)}</figure>"
        for chart in charts[:MOST_CHARTS]
    ]
    left = len(charts) - MOST_CHARTS
    parts = [f'<ul class="legend">{"".join(legend)}</ul>', f'<div class="grid-of-charts">{"".join(drawn)}</div>']
    return _section("Curves", parts), [f"{left} more charts are not shown"] if left > 0 else []


def _strokes(chart: Chart) -> str:
    """A legend of line styles, if runs have several curves."""
    if len(chart.labels) < 2:
        return ""
    first = {label: next(curve for curve in chart.curves if curve.label == label) for label in chart.labels[:12]}
    said = ", ".join(f"{stroke(chart, curve)} {label or 'other'}" for label, curve in first.items())
    return f'<figcaption class="quiet">{escape(said)}{", ..." if len(chart.labels) > 12 else ""}</figcaption>'


def _previews(comparison: Comparison, colours: dict[int, str]) -> tuple[list[str], list[str]]:
    runs = comparison.runs
    order = [*colours, *(i for i in range(len(runs)) if i not in colours)]
    pictures, left_out = previews((i, runs[i]) for i in order)
    drawn = [
        f'<figure data-run="{picture.run}"><img src="{picture.address}" width="{picture.width}" '
        f'height="{picture.height}" alt="last preview of {escape(runs[picture.run].name)}">'
        f"<figcaption>{_key(picture.run, colours)}{escape(runs[picture.run].name)} "
        f"<small>step {picture.step:,}</small></figcaption></figure>"
        for picture in pictures
    ]
    return _section("Last previews", [f'<div class="previews">{"".join(drawn)}</div>'] if drawn else []), left_out


# All evaluations, and the commands -----------------------------------------------------------------------------------


def _evaluations(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    made = [(i, evaluation) for i, run in enumerate(runs) for evaluation in run.evaluations]
    if not made:
        return [], []
    titles = [("run", False), ("figure", False), ("value", True), ("± error", True), ("n", True), ("class", False)]
    titles += [("step", True), ("drawn by", False), ("network calls", True), ("img/s", True), ("fingerprint", False)]
    head = [_heading(title, "", numeric=numeric) for title, numeric in titles]
    rows = [_evaluation(i, runs[i].name, evaluation) for i, evaluation in made[:MOST_EVALUATIONS]]
    left = len(made) - MOST_EVALUATIONS
    table = _scrolled("evaluations", "All evaluations", head, rows)
    said = '<p class="quiet">Only figures with the same name and fingerprint can be compared.</p>'
    left_out = [f"{left:,} more evaluations are in compare.csv or in the runs"] if left > 0 else []
    return _section("All evaluations", [table, said]), left_out


def _evaluation(i: int, name: str, evaluation: Evaluation) -> str:
    cells: Iterable[tuple[float | str | None, bool]] = [
        (evaluation.name, False),
        (evaluation.value, True),
        (evaluation.standard_error, True),
        (evaluation.n, True),
        (evaluation.of_class, False),
        (evaluation.step, True),
        (evaluation.drawn_by, False),
        (evaluation.network_calls, True),
        (evaluation.images_per_second, True),
        (evaluation.fingerprint, False),
    ]
    columns = []
    for value, numeric in cells:
        text = "" if value is None else number_text(value) if isinstance(value, int | float) else printable(value)
        columns.append(f"<td{_attributes(['number'] if numeric else [], value)}>{escape(text)}</td>")
    return f'<tr data-run="{i}"><th scope="row" data-sort="{escape(name)}">{escape(name)}</th>{"".join(columns)}</tr>'


def _commands(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    parts = []
    for run in runs[:MOST_COMMANDS]:
        line = command_again(run)
        if line is None:
            said = '<p class="quiet">Unknown: its records have no configuration, or none of our options.</p>'
        else:
            said = f'<pre tabindex="0">{escape(printable(line))}</pre><button type="button">Copy</button>'
        parts.append(f"<details><summary>{escape(run.name)}</summary>{said}</details>")
    left = len(runs) - MOST_COMMANDS
    return _section("To train it again", parts), [
        f"the commands of {left} more runs are not listed"
    ] if left > 0 else []
