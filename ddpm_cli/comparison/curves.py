"""The curves of several runs: losses and figures over steps, and quality against network calls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ddpm_cli.comparison.evaluations import Evaluation
from ddpm_cli.comparison.figures import by_kind
from ddpm_cli.comparison.run import Run
from ddpm_cli.comparison.series import EVALUATED, HELDOUT, LOSS, thinned
from ddpm_cli.io.text import printable

MOST_POINTS = 300  # of a curve
MOST_CHARTS = 24


@dataclass(frozen=True)
class Curve:
    """The points of one run; `label` distinguishes several curves of a run."""

    run: int
    points: list[tuple[float, float]]
    label: str = ""


@dataclass
class Chart:
    """Curves with the same axes."""

    title: str
    across: str
    curves: list[Curve] = field(default_factory=list)
    log_across: bool = False
    points: bool = False  # each is a measurement of its own, and is marked

    @property
    def labels(self) -> list[str]:
        """The labels of its curves, each once."""
        return list(dict.fromkeys(curve.label for curve in self.curves))


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """The charts for which these runs have data; for ddpm-eval, one for each fingerprint."""
    found = []
    names = dict.fromkeys(name for run in runs for name in run.series if name.startswith(EVALUATED))
    for name in dict.fromkeys((LOSS, HELDOUT, *names)):
        title = {LOSS: "loss", HELDOUT: "held-out loss"}.get(name, f"{name.removeprefix(EVALUATED)} while training")
        chart = Chart(printable(title), "step", points=name != LOSS)
        for i, run in enumerate(runs):
            points: list[tuple[float, float]] = [
                (float(x), y) for x, y in thinned(run.series.get(name, []), MOST_POINTS)
            ]
            if points:
                chart.curves.append(Curve(i, points))
        found.append(chart)
    found += _of_evaluations(runs)
    return [chart for chart in found if any(len(curve.points) > 1 for curve in chart.curves)]


def _of_evaluations(runs: Sequence[Run]) -> Iterable[Chart]:
    kinds = by_kind(runs)
    numbers: dict[str, list[str]] = {}
    for name, fingerprint in kinds:
        numbers.setdefault(name, []).append(fingerprint)
    for (name, fingerprint), made in kinds.items():
        several, number = len(numbers[name]) > 1, numbers[name].index(fingerprint) + 1
        title = printable(f"{name} ({number})" if several else name)
        yield _over_checkpoints(title, made)
        yield _against_calls(title, made)


def _over_checkpoints(title: str, made: Sequence[tuple[int, Evaluation]]) -> Chart:
    groups: dict[tuple[int, str], dict[float, float]] = {}
    for i, evaluation in made:
        if evaluation.step is not None:
            groups.setdefault((i, evaluation.drawn_by), {})[evaluation.step] = evaluation.value
    curves = [curve for curve in _curves(groups) if len(curve.points) > 1]
    return Chart(f"{title} over checkpoints", "step", curves, points=True)


def _against_calls(title: str, made: Sequence[tuple[int, Evaluation]]) -> Chart:
    """For each run's newest checkpoint, curves of samplers that differ only in their steps."""
    newest: dict[int, int] = {}
    for i, evaluation in made:
        newest[i] = max(newest.get(i, 0), evaluation.step or 0)
    groups: dict[tuple[int, str], dict[float, float]] = {}
    for i, evaluation in made:
        if evaluation.network_calls and (evaluation.step or 0) == newest[i]:
            groups.setdefault((i, evaluation.solver), {})[evaluation.network_calls] = evaluation.value
    return Chart(f"{title} against network calls", "network calls", _curves(groups), log_across=True, points=True)


def _curves(groups: dict[tuple[int, str], dict[float, float]]) -> list[Curve]:
    return [Curve(i, sorted(points.items()), printable(label)) for (i, label), points in groups.items()]
