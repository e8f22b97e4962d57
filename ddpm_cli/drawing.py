"""Drawing what a mode has planned, batch by batch, and writing it down as pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli import sample_files as files
from ddpm_cli.devices import Compute
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.ending import NON_FINITE, RunError
from ddpm_cli.images import grid, save_gif, save_png, to_uint8
from ddpm_cli.modes import Plan

GRID_IMAGES = 400  # more would make a picture nobody can open; the others are in save=images or save=npz
GRID_COLUMNS = 20  # of rows so long that not all of them would fit, so much is shown at least
FILM_IMAGES = 8
FILM_FRAMES = 16
NOT_FINITE = "the images are not finite numbers; try precision=fp32, more sampler.steps or a smaller guidance.scale"


@torch.no_grad()
def draw(
    ddpm: DDPM,
    plan: Plan,
    denoiser: Callable[[Tensor | None], Denoiser],
    labels: Sequence[int] | None,
    compute: Compute,
    *,
    batch_size: int,
    filmed: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """All images of a plan.

    Args:
        denoiser: makes one of a batch's labels.
        labels: of all images; None: none has one.
        batch_size: images at a time.
        filmed: how many of the first batches' images to show on their way.

    Raises:
        RunError: if an image is not finite.

    Returns:
        uint8 images `[N, C, H, W]`, and of the first few their states, `[frames, images, C, H, W]`.
    """
    images, film = [], []
    count = plan.rows * plan.per_row
    starts = range(0, count, batch_size)
    bar = tqdm(desc="sampling", unit="step", disable=None, dynamic_ncols=True)
    with bar, compute.autocast(), ddpm.evaluating():
        for first in starts:
            indices = range(first, min(first + batch_size, count))
            of_batch = None
            if labels is not None:
                of_batch = torch.tensor(labels[indices.start : indices.stop], device=compute.device)
            shown = max(0, filmed - first)
            frames = []
            for state in plan.states(denoiser(of_batch), indices):
                bar.total = state.steps * len(starts)
                bar.update()
                if shown > 0 and _is_frame(state.step, state.steps):
                    frames.append(to_uint8(state.x[:shown]).cpu())
                if state.step == state.steps:
                    if not torch.isfinite(state.x).all():
                        raise RunError(NOT_FINITE, NON_FINITE)
                    images.append(to_uint8(state.x).cpu())
            if frames:
                film.append(torch.stack(frames))
    return torch.cat(images), torch.cat(film, dim=1) if film else None


def write(images: Tensor, film: Tensor | None, plan: Plan, directory: Path, *, save: str) -> list[Path]:
    """Write the picture of all images, what else `save` asks for, and the film; returns what was written.

    Args:
        images, film: as from `draw`.
        save: "grid" alone, "images" (single PNGs too) or "npz" (uint8 `[N, H, W, C]` too).
    """
    written = [directory / files.GRID_FILE]
    save_png(_picture(images, plan), directory / files.GRID_FILE)
    if save == "images":
        (directory / files.IMAGES_DIRECTORY).mkdir()
        for i, image in enumerate(images):
            save_png(image, directory / files.IMAGES_DIRECTORY / f"{i:06d}.png")
        written.append(directory / files.IMAGES_DIRECTORY)
    if save == "npz":
        np.savez(directory / files.NPZ_FILE, images.permute(0, 2, 3, 1).numpy())
        written.append(directory / files.NPZ_FILE)
    if film is not None:
        frames, shown = film.shape[:2]
        save_png(grid(film.transpose(0, 1).flatten(0, 1), columns=frames), directory / files.STRIP_FILE)
        save_gif([grid(frame, columns=shown) for frame in film], directory / files.FILM_FILE)
        written += [directory / files.STRIP_FILE, directory / files.FILM_FILE]
    return written


def _is_frame(step: int, steps: int) -> bool:
    """Does the state after `step` of `steps` belong in a film of at most FILM_FRAMES states that ends with the last?"""
    return (step * FILM_FRAMES) // steps != ((step - 1) * FILM_FRAMES) // steps


def _picture(images: Tensor, plan: Plan) -> Tensor:
    """The plan's rows, each behind what is shown with it; uint8 `[C, H, W]`."""
    if plan.columns is None:
        return grid(images[:GRID_IMAGES])
    rows = images.view(plan.rows, plan.per_row, *images.shape[1:])
    if plan.shown is not None:
        rows = torch.cat([plan.shown, rows], dim=1)
    columns = min(plan.columns, max(GRID_COLUMNS, GRID_IMAGES // plan.rows))
    return grid(rows[: GRID_IMAGES // columns, :columns].flatten(0, 1), columns=columns)
