"""Solver x few network calls for the network of the table of solvers: fixed spacings, and timesteps chosen for it."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.optimized_steps import FIXED, Optimized, optimized_steps
from ddpm_cli.diffusion.prediction import Velocity
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.diffusion.schedule import cosine
from ddpm_cli.runtime.seeds import ImageNoise
from numerics.frechet import distances
from numerics.solvers import SOLVERS, solver
from numerics.training import SAMPLES, sampled, trained

CALLS = (5, 6, 8, 10)
NOISES = 32
SEEDS = range(3)  # of the noise of the images


def table(*, jobs: int, steps: int) -> list[str]:
    (ddpm,) = trained([3 * steps], prediction=Velocity(), schedule=cosine())
    return [
        f"The network of the table above, {3 * steps} steps. Frechet distance of features of {SAMPLES} samples, mean "
        f"± standard deviation over {len(SEEDS)} seeds of the noise: for the best fixed spacing ({', '.join(FIXED)}) "
        f"in each column, and for timesteps optimized on {NOISES} other noise samples. Heun makes an odd number of "
        "calls: in an even column, one fewer.",
        "",
        *rows(ddpm, CALLS),
    ]


def rows(ddpm: DDPM, calls: Sequence[int]) -> list[str]:
    columns = [f"{of} calls{kind}" for of in calls for kind in ("", ", optimized")]
    lines = [f"| solver | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name in SOLVERS:
        cells = []
        for wanted in calls:
            sampler, _ = solver(name, wanted)
            assert isinstance(sampler.steps, int)
            fixed = [(scored(ddpm, replace(sampler, spacing=spacing)), spacing) for spacing in FIXED]
            (mean, spread), spacing = min(fixed)
            best, best_spread = scored(ddpm, replace(sampler, steps=chosen(ddpm, sampler).times))
            cells += [f"{mean:.2f} ± {spread:.2f} ({spacing})", f"{best:.2f} ± {best_spread:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def chosen(ddpm: DDPM, sampler: Sampler) -> Optimized:
    noise = ImageNoise(1000, range(NOISES), (1, 8, 8))()
    with ddpm.evaluating():
        return optimized_steps(sampler, ddpm.schedule, ddpm.denoiser(), noise)


def scored(ddpm: DDPM, sampler: Sampler) -> tuple[float, float]:
    """Mean and standard deviation over noises of the distance of features."""
    found = torch.tensor([distances(sampled(ddpm, sampler, seed=seed))[1] for seed in SEEDS])
    return found.mean().item(), found.std().item()
