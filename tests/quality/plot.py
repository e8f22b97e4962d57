"""Quality against time, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

COLOURS = ("#2166ac", "#d6604d", "#7f8c8d")


def save(path: Path, seconds: Sequence[float], found: Mapping[str, Sequence[Sequence[float]]], title: str) -> None:
    """Distances `[seed][time]` of each trainer over the time: their mean, and the interval they lie in."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (who, by_seed), colour in zip(found.items(), COLOURS, strict=True):
        at = list(zip(*by_seed, strict=True))
        axes.plot(seconds, [mean(values) for values in at], marker="o", color=colour, label=who)
        axes.fill_between(seconds, [min(v) for v in at], [max(v) for v in at], color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(seconds, [f"{second:g}" for second in seconds])
    axes.set(xlabel="seconds of training on two CPU cores", ylabel="Frechet distance, less is better")
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(which="both", color="#e3e8ee")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
