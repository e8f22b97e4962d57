"""RePaint: inpaints the masked part of an image with a model that was not trained for it (Lugmayr et al. 2022)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.noise_schedule import CLEAN, NoiseSchedule, expand_t
from ddpm_cli.diffusion.samplers import Noise, ddpm_step
from ddpm_cli.diffusion.variance import Variance


@dataclass(frozen=True, kw_only=True)
class RePaint:
    """Ancestral sampling that sets the known part to q(x_s | image) after every step, with jumps back to more noise.

    Jumping back and sampling again makes the painted part agree with the known part (the paper's resampling, 4.2).

    Args:
        variance: of the steps down.
        jump_length: how many visited timesteps a jump goes back up (the paper's j).
        resamplings: how often each stretch of `jump_length` timesteps is sampled (the paper's r); 1: no jumps.

    Raises:
        ValueError: if `resamplings` is less than 1.
    """

    variance: Variance
    jump_length: int = 10
    resamplings: int = 10

    def __post_init__(self) -> None:
        if self.resamplings < 1:
            raise ValueError(f"resamplings must be at least 1, got {self.resamplings}")

    def levels(self, steps: int) -> list[int]:
        """The levels passed, from 0, the noisiest of `steps` timesteps visited, to `steps`, clean data.

        Jumps start `jump_length` apart, counted from the last timestep visited, as in the authors' code.

        Raises:
            ValueError: if there are too few steps for a jump.
        """
        jumps = self.resamplings - 1
        if jumps > 0 and not 1 <= self.jump_length < steps:
            raise ValueError(
                f"jump_length must be between 1 and {steps - 1}, one less than the steps, got {self.jump_length}"
            )
        walk = [0]
        for level in range(1, steps):
            walk.append(level)
            if jumps > 0 and (steps - 1 - level) % self.jump_length == 0 and level >= self.jump_length:
                walk += [*range(level - self.jump_length, level + 1)] * jumps
        return [*walk, steps]

    def steps_down(self, steps: int) -> list[int]:
        """The levels from which it steps down when `steps` timesteps are visited; the network is called at each."""
        return [here for here, there in pairwise(self.levels(steps)) if there > here]

    def paint(
        self,
        denoise: Denoiser,
        schedule: NoiseSchedule,
        times: Sequence[int],
        noise: Noise,
        *,
        image: Tensor,
        mask: Tensor,
    ) -> Iterator[Tensor]:
        """x after every step down, `[B, C, H, W]`; a step up is one draw from q(x_t | x_s).

        Args:
            times: decreasing timesteps.
            noise: returns standard normal noise `[B, C, H, W]`: first x itself, then once per step, up or down.
            image: the image to keep, in [-1, 1]. The last x's known pixels equal it exactly.
            mask: bool `[B or 1, 1, H, W]`, True where to paint.

        Raises:
            ValueError: if the shapes do not fit, or the mask is not bool.
        """
        x = noise()
        _check(x, image, mask)
        visited = [*times, CLEAN]
        for here, there in pairwise(self.levels(len(times))):
            t, s = expand_t(visited[here], x), expand_t(visited[there], x)
            if there < here:
                beta = schedule.step_variance(s, t, x.shape)
                x = (1 - beta).sqrt() * x + beta.sqrt() * noise()
                continue
            alpha, sigma = schedule.alpha_sigma(s, x.shape)
            # One draw serves both parts: they share no pixel.
            z = noise()
            painted = ddpm_step(schedule, x, t, s, denoise(x, visited[here]), z, variance=self.variance)
            x = torch.where(mask, painted, alpha * image + sigma * z)
            yield x


def _check(x: Tensor, image: Tensor, mask: Tensor) -> None:
    if image.shape != x.shape:
        raise ValueError(f"image must have the shape of the samples, {list(x.shape)}, got {list(image.shape)}")
    batch, _, height, width = x.shape
    if mask.shape not in ((batch, 1, height, width), (1, 1, height, width)):
        raise ValueError(f"mask must be [{batch} or 1, 1, {height}, {width}], got {list(mask.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True where to paint and False where to keep, got {mask.dtype}")
