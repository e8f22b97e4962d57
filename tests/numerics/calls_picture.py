"""The tables of solvers and of few calls as a picture: Frechet distance against network calls, for every solver."""

import re
from collections.abc import Sequence
from pathlib import Path

import tables_in_docs

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "numerics.md"
PICTURE = DOCUMENT.with_name("numerics_calls.png")
COLOURS = ("#7f8c8d", "#d6604d", "#b2abd2", "#2166ac", "#1b7837", "#e08214")

Curve = tuple[list[int], list[float]]  # network calls, distances


def table(*, jobs: int, steps: int) -> list[str]:
    """Nothing is measured: what the two tables say is drawn."""
    del jobs, steps
    solvers, few = (
        tables_in_docs.read(DOCUMENT, f"scripts/numerics --only {name}", name) for name in ("solvers", "few_calls")
    )
    save(PICTURE, goal(solvers), curves(solvers), curves(few), curves(few, optimized=True))
    return [f"![Frechet distance against network calls, for every solver]({PICTURE.name})"]


def goal(lines: Sequence[str]) -> float:
    """The distance of 1000 ancestral steps, by what stands above the table of solvers."""
    found = re.search(r"1000 .*?\*\*([\d.]+)\*\*", " ".join(lines))
    assert found is not None
    return float(found[1])


def curves(lines: Sequence[str], *, optimized: bool = False) -> dict[str, Curve]:
    """By solver, the distances in a table whose columns are numbers of calls."""
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    wanted = re.compile(r"(\d+) calls" + (", optimized" if optimized else ""))
    columns = {i: int(found[1]) for i, cell in enumerate(header) if (found := wanted.fullmatch(cell))}
    return {row[0]: (list(columns.values()), [float(row[i].split()[0]) for i in columns]) for row in rows}


def save(
    path: Path, reached: float, many: dict[str, Curve], fixed: dict[str, Curve], optimized: dict[str, Curve]
) -> None:
    from matplotlib.figure import Figure

    assert len(many) <= len(COLOURS)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, curve), colour in zip(many.items(), COLOURS, strict=False):
        left.plot(*curve, marker="o", color=colour, label=name)
        right.plot(*fixed[name], marker="o", color=colour)
        right.plot(*optimized[name], marker="o", color=colour, linestyle=":")
    for axes, title, (calls, _) in (
        (left, "default spacing", next(iter(many.values()))),
        (right, "best fixed spacing (solid), optimized (dotted)", next(iter(fixed.values()))),
    ):
        axes.axhline(reached, color="black", linestyle="--", linewidth=1, label="1000 ancestral steps")
        axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="Frechet distance, less is better")
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(calls, [str(of) for of in calls], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(which="both", color="#e3e8ee")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
