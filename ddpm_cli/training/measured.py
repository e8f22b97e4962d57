"""The results of an evaluation while training, and their keys in the records."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ddpm_cli.config.figures import Name
from ddpm_cli.config.outcome import Outcome

FIGURE, ERROR, BY_T = "eval", "eval_error", "heldout_by_t"  # prefixes of keys in a record


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results at a step.

    Args:
        figures: eval/heldout, eval/fd_FEATURES, eval/kd_FEATURES; not finite if the samples are not.
        errors: standard errors, if there are any, such as eval_error/heldout.
        by_t: the held-out loss in ten equal bins of t, as heldout_by_t/0000.
    """

    step: int
    figures: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    by_t: dict[str, float] = field(default_factory=dict)


def outcome(objective: Name | None, loss: float, last: Mapping[str, Any] | None) -> float:
    """The value that a finished run returns: its last loss, or its objective in the last evaluation."""
    if objective is None:
        return loss
    return Outcome(math.nan if last is None else figure(last, objective), objective)


def final_figures(objective: Name | None, loss: float, last: Mapping[str, Any] | None) -> dict[str, float]:
    """The figures that loggers show for a finished run: objective, last loss, and last evaluation."""
    figures = {"objective": float(outcome(objective, loss, last)), "final/loss": loss}
    for key, value in ({} if last is None else last).items():
        begins, _, name = key.partition("/")
        if begins == FIGURE and isinstance(value, int | float):
            figures[f"final/{name}"] = float(value)
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def last_evaluation(lines: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The last line of a metrics.jsonl that is of an evaluation; None: there is none."""
    of_evaluations = [line for line in lines if any(key.startswith(f"{FIGURE}/") for key in line)]
    return of_evaluations[-1] if of_evaluations else None


def figure(record: Mapping[str, Any], name: Name) -> float:
    """The figure of this short name in a record of an evaluation; NaN if it has none."""
    for key, value in record.items():
        begins, _, measured = key.partition("/")
        if begins == FIGURE and name in (measured, measured.partition("_")[0]) and isinstance(value, int | float):
            return float(value)
    return math.nan
