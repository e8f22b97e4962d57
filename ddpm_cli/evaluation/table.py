"""What is printed of an evaluation: figures with as many digits as mean something, in 80 columns."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from ddpm_cli.evaluation.record import Figure, Record
from ddpm_cli.io.text import printable

COLUMNS = 80
DIGITS = 4  # of a figure whose error is not known
_TOGETHER = "\N{NO-BREAK SPACE}"  # until lines are broken
MOST_CLASSES = 100  # lines of them; the record has all


def table(record: Record) -> list[str]:
    """The lines of one evaluation: of what, compared with what, the figures, what to know of them, the time."""
    lines = [*_of_what(record), ""]
    whole = [figure for figure in record.figures if figure.of_class is None]
    lines += _rows([_cells(figure) for figure in whole])
    of_classes = [figure for figure in record.figures if figure.of_class is not None]
    if of_classes:
        lines += ["", *_by_class(of_classes)]
    if record.remarks:
        lines.append("")
        for remark in record.remarks:
            lines += wrapped(remark)
    return [*lines, "", *wrapped(_time(record))]


def curve(records: Sequence[Record]) -> list[str]:
    """A line for each of several checkpoints, a column for each figure; columns that do not fit stand below."""
    names = [figure.name for figure in records[-1].figures if figure.of_class is None]
    columns = {name: [_cell_named(record, name) for record in records] for name in names}
    steps = [f"{(record.model or {}).get('step', 0):,}" for record in records]
    first = max(len("step"), *map(len, steps))
    lines, block = [], []
    for name in names:
        width = max(len(name), *map(len, columns[name]))
        if block and first + sum(w + 2 for _, w in block) + width + 2 > COLUMNS:
            lines += [*_block(steps, first, block, columns), ""]
            block = []
        block.append((name, width))
    return [*lines, *_block(steps, first, block, columns)]


def _block(
    steps: Sequence[str], first: int, block: Sequence[tuple[str, int]], columns: dict[str, list[str]]
) -> Iterator[str]:
    yield "  ".join(["step".rjust(first), *(name.rjust(width) for name, width in block)])
    for i, step in enumerate(steps):
        yield "  ".join([step.rjust(first), *(columns[name][i].rjust(width) for name, width in block)])


def _cell_named(record: Record, name: str) -> str:
    found = [figure for figure in record.figures if figure.name == name and figure.of_class is None]
    return " ".join(filter(None, _cells(found[0])[1:])) if found else "-"


def _of_what(record: Record) -> Iterator[str]:
    if record.samples is not None:
        yield from wrapped(_samples(record.samples))
    if record.reference is not None:
        reference = record.reference
        count = "" if reference.get("n") is None else f", {reference['n']:,} images"
        split = "" if reference.get("split") is None else f", {printable(str(reference['split']))}"
        yield from wrapped(f"compared with {printable(str(reference['name']))}{split}{count}")
    if record.features is not None:
        yield from wrapped(f"by features {printable(str(record.features['name']))}")


def _samples(samples: dict[str, Any]) -> str:
    if samples["source"] != "drawn":
        return f"{samples['n']:,} images of {printable(str(samples['source']))}"
    scale = samples["guidance"].get("scale", 1)
    guidance = "" if scale == 1 else f", guidance {scale:g}"
    classes = "" if samples.get("classes") is None else f", {samples['classes']}"
    calls = samples["network_calls"]
    drawn = f"{calls:,} network calls each" if calls != 1 else "1 network call each"
    return f"{samples['n']:,} images by {samples['sampler_name']}, {drawn}{guidance}, seed {samples['seed']}{classes}"


def _cells(figure: Figure) -> tuple[str, str, str]:
    """Its name, its value, and its error."""
    value, error = figure.value, figure.standard_error
    if error is None or not math.isfinite(error) or error <= 0:
        return figure.name, significant(value), ""
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 9:
        return figure.name, significant(value), f"± {error:.1e}"
    return figure.name, f"{value:.{decimals}f}", f"± {error:.{decimals}f}"


def significant(value: float) -> str:
    """A number with DIGITS digits that count, without an exponent where it can do without."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -DIGITS:
        return f"{value:.{DIGITS - 1}g}"
    return f"{value:,.{max(0, DIGITS - 1 - exponent)}f}"


def _rows(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    of_names, of_values = (max(len(row[column]) for row in rows) for column in range(2))
    for name, value, error in rows:
        yield f"  {name.ljust(of_names)}  {value.rjust(of_values)}  {error}".rstrip()


def _by_class(figures: Sequence[Figure]) -> Iterator[str]:
    """A table with a line for each class and a column for each metric."""
    metrics = list(dict.fromkeys(figure.metric for figure in figures))
    classes = list(dict.fromkeys(str(figure.of_class) for figure in figures))
    cells = {(str(f.of_class), f.metric): " ".join(filter(None, _cells(f)[1:])) for f in figures}
    counts = {str(f.of_class): f"{f.n:,}" for f in figures}
    names = {name: textwrap.shorten(printable(name), 24, placeholder="...") or "-" for name in classes}
    first, count = max(5, *map(len, names.values())), max(6, *map(len, counts.values()))
    widths = {m: max(len(m), *(len(cells.get((name, m), "-")) for name in classes)) for m in metrics}
    yield "  ".join(["class".ljust(first), "images".rjust(count), *(m.rjust(widths[m]) for m in metrics)])
    for name in classes[:MOST_CLASSES]:
        row = [names[name].ljust(first), counts[name].rjust(count)]
        yield "  ".join([*row, *(cells.get((name, m), "-").rjust(widths[m]) for m in metrics)])
    if len(classes) > MOST_CLASSES:
        yield f"and {len(classes) - MOST_CLASSES:,} more, in the record"


def _time(record: Record) -> str:
    parts = [f"{name}{_TOGETHER}{duration(seconds)}" for name, seconds in record.seconds.items()]
    if record.images_per_second is not None:
        parts[0] += f" ({significant(record.images_per_second)}{_TOGETHER}images/s)"
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f}{_TOGETHER}s"
    if seconds < 3600:
        return f"{seconds / 60:.1f}{_TOGETHER}min"
    return f"{seconds / 3600:.1f}{_TOGETHER}h"


def wrapped(text: str) -> list[str]:
    """A sentence in lines that fit; a word that is too long, such as a path, stays whole, and so do number and unit."""
    lines = textwrap.wrap(text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line.replace(_TOGETHER, " ") for line in lines]
