"""The table for a terminal: as many columns as fit its width, the most important first."""

from collections.abc import Sequence

from ddpm_cli.comparison.table import FIGURE, KEY, PROGRESS, Column, Comparison

LONGEST_NAME, LONGEST_CELL, LONGEST_HEADING = 36, 22, 28
BETWEEN = "  "
MOST_ROWS = 100


def terminal_table(comparison: Comparison, width: int, elsewhere: str) -> str:
    """The table in lines of at most `width` characters.

    Args:
        elsewhere: where all of it is, for the line that says what is left out.
    """
    names = ["run", *(_shortened(run.name, min(LONGEST_NAME, max(width // 3, 8))) for run in comparison.runs)]
    columns = [column for column in comparison.columns if any(cell.text for cell in column.cells)]
    texts = {id(column): _texts(column) for column in columns}
    left = width - max(map(len, names))
    chosen = []
    for column in _by_importance(columns):
        needs = len(BETWEEN) + max(map(len, texts[id(column)]))
        if needs <= left:
            chosen.append(column)
            left -= needs
    shown = [column for column in columns if any(column is other for other in chosen)]
    rows = [[name, *(texts[id(column)][i] for column in shown)] for i, name in enumerate(names)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    right = [False, *(column.numeric for column in shown)]
    lines = [
        BETWEEN.join(
            text.rjust(size) if to_the_right else text.ljust(size)
            for text, size, to_the_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows[: MOST_ROWS + 1]
    ]
    if any(cell.best for column in shown for cell in column.cells):
        lines.append("* the best of its column")
    if len(rows) > MOST_ROWS + 1:
        lines.append(f"{len(rows) - MOST_ROWS - 1} more runs are in {elsewhere}")
    if len(shown) < len(columns):
        count = len(columns) - len(shown)
        lines.append(f"{count} more {'column does' if count == 1 else 'columns do'} not fit: see {elsewhere}")
    return "\n".join(lines)


def _by_importance(columns: Sequence[Column]) -> list[Column]:
    """The order of columns: progress and results beside the changes; other figures, speed and time last."""
    figures = [column for column in columns if column.kind == FIGURE]
    progress = [column for column in columns if column.kind == PROGRESS]
    keys = [column for column in columns if column.kind == KEY]
    first = [*figures[:1], *progress, *keys[:2], *figures[1:3], *keys[2:], *figures[3:]]
    return [*first, *(column for column in columns if column not in first)]


def _texts(column: Column) -> list[str]:
    marked = any(cell.best for cell in column.cells)
    texts = [
        f"{_shortened(cell.text, LONGEST_CELL) or '-'}{('*' if cell.best else ' ') if marked else ''}"
        for cell in column.cells
    ]
    return [_shortened(column.heading, LONGEST_HEADING) + (" " if marked else ""), *texts]


def _shortened(text: str, most: int) -> str:
    """A text that fits, with its beginning and its end."""
    if len(text) <= most:
        return text
    end = (most - 2) * 2 // 3
    return f"{text[: most - 2 - end]}..{text[len(text) - end :]}"
