"""Prediction x weighting x schedule on digits, at equal training time."""

import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from ddpm_cli.diffusion import prediction, schedule
from ddpm_cli.diffusion.weighting import P2, MinSNR, TruncatedSNR, Uniform
from numerics.frechet import distances, frechet, reference
from numerics.training import SAMPLES, sampled, trained

PREDICTIONS = {"eps": prediction.Epsilon, "x0": prediction.X0, "v": prediction.Velocity}
WEIGHTINGS = {"uniform": Uniform(), "min_snr": MinSNR(), "p2": P2(), "truncated_snr": TruncatedSNR()}
SCHEDULES = ("linear", "cosine", "sigmoid", "scaled_linear")
BASE = ("eps", "uniform", "linear")  # Ho et al. 2020: what the others' steps are measured against

Variant = tuple[str, str, str]
Scores = list[tuple[int, float, float]]  # steps, distance of pixels, of features


def table(*, jobs: int, steps: int) -> list[str]:
    marks = [steps // 8 * part for part in range(1, 9)]
    variants = list(itertools.product(PREDICTIONS, WEIGHTINGS, SCHEDULES))
    context, limit = get_context("spawn"), {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(jobs, context, **limit) as pool:
        scores = dict(zip(variants, pool.map(scored, variants, itertools.repeat(marks)), strict=True))
    goal = scores[BASE][-1][2]
    x, classifier, accuracy = reference()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    halves = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
    pixels, features = frechet(*(h.flatten(1) for h in halves)), frechet(*(classifier.body(h) for h in halves))
    ranked = sorted(variants, key=lambda variant: scores[variant][-1][2])
    return [
        f"{marks[-1]} steps with batches of 64. Frechet distances of pixels and of a classifier's features between "
        f"{SAMPLES} samples by dpmpp_2m in 20 calls and {len(x)} digits of 8 x 8. The classifier is right on "
        f"{accuracy:.1%} of held-out digits. Between the two halves of the digits: pixels {pixels:.2f}, features "
        f"{features:.1f}.",
        "",
        f"| prediction | weighting | schedule | pixels | features | steps to {goal:.0f} |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(variant, scores[variant], goal) for variant in ranked),
    ]  # fmt: skip


def scored(variant: Variant, marks: list[int]) -> Scores:
    named, weighted, scheduled = variant
    options = {
        "prediction": PREDICTIONS[named](),
        "weighting": WEIGHTINGS[weighted],
        "schedule": getattr(schedule, scheduled)(),
    }
    return [(mark, *distances(sampled(ddpm))) for mark, ddpm in zip(marks, trained(marks, **options), strict=True)]


def _row(variant: Variant, scores: Scores, goal: float) -> str:
    """The last scores, and the first mark from which on the features are as near as the base's at the end."""
    needed = next((mark for mark, _, features in scores if features <= goal), None)
    _, pixels, features = scores[-1]
    steps = f"more than {scores[-1][0]}" if needed is None else f"{needed}"
    return f"| {' | '.join(variant)} | {pixels:.2f} | {features:.1f} | {steps} |"
