"""What an evaluation while training has found, and where it stands in the records."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ddpm_cli.config.figures import Name
from ddpm_cli.config.outcome import Outcome

FIGURE, ERROR, BY_T = "eval", "eval_error", "heldout_by_t"  # what the keys of a record begin with


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What has been measured at a step.

    Args:
        figures: eval/heldout, eval/fd_FEATURES, eval/kd_FEATURES; not finite where the samples are not.
        errors: standard errors, where there are some, as eval_error/heldout.
        by_t: the held-out loss in ten equal bins of t, as heldout_by_t/0000.
    """

    step: int
    figures: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    by_t: dict[str, float] = field(default_factory=dict)


def outcome(objective: Name | None, loss: float, last: Mapping[str, Any] | None) -> float:
    """What a run that is done returns: its last loss, or its objective as it was in its last evaluation."""
    if objective is None:
        return loss
    return Outcome(math.nan if last is None else figure(last, objective), objective)


def final_figures(objective: Name | None, loss: float, last: Mapping[str, Any] | None) -> dict[str, float]:
    """What loggers show of a run that is done: its objective, its last loss, and its last evaluation."""
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
