"""Solver x network calls for one network trained on digits: which is as good as 1000 steps in how few calls."""

import torch

from ddpm_cli.diffusion.prediction import Velocity
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, DPMSolverPP2MSDE, Heun, Sampler, UniPC
from ddpm_cli.diffusion.schedule import cosine
from numerics.frechet import distances
from numerics.training import SAMPLES, sampled, trained

SOLVERS: dict[str, type[Sampler]] = {
    "ddpm": Ancestral,
    "ddim": DDIM,
    "heun": Heun,
    "dpmpp_2m": DPMSolverPP2M,
    "dpmpp_2m_sde": DPMSolverPP2MSDE,
    "unipc": UniPC,
}
STEPS = (5, 10, 15, 20, 50, 100)
SEEDS = range(5)  # of the noise, for the spread


def solver(name: str, steps: int) -> tuple[Sampler, int]:
    """A sampler that takes about `steps` calls of the network, and how many it takes."""
    if name == "heun":  # calls it twice in every step but the last
        return Heun(steps=(steps + 1) // 2), 2 * ((steps + 1) // 2) - 1
    return SOLVERS[name](steps=steps), steps


def table(*, jobs: int, steps: int) -> list[str]:
    (ddpm,) = trained([3 * steps], prediction=Velocity(), schedule=cosine())
    full, _ = solver("ddpm", 1000)
    _, best = distances(sampled(ddpm, full))
    twenty, _ = solver("dpmpp_2m", 20)
    spread = torch.tensor([distances(sampled(ddpm, twenty, seed=seed))[1] for seed in SEEDS]).std().item()
    enough = best + 2 * spread
    lines = [
        f"One network: prediction=v schedule=cosine, {3 * steps} steps with batches of 64 on digits of 8 x 8. Frechet "
        f"distance of features of {SAMPLES} samples, all from the same noise; ancestral sampling (ddpm) in 1000 steps: "
        f"**{best:.2f}**. Different noise changes a figure by {spread:.2f} (standard deviation of dpmpp_2m in 20 calls "
        f"over {len(SEEDS)} seeds), so the last column counts up to {enough:.2f}, two standard deviations more, as "
        "equal. Heun makes an odd number of calls: in an even column, one fewer.",
        "",
        f"| solver | {' | '.join(f'{calls} calls' for calls in STEPS)} | calls to {enough:.2f} |",
        f"| --- |{' --- |' * (len(STEPS) + 1)}",
    ]
    for name in SOLVERS:
        chosen = [solver(name, wanted) for wanted in STEPS]
        found = [(distances(sampled(ddpm, sampler))[1], calls) for sampler, calls in chosen]
        reached = next((str(calls) for distance, calls in found if distance <= enough), "more")
        lines.append(f"| {name} | {' | '.join(f'{distance:.2f}' for distance, _ in found)} | {reached} |")
    return lines
