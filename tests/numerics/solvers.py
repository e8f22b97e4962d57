"""Solver x network calls for one network trained on digits: which is as good as 1000 steps in how few calls."""

from functools import partial

from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.prediction import Velocity
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.diffusion.schedule import cosine
from ddpm_cli.diffusion.variance import fixed_small
from numerics.frechet import distances
from numerics.training import SAMPLES, sampled, trained

CALLS = (5, 10, 15, 20, 50, 100)
ENOUGH = 1.05  # times the distance of 1000 ancestral steps counts as reaching it


def solver(name: str, calls: int) -> Sampler:
    """A sampler that calls the network `calls` times."""
    if name == "ddpm":
        return partial(samplers.ddpm, steps=calls, variance=fixed_small)
    steps = (calls + 1) // 2 if name == "heun" else calls  # Heun's calls it twice in all steps but the last
    return partial(getattr(samplers, name), steps=steps)


def table(*, jobs: int, steps: int) -> list[str]:
    (ddpm,) = trained([3 * steps], prediction=Velocity(), schedule=cosine())
    _, best = distances(sampled(ddpm, solver("ddpm", 1000)))
    lines = [
        f"One network: prediction=v schedule=cosine, {3 * steps} steps of batch 64 on digits of 8 x 8. Distance of "
        f"features, n = {SAMPLES}, all from the same noise; 1000 ancestral steps (ddpm): **{best:.2f}**.",
        "",
        f"| solver | {' | '.join(f'{calls} calls' for calls in CALLS)} | calls to {ENOUGH} x {best:.2f} |",
        f"| --- |{' --- |' * (len(CALLS) + 1)}",
    ]
    for name in ("ddpm", "ddim", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        found = [distances(sampled(ddpm, solver(name, calls)))[1] for calls in CALLS]
        enough = next((str(c) for c, distance in zip(CALLS, found, strict=True) if distance <= ENOUGH * best), "more")
        lines.append(f"| {name} | {' | '.join(f'{distance:.2f}' for distance in found)} | {enough} |")
    return lines
