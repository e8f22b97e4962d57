"""A run's curves, read from its metrics.jsonl, by name."""

from pathlib import Path

from ddpm_cli.comparison import record_files
from ddpm_cli.io.text import printable

LOSS, IMAGES_PER_SECOND, HELDOUT = "loss/mean", "time/images_per_second", "eval/heldout"
EVALUATED, ERRORS = "eval/", "eval_error/"  # how names of evaluations while training begin, and their standard errors
MOST_NAMES = 64  # of curves
MOST_DAMAGED = 1000  # lines: what has more of them is no record of ours

Series = dict[str, list[tuple[int, float]]]  # by name, points (step, value) in the order of their steps


def read_series(file: Path) -> tuple[Series, str | None]:
    """The loss, the speed and the evaluations while training, and a remark on lines that are left out.

    Raises:
        ValueError: naming it, if it is not a plain file.
        OSError: if it is not there, or cannot be read.
    """
    found: dict[str, dict[int, float]] = {}
    lost = 0
    for line in record_files.lines_of_json(file):
        step = None if line is None else record_files.whole(line.get("step"))
        if line is None or step is None:
            lost += 1
            if lost > MOST_DAMAGED:
                break
            continue
        for name, content in line.items():
            value = record_files.number(content)
            if value is None or not (name in (LOSS, IMAGES_PER_SECOND) or name.startswith((EVALUATED, ERRORS))):
                continue
            if name in found or (len(found) < MOST_NAMES and len(name) <= 100):
                found.setdefault(name, {})[step] = value
    series = {name: sorted(points.items()) for name, points in found.items()}
    more = " and what follows" if lost > MOST_DAMAGED else ""
    damaged = f"{printable(str(file))}: {lost:,} damaged or excess lines{more} are left out"
    return series, damaged if lost else None


def thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` points of a curve: neighbours are averaged, the last point stays as it is."""
    if len(points) <= most:
        return points
    size = -(-len(points) // (most - 1))
    parts = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    middle = [(part[len(part) // 2][0], sum(value for _, value in part) / len(part)) for part in parts]
    return [*(point for point in middle if point[0] < points[-1][0]), points[-1]]
