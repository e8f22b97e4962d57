"""The Frechet distance of features of 2048 dimensions, as Inception's are: ours and torch-fidelity's."""

import time
from collections.abc import Callable

import numpy as np

from bench.clock import spread
from bench.peers import version

DIMENSIONS = 2048  # of Inception's features
ENOUGH, FEW = 4096, 1000  # images: of full rank, and of one that is far from it


def entries(rounds: int) -> list[dict]:
    """Seconds from mean and covariance to the distance, in turn; torch-fidelity's takes minutes and is timed once."""
    from ddpm_cli.evaluation.frechet import frechet_distance
    from ddpm_cli.evaluation.statistics import FeatureSums

    random = np.random.default_rng(0)
    scales = np.logspace(0, -2, DIMENSIONS)
    full, other, singular = (
        FeatureSums.of(random.standard_normal((count, DIMENSIONS)) * scales).statistics()
        for count in (ENOUGH, ENOUGH, FEW)
    )
    told = [{"mu": one.mean, "sigma": one.covariance} for one in (full, other)]
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: frechet_distance(full, other),
        f"ours, from {FEW:,} images": lambda: frechet_distance(full, singular),
    }
    if version("torch-fidelity") is not None:
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        calls["torch-fidelity"] = lambda: fid_statistics_to_metric(*told, verbose=False)
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    calls["ours"]()  # threads are started
    for i in range(rounds):
        for who, call in calls.items():
            if i == 0 or who != "torch-fidelity":
                since = time.perf_counter()
                call()
                seconds[who].append(time.perf_counter() - since)
    return [_entry(who, taken, seconds["ours"]) for who, taken in seconds.items()]


def _entry(who: str, taken: list[float], ours: list[float]) -> dict:
    entry = {"row": f"Frechet distance in {DIMENSIONS} dimensions", "who": who, "unit": "s", **spread(taken)}
    if who == "torch-fidelity":
        entry["ratio"] = spread([theirs / own for theirs, own in zip(taken, ours, strict=False)])
    return entry
