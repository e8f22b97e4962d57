"""Quality against time, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2166ac", "#d6604d", "#7f8c8d")


def save_scales(path: Path, scales: Sequence[float], measured: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """By what is measured, its values `[scale][seed]`: a plot for each, of their mean and the interval they lie in."""
    from matplotlib.figure import Figure

    assert len(measured) <= len(COLOURS)
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    for axes, (what, values), colour in zip(figure.subplots(1, len(measured)), measured.items(), COLOURS, strict=False):
        axes.plot(scales, [mean(of) for of in values], marker="o", color=colour)
        axes.fill_between(scales, [min(of) for of in values], [max(of) for of in values], color=colour, alpha=0.2)
        axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axes.set(xlabel="guidance.scale; 1: no guidance", ylabel=what)
        _plain(axes)
    figure.savefig(path, dpi=120)


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
    axes.legend(frameon=False)
    _plain(axes)
    figure.savefig(path, dpi=120)


def _plain(axes: "Axes") -> None:
    axes.grid(which="both", color="#e3e8ee")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
