"""How far schedules, steps and whole walks are from diffusers', and the variational bound from a known entropy."""

import itertools
from collections.abc import Iterable
from importlib.metadata import version

import entropy
from oracles import two_schedules
from torch import Tensor
from walks import (
    ETAS,
    MULTISTEP,
    PREDICTIONS,
    SCHEDULES,
    VARIANCES,
    Walk,
    ddim_steps,
    ddim_walks,
    ddpm_steps,
    heun_walks,
    multistep_walks,
    worst,
)

from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall, Variance

LARGEST = "largest value of the state, or 1"


def table(*, jobs: int, steps: int) -> list[str]:
    return [
        f"Compared with diffusers {version('diffusers')}, with the same network and the same noise; schedules of 1000 "
        "steps. Single steps are in float32, with and without clipping of x_0; whole trajectories are in float64, and "
        "every state is compared. The tables of diffusers are recomputed in float64. Steps and trajectories are "
        "compared for networks that predict eps, v and x_0, with the linear and the cosine schedule.",
        "",
        "| compared | comparisons | worst deviation | relative to |",
        "| --- | --- | --- | --- |",
        *_schedules(),
        *_steps(),
        *_walks(),
        "",
        *_bounds(),
    ]


def _schedules() -> list[str]:
    rows = []
    for name in ("linear", "scaled_linear", "cosine"):
        ours, theirs = two_schedules(name)
        betas = ((ours.betas - theirs.betas) / theirs.betas).abs()
        rows.append(_row(f"schedule {name}: beta", f"{len(betas)} t", betas.max().item(), "each beta"))
        rows.append(_alpha(f"schedule {name}", ours.sqrt_alphas_cumprod, theirs.alphas_cumprod.sqrt()))
    for name in ("linear", "scaled_linear", "cosine"):
        ours, theirs = two_schedules(name, zero_terminal_snr=True)
        title = f"schedule {name}, zero terminal SNR"
        rows.append(_alpha(title, ours.sqrt_alphas_cumprod, theirs.alphas_cumprod.sqrt()))
    return rows


def _alpha(name: str, found: Tensor, expected: Tensor) -> str:
    return _row(f"{name}: sqrt(alpha_bar)", f"{len(found)} t", (found - expected).abs().max().item(), "1")


def _steps() -> list[str]:
    rows = []
    every = list(itertools.product(SCHEDULES, PREDICTIONS, (True, False)))
    for variance in VARIANCES:
        pairs = [
            (found, expected)
            for schedule, prediction, clip in every
            for _, _, found, expected in ddpm_steps(schedule, variance, prediction, clip=clip)
        ]
        rows.append(_of_steps(f"ddpm step, {variance}", pairs))
    for eta in ETAS:
        pairs = [
            pair for schedule, prediction, clip in every for pair in ddim_steps(schedule, eta, prediction, clip=clip)
        ]
        rows.append(_of_steps(f"ddim step, eta {eta:g}", pairs))
    return rows


def _of_steps(name: str, pairs: list[tuple[Tensor, Tensor]]) -> str:
    found, expected = (list(side) for side in zip(*pairs, strict=True))
    return _row(name, f"{len(pairs)} steps", worst(found, expected), LARGEST)


def _walks() -> list[str]:
    both = list(itertools.product(SCHEDULES, PREDICTIONS))
    return [
        *(
            _of_walks(f"ddim, eta {eta:g}", (ddim_walks(schedule, eta, prediction) for schedule, prediction in both))
            for eta in ETAS
        ),
        _of_walks("heun", (heun_walks(*options) for options in both)),
        *(_of_walks(name, (multistep_walks(name, *options) for options in both)) for name in MULTISTEP),
    ]


def _of_walks(name: str, walks: Iterable[Iterable[Walk]]) -> str:
    every = list(itertools.chain.from_iterable(walks))
    found, expected = [x for walk in every for x in walk.found], [x for walk in every for x in walk.expected]
    compared = f"{len(every)} trajectories, {len(found)} states"
    return _row(f"{name}, whole trajectories", compared, worst(found, expected), LARGEST)


def _row(compared: str, comparisons: str, deviation: float, relative_to: str) -> str:
    return f"| {compared} | {comparisons} | {f'{deviation:.1e}' if deviation else '0'} | {relative_to} |"


def _bounds() -> list[str]:
    """The variational bound with the exact denoiser of Gaussian data, for three variances of the reverse steps."""
    rows = []
    variances: dict[str, Variance] = {
        "exact": entropy.EXACT,
        "fixed_small": FixedSmall(),
        "fixed_large": FixedLarge(),
    }
    for name, variance in variances.items():
        bounds, error, known, gap = entropy.measured(variance)
        expected = known + gap
        bound = bounds.mean().item()
        rows.append(f"| {name} | {bound:.4f} | {known:.4f} + {gap:.4f} | {bound - expected:+.4f} | {error:.4f} |")
    return [
        f"The variational bound of {entropy.IMAGES} images of Gaussian pixels with the exact denoiser, "
        f"T = {entropy.TIMESTEPS}, in bits per dimension. If the variance of the reverse steps is not the exact one, "
        "the bound exceeds the entropy by a divergence that is also known.",
        "",
        "| variance | bound | entropy + divergence | difference | Monte-Carlo error |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
