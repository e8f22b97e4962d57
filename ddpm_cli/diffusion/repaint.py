"""RePaint: paints the masked part of an image anew with a model that was never trained to (Lugmayr et al. 2022)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.samplers import Noise, Spacing, State, ddpm_step
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.spacing import visited
from ddpm_cli.diffusion.times import fill
from ddpm_cli.diffusion.variance import Variance


def repaint(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    image: Tensor,
    mask: Tensor,
    steps: int | Sequence[int] | None = None,
    spacing: Spacing = "linspace",
    variance: Variance,
    jump_length: int = 10,
    jumps: int = 9,
) -> Iterator[State]:
    """Ancestral sampling that puts q(x_s | image) into the known part after every step, and goes back up now and then.

    Going back up and down again lets the painted part and the known part agree (the paper's resampling, section 4.2).
    A state is yielded after every step down; those up are one draw each, of q(x_t | x_s).

    Args:
        x: standard normal noise, `[B, C, H, W]`; `noise()` returns more of it, and is called once per step, up or down.
        image: the image to keep, in [-1, 1], x's shape. The last state's known pixels equal it exactly.
        mask: `[B or 1, 1, H, W]`, 1 where to paint and 0 where to keep.
        steps: number of timesteps visited, or themselves; None: all T.
        jump_length: how many visited timesteps it goes up in a jump (the paper's j).
        jumps: how often, every `jump_length` timesteps; 0: never. The paper's r counts the first way down too, r =
            jumps + 1.

    Raises:
        ValueError: if the shapes do not fit, the mask is not made of 0 and 1, or there are too few steps to jump in.
    """
    _check(x, image, mask)
    times = visited(schedule, steps, spacing)
    walk = _walk(len(times), jump_length, jumps)
    levels = [*times, -1]
    down = sum(there > here for here, there in pairwise(walk))
    done = 0
    for here, there in pairwise(walk):
        t, s = fill(x, levels[here]), fill(x, levels[there])
        if there < here:
            beta = schedule.step_variance(s, t, x.shape)
            x = (1 - beta).sqrt() * x + beta.sqrt() * noise()
            continue
        alpha, sigma = schedule.alpha_sigma(s, x.shape)
        # One draw is enough for both parts: they share no pixel.
        z = noise()
        painted = ddpm_step(schedule, x, t, s, denoise(x, t), z, variance=variance)
        x = torch.where(mask.bool(), painted, alpha * image + sigma * z)
        done += 1
        yield State(x, done, down)


def _walk(steps: int, jump_length: int, jumps: int) -> list[int]:
    """The levels passed, from 0, the noisiest timestep visited, to `steps`, clean data.

    Jumps set out `jump_length` apart, counted from the last timestep visited, as in the authors' code.
    """
    if jumps < 0:
        raise ValueError(f"jumps must not be negative, got {jumps}")
    if jumps > 0 and not 1 <= jump_length < steps:
        raise ValueError(f"jump_length must be between 1 and {steps - 1}, one less than the steps, got {jump_length}")
    walk = [0]
    for level in range(1, steps):
        walk.append(level)
        if jumps > 0 and (steps - 1 - level) % jump_length == 0 and level >= jump_length:
            walk += [*range(level - jump_length, level + 1)] * jumps
    return [*walk, steps]


def _check(x: Tensor, image: Tensor, mask: Tensor) -> None:
    if image.shape != x.shape:
        raise ValueError(f"image must have the shape of what is drawn, {list(x.shape)}, got {list(image.shape)}")
    batch, _, height, width = x.shape
    if mask.shape not in ((batch, 1, height, width), (1, 1, height, width)):
        raise ValueError(f"mask must be [{batch} or 1, 1, {height}, {width}], got {list(mask.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask must be 1 where to paint and 0 where to keep, and nothing between")
