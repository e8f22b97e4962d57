"""An average of any length, reconstructed from a run's snapshots (Karras et al. 2024, algorithm 3)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_cli.ema import posthoc


class Term(NamedTuple):
    """A snapshot's part in an average."""

    snapshot: int  # its index
    weights: tuple[float, ...]  # the coefficient of each of its lengths


def terms(updates: Sequence[int], lengths: Sequence[float], length: float) -> list[Term]:
    """The terms of the average of `length` at the newest snapshot; snapshots with coefficient 0 are left out.

    From more than `MOST_TERMS` averages this many are taken, evenly spaced, with the oldest and the newest.

    Args:
        updates: the number of updates at each snapshot, oldest first.
        lengths: the lengths in each snapshot.

    Raises:
        ValueError: as `ddpm_cli.ema.posthoc.coefficients`.
    """
    # Snapshots after the same update are equal (steps that overflow in float16 change nothing): the newest is used.
    distinct = list({count: index for index, count in enumerate(updates)}.values())
    chosen = _thinned(distinct, posthoc.MOST_TERMS // len(lengths))
    times = [updates[index] for index in chosen for _ in lengths]
    counts = posthoc.coefficients(times, [*lengths] * len(chosen), t=times[-1], length=length)
    rows = counts.reshape(-1, len(lengths)).tolist()
    return [Term(index, tuple(row)) for index, row in zip(chosen, rows, strict=True) if any(row)]


@torch.no_grad()
def reconstruct(
    parameters: Mapping[str, Tensor],
    lengths: Sequence[float],
    parts: Iterable[tuple[Mapping[str, Tensor], Sequence[float]]],
) -> None:
    """Set `parameters` to the weighted sum of averages, added up in float64.

    Args:
        lengths: of the averages in each snapshot.
        parts: the tensors of each snapshot and the weights of its lengths; one snapshot is in memory at a time.
    """
    sums = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    for tensors, weights in parts:
        for length, weight in zip(lengths, weights, strict=True):
            prefix = posthoc.posthoc_prefix(length)
            for name, total in sums.items():
                total.add_(tensors[f"{prefix}{name}"], alpha=weight)
    for name, parameter in parameters.items():
        parameter.copy_(sums[name])


def _thinned(indices: list[int], most: int) -> list[int]:
    """At most `most` of them, evenly spaced, with the first and the last."""
    if len(indices) <= most:
        return indices
    return [indices[i * (len(indices) - 1) // (most - 1)] for i in range(most)]
