"""Figures of several runs: which may be ranked, which is the best, and why others cannot be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ddpm_cli.comparison.evaluations import Evaluation
from ddpm_cli.comparison.run import FINISHED, Run
from ddpm_cli.comparison.series import ERRORS, EVALUATED, HELDOUT, LOSS

LOWER, HIGHER, UNKNOWN = -1, 1, 0  # which value is the better one
_LOWER = ("fd", "fid", "fd_inf", "kd", "kid", "bpd", "heldout", "memorization")
_HIGHER = ("inception_score", "precision", "recall", "density", "coverage")

# What a loss is a mean of, and over: losses of different ones are different quantities.
_OF_THE_LOSS = ("loss", "prediction", "weighting", "variance", "schedule", "trainer.label_dropout")
_OF_THE_DATA = ("data",)
# Where the data lie, and how they are read.
_PLACES = ("path", "root", "download", "workers", "cache_dir", "cache_gb", "memory_mb", "on_bad", "follow_links")
_COMPARABLE: Mapping[str, tuple[str, ...]] = {
    LOSS: (*_OF_THE_DATA, *_OF_THE_LOSS, "timestep_sampler"),
    HELDOUT: (*_OF_THE_DATA, *_OF_THE_LOSS, "seed"),  # the seed decides which images are held out
    EVALUATED: (*_OF_THE_DATA, "trainer.eval_images", "features", "seed"),
}


@dataclass(frozen=True)
class Figure:
    """One value of one run, and how it was made."""

    value: float
    standard_error: float | None = None
    detail: str = ""


@dataclass
class Figures:
    """The figures of one kind, of each run that has one.

    Args:
        title: what they are called.
        of: by the number of a run.
        best: the numbers of the runs with the best one; empty where they are not ranked.
    """

    title: str
    of: dict[int, Figure] = field(default_factory=dict)
    better: int = UNKNOWN
    best: frozenset[int] = frozenset()
    about: str = ""


def better_of(metric: str, name: str) -> int:
    """Whether a lower or a higher value of a metric is better; UNKNOWN for an unknown metric."""
    if any(word in name for word in _HIGHER) or metric in _HIGHER:
        return HIGHER
    return LOWER if metric in _LOWER or name.startswith(_LOWER) else UNKNOWN


def compare_figures(runs: Sequence[Run]) -> tuple[list[Figures], list[str]]:
    """All kinds of figures that the runs have, the final loss first, and lines on what cannot be ranked and why."""
    found, notes = [], []
    names = dict.fromkeys(name for run in runs for name in run.series if name.startswith(EVALUATED))
    for name in (LOSS, HELDOUT, *(name for name in names if name != HELDOUT)):
        figures = _last_of(name, runs)
        if figures.of:
            found.append(figures)
            notes += _rank_by_config(figures, name, runs)
    evaluated, of_evaluations = _evaluated(runs)
    return [*found, *evaluated], [*notes, *of_evaluations]


def _mark_best(figures: Figures, among: Sequence[int]) -> None:
    values = {i: figures.of[i].value for i in among}
    if figures.better == UNKNOWN or len(values) < 2:
        return
    best = (min if figures.better == LOWER else max)(values.values())
    figures.best = frozenset(i for i, value in values.items() if value == best)


# What was measured while training: comparable where the configurations are -------------------------------------------


def _last_of(name: str, runs: Sequence[Run]) -> Figures:
    title = {LOSS: "final loss", HELDOUT: "held-out loss"}.get(name, f"{name.removeprefix(EVALUATED)} while training")
    better = LOWER if name == LOSS else better_of("", name.removeprefix(EVALUATED))
    figures = Figures(title, better=better)
    for i, run in enumerate(runs):
        if points := run.series.get(name):
            step, value = points[-1]
            errors = dict(run.series.get(f"{ERRORS}{name.removeprefix(EVALUATED)}", []))
            figures.of[i] = Figure(value, errors.get(step), f"step {step:,}")
    return figures


def _rank_by_config(figures: Figures, name: str, runs: Sequence[Run]) -> list[str]:
    prefixes = _COMPARABLE.get(name, _COMPARABLE[EVALUATED])
    # What an unfinished run has come to is nothing final.
    among = [i for i in figures.of if runs[i].config is not None and (name != LOSS or runs[i].state == FINISHED)]
    decisive = [_decisive(runs[i].config or {}, prefixes) for i in among]
    differ = _differing_values(decisive)
    if differ:
        return [f"{figures.title}: not ranked, as these differ: {differ}"]
    _mark_best(figures, among)
    return _unranked(figures)


def _decisive(config: Mapping[str, str], prefixes: Sequence[str]) -> dict[str, str]:
    return {
        key: value
        for key, value in config.items()
        if any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
        and not (key.startswith("data.") and key.removeprefix("data.") in _PLACES)
    }


def _unranked(figures: Figures) -> list[str]:
    if figures.better == UNKNOWN and len(figures.of) > 1:
        return [f"{figures.title}: not ranked, as it is not known whether higher is better"]
    return []


# What ddpm-eval has put on record: comparable where the fingerprint is the same ---------------------------------------


def by_kind(runs: Sequence[Run]) -> dict[tuple[str, str], list[tuple[int, Evaluation]]]:
    """Evaluations with the number of their run, by name and fingerprint; for a name, the most common comes first.

    Those of single classes are left to compare.html's list.
    """
    found: dict[tuple[str, str], list[tuple[int, Evaluation]]] = {}
    for i, run in enumerate(runs):
        for evaluation in run.evaluations:
            if evaluation.of_class is None:
                found.setdefault((evaluation.name, evaluation.fingerprint), []).append((i, evaluation))
    return dict(sorted(found.items(), key=lambda kind: -len({i for i, _ in kind[1]})))


def _evaluated(runs: Sequence[Run]) -> tuple[list[Figures], list[str]]:
    kinds: dict[str, dict[str, dict[int, list[Evaluation]]]] = {}  # by name, fingerprint and run
    for (name, fingerprint), made in by_kind(runs).items():
        of_run = kinds.setdefault(name, {}).setdefault(fingerprint, {})
        for i, evaluation in made:
            of_run.setdefault(i, []).append(evaluation)
    found, notes = [], []
    several = False
    for name, of_name in kinds.items():
        for number, (fingerprint, of_run) in enumerate(of_name.items(), start=1):
            title = name if len(of_name) == 1 else f"{name} ({number})"
            first = next(iter(of_run.values()))[0]
            figures = Figures(title, better=better_of(first.metric, name), about=f"fingerprint {fingerprint}")
            figures.of = {i: _figure(_best_of(made, figures.better)) for i, made in of_run.items()}
            several = several or any(len(made) > 1 for made in of_run.values())
            _mark_best(figures, list(figures.of))
            notes += _unranked(figures)
            found.append(figures)
        if len(of_name) > 1:
            firsts = [dict(next(iter(of_run.values()))[0].decides) for of_run in of_name.values()]
            differ = _differing_values(firsts) or "settings that the records do not name"
            kinds_named = ", ".join(f"({number})" for number in range(1, len(of_name) + 1))
            notes.append(f"{name}: {kinds_named} cannot be compared with each other, as these differ: {differ}")
    if several:
        notes.append("for a run evaluated in several ways, the best figure is shown; compare.html lists them all")
    return found, notes


def _best_of(made: Sequence[Evaluation], better: int) -> Evaluation:
    if better == UNKNOWN:
        return made[-1]
    return (min if better == LOWER else max)(made, key=lambda evaluation: evaluation.value)


def _figure(evaluation: Evaluation) -> Figure:
    step = "" if evaluation.step is None else f"step {evaluation.step:,}"
    calls = "" if evaluation.network_calls is None else f"{evaluation.network_calls:,} network calls"
    n = "" if evaluation.n is None else f"n = {evaluation.n:,}"
    parts = (step, evaluation.drawn_by, calls, n)
    return Figure(evaluation.value, evaluation.standard_error, ", ".join(part for part in parts if part))


def _differing_values(sides: Sequence[Mapping[str, str]]) -> str:
    """The keys in which these differ, with their values, for a message; empty if they are equal."""
    keys = dict.fromkeys(key for side in sides for key in side)
    differ = []
    for key in keys:
        values = dict.fromkeys(side.get(key, "none") for side in sides)
        above = key.rpartition(".")[0]
        if len(values) > 1 and not (above and any(said.startswith(f"{above} (") for said in differ)):
            listed = [value if len(value) <= 24 else f"{value[:12]}..." for value in list(values)[:4]]
            differ.append(f"{key} ({', '.join(listed)}{', ...' if len(values) > 4 else ''})")
    return ", ".join([*differ[:6], *([f"and {len(differ) - 6} more"] if len(differ) > 6 else [])])
