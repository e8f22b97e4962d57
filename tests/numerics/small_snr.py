"""What becomes of a network's errors where there is hardly an image in x_t: speckles, and the way to noise and back."""

import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.data.datasets import digits
from ddpm_cli.diffusion import schedule
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.inversion import both_ways
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, DPMSolverPP2MSDE, Sampler
from ddpm_cli.io.images import from_uint8
from ddpm_cli.runtime.seeds import ImageNoise
from numerics.training import trained
from numerics.variants import PREDICTIONS, SCHEDULES

SAMPLES = 256
INVERTED = 64  # images
SAMPLERS: dict[str, Sampler] = {
    "ddim, 50": DDIM(steps=50),
    "dpmpp_2m, 20": DPMSolverPP2M(steps=20),
    "ddim eta=1, 50": DDIM(steps=50, eta=1.0),
    "dpmpp_2m_sde, 25": DPMSolverPP2MSDE(steps=25),
    "ddpm, 250": Ancestral(steps=250),
}

Variant = tuple[str, str]
Scores = tuple[float, float, list[int]]  # PSNR of the round trip, x_T's deviation, speckled by sampler


def table(*, jobs: int, steps: int) -> list[str]:
    marks, variants = [steps // 4, steps], list(itertools.product(PREDICTIONS, SCHEDULES))
    context, limit = get_context("spawn"), {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(jobs, context, **limit) as pool:
        scores = dict(zip(variants, pool.map(scored, variants, itertools.repeat(marks)), strict=True))
    columns = ["prediction", "schedule", "round trip, dB", "deviation", *(f"speckled: {name}" for name in SAMPLERS)]
    return [
        f"After {marks[0]} and after {marks[1]} steps with batches of 64 on digits of 8 x 8. Round trip: PSNR of "
        f"{INVERTED} digits after mode=reconstruct, 50 steps each way. Deviation: the standard deviation of x_T, "
        f"halfway; that of noise is 1. Speckled: how many of {SAMPLES} samples from the same noise are rougher (root "
        "mean square of the discrete Laplacian) than 99.9 % of the digits.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(_row(variant, scores[variant]) for variant in variants),
    ]


def scored(variant: Variant, marks: list[int]) -> list[Scores]:
    predicted, scheduled = variant
    options = {"prediction": PREDICTIONS[predicted](), "schedule": getattr(schedule, scheduled)()}
    return [
        (*round_trip(ddpm), [speckled(ddpm, sampler) for sampler in SAMPLERS.values()])
        for ddpm in trained(marks, **options)
    ]


def round_trip(ddpm: DDPM) -> tuple[float, float]:
    """PSNR in dB of digits that were taken to noise and back as by mode=reconstruct, and that noise's deviation."""
    x_0, ddim = data()[:INVERTED], DDIM(steps=50)
    with torch.no_grad(), ddpm.evaluating():
        times = ddim.times(ddpm.schedule)
        (*_, noise), ask = both_ways(ddpm.denoiser(), ddpm.schedule, times, x_0, prediction=ddpm.prediction)
        *_, back = ddim.solve(ask, ddpm.schedule, times, noise, torch.empty)
    return (10 * torch.log10(4 / (back.clamp(-1, 1) - x_0).square().mean())).item(), noise.std().item()


def speckled(ddpm: DDPM, sampler: Sampler) -> int:
    """How many of `SAMPLES` images are rougher than 99.9 % of the digits."""
    noise, times = ImageNoise(0, range(SAMPLES), (1, 8, 8)), sampler.times(ddpm.schedule)
    *_, drawn = ddpm.reverse_process(sampler.solve(ddpm.denoiser(), ddpm.schedule, times, noise(), noise))
    return int((roughness(drawn.clamp(-1, 1)) > roughness(data()).quantile(0.999)).sum())


def roughness(images: Tensor) -> Tensor:
    """Root mean square of the discrete Laplacian of each image, `[B]`."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel[None, None]).square().mean(dim=(1, 2, 3)).sqrt()


def data() -> Tensor:
    return from_uint8(torch.from_numpy(digits(image_size=8).pixels))


def _row(variant: Variant, scores: list[Scores]) -> str:
    trips = ", ".join(f"{trip:.1f}" for trip, _, _ in scores)
    deviations = ", ".join(f"{deviation:.2f}" for _, deviation, _ in scores)
    counts = zip(*(counts for _, _, counts in scores), strict=True)
    return f"| {' | '.join([*variant, trips, deviations, *(', '.join(map(str, count)) for count in counts)])} |"
