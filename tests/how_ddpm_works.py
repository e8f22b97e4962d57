"""Draw the figures of docs/tutorials/how-ddpm-works.md from a run of the quickstart: `scripts/docs --figures RUN`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_cli import DDPM, cosine, linear, load
from ddpm_cli.checkpoint.find import all_of
from ddpm_cli.data.datasets import digits
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.guidance import Guidance
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, Sampler, UniPC
from ddpm_cli.runtime.seeds import ImageNoise

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "figures"
BLUE, RED, GREY = "#2166ac", "#d6604d", "#7f8c8d"
FOLLOWED = 7  # the digit that the page follows: its index in the data
TEN = (0, 50, 100, 200, 300, 400, 500, 650, 800, 999)


def main() -> None:
    run = Path(sys.argv[1])
    torch.manual_seed(0)
    FIGURES.mkdir(exist_ok=True)
    ddpm, (channels, size, _), step, _ = load(run)
    x_0 = torch.from_numpy(digits(image_size=size).pixels) / 127.5 - 1
    noise = ImageNoise(0, range(len(x_0)), (channels, size, size))()
    _schedules()
    with torch.no_grad():
        _noised(ddpm, x_0[FOLLOWED], noise[FOLLOWED])
        _guesses(ddpm, x_0[FOLLOWED], noise[FOLLOWED])
        _losses(ddpm, x_0, noise)
        _way_back(ddpm, (channels, size, size))
        _solvers(ddpm, (channels, size, size))
        _guidance(ddpm, _earlier(run, step), (channels, size, size))
    print(*sorted(FIGURES.glob("*.png")), sep="\n")


def _earlier(run: Path, step: int) -> DDPM:
    """The same network as it was a checkpoint before."""
    checkpoints = all_of(run / "checkpoints")
    return load(checkpoints[max(at for at in checkpoints if at < step)])[0]


def _schedules() -> None:
    figure, axes = _plot()
    for schedule, colour, name in ((cosine(), BLUE, "cosine"), (linear(), RED, "linear")):
        axes.plot(schedule.sqrt_alphas_cumprod, color=colour, label=f"{name}: alpha, of the image")
        axes.plot(schedule.sqrt_one_minus_alphas_cumprod, color=colour, linestyle=":", label=f"{name}: sigma, of noise")
    axes.set(xlabel="t", ylabel="factor in x_t = alpha x_0 + sigma eps", ylim=(0, 1.02), xlim=(0, 999))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, "schedule")


def _noised(ddpm: DDPM, x_0: Tensor, noise: Tensor) -> None:
    _save(_table([_at(ddpm, x_0, noise, TEN)], [f"t = {t}" for t in TEN], ["x_t"]), "noised")


def _guesses(ddpm: DDPM, x_0: Tensor, noise: Tensor) -> None:
    x_t = _at(ddpm, x_0, noise, TEN)
    seen = ddpm.denoise(x_t, torch.tensor(TEN))
    errors = (seen.x_0 - x_0).square().flatten(1).mean(1).sqrt()
    columns = [f"t = {t}\noff by {error:.2f}" for t, error in zip(TEN, errors, strict=True)]
    _save(_table([x_t, seen.x_0, seen.eps / 3], columns, ["x_t", "guessed x_0", "guessed eps"]), "guesses")


def _at(ddpm: DDPM, x_0: Tensor, noise: Tensor, times: Sequence[int]) -> Tensor:
    return ddpm.q_sample(x_0.expand(len(times), *x_0.shape), torch.tensor(times), noise)[0]


def _losses(ddpm: DDPM, x_0: Tensor, noise: Tensor) -> None:
    """The error of x_0 and of eps, which are the same but for the factor SNR; over all images at every tenth t."""
    times = [*range(0, 1000, 10), 999]
    images, drawn = x_0[:256], noise[:256]
    of_x_0, of_eps = [], []
    for t in times:
        at = torch.full((len(images),), t)
        seen = ddpm.denoise(ddpm.q_sample(images, at, drawn)[0], at, clip_denoised=False)
        of_x_0.append((seen.x_0 - images).square().mean().item())
        of_eps.append((seen.eps - drawn).square().mean().item())
    figure, axes = _plot()
    axes.plot(times, of_x_0, color=BLUE, label="x_0")
    axes.plot(times, of_eps, color=RED, label="eps")
    axes.set(xlabel="t", ylabel="mean squared error", yscale="log", xlim=(0, 999), ylim=(3e-4, 10))
    axes.legend(frameon=False, title="error of the guessed")
    _save(figure, "loss")


def _way_back(ddpm: DDPM, shape: tuple[int, int, int]) -> None:
    shown, times = [], []
    for t, x, seen in _walk(ddpm, Ancestral(), ddpm.denoiser(), shape):
        if t in TEN:
            shown.append(torch.cat([x, seen.x_0]))
            times.append(t)
    columns = [f"t = {t}" for t in times]
    rows = torch.stack(shown, dim=1)
    _save(_table([rows[0], rows[1]], columns, ["x_t", "guessed x_0"]), "way_back")


def _walk(
    ddpm: DDPM, sampler: Sampler, denoise: Denoiser, shape: tuple[int, int, int], index: int = 3
) -> Iterator[tuple[int, Tensor, Denoised]]:
    """t, the x_t that the network is asked about there, and its answer, at every step of the way."""
    noise, asked = ImageNoise(0, range(index, index + 1), shape), []

    def watched(x: Tensor, t: int) -> Denoised:
        asked.append((t, x, denoise(x, t)))
        return asked[-1][2]

    for _ in ddpm.reverse_process(sampler.solve(watched, ddpm.schedule, sampler.times(ddpm.schedule), noise(), noise)):
        yield from asked
        asked.clear()


def _solvers(ddpm: DDPM, shape: tuple[int, int, int]) -> None:
    tried: list[tuple[str, Sampler]] = [
        ("ancestral, 1000 calls", Ancestral()),
        ("ancestral, 50 calls", Ancestral(steps=50)),
        ("DDIM, 50 calls", DDIM(steps=50)),
        ("DPM-Solver++(2M), 10 calls", DPMSolverPP2M(steps=10)),
        ("UniPC, 6 calls", UniPC(steps=6)),
    ]
    _save(_table([_drawn(ddpm, sampler, shape) for _, sampler in tried], [], [name for name, _ in tried]), "solvers")


def _guidance(ddpm: DDPM, earlier: DDPM, shape: tuple[int, int, int]) -> None:
    scales = (1.0, 1.5, 2.0, 3.0)
    rows = [
        _drawn(ddpm, DDIM(steps=50), shape, guidance=Guidance(scale=scale), guide=earlier if scale > 1 else None)
        for scale in scales
    ]
    _save(_table(rows, [], [f"scale {scale:g}" for scale in scales]), "guidance")


def _drawn(ddpm: DDPM, sampler: Sampler, shape: tuple[int, int, int], **options: Any) -> Tensor:
    """The same ten images of any sampler."""
    noise, times = ImageNoise(0, range(10), shape), sampler.times(ddpm.schedule)
    *_, last = ddpm.reverse_process(sampler.solve(ddpm.denoiser(**options), ddpm.schedule, times, noise(), noise))
    return last


def _table(rows: Sequence[Tensor], columns: Sequence[str], names: Sequence[str]) -> Figure:
    """Images `[N, 1, H, W]` in rows with names, under columns' titles."""
    figure = Figure(figsize=(9.6, 0.95 * len(rows) + (0.35 if columns else 0)), layout="constrained")
    places: np.ndarray = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, images, name in zip(places, rows, names, strict=True):
        for i, (place, image) in enumerate(zip(row, images, strict=True)):
            place.imshow(image[0], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            if i == 0:
                place.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for place, title in zip(places[0], columns, strict=False):
        place.set_title(title, fontsize=8)
    return figure


def _plot() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#e3e8ee")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Figure, name: str) -> None:
    figure.savefig(FIGURES / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
