"""The way from noise to image, of a few images at a few of their steps: x_t, and below it the x_0 guessed of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.io.images import grid, on_checks, to_uint8
from ddpm_cli.io.picture_labels import fit, with_labels

FILM_IMAGES = 8
FILM_FRAMES = 16
ROWS = ("x_t", "x_0")  # of each image


class Film:
    """Follows a batch of images through their steps, without asking the network for more.

    Args:
        images: how many of the batch, from its first one.
        steps: that an image takes.
    """

    def __init__(self, images: int, steps: int):
        self._images = images
        self._shown = frozenset(_shown(steps))
        self._steps = 0  # that are done
        self._asked = False  # whether the network has been asked in this step
        self._x_t = self._x_0 = torch.empty(0)  # of this step, uint8 [k, C, H, W]
        self._frames: list[Tensor] = []

    def watch(self, denoise: Denoiser) -> Denoiser:
        """`denoise`, of which the film keeps the first answer in each step.

        A step that asks nothing, as of an inversion that has not begun, is shown with the answer before.
        """

        def watched(x_t: Tensor, t: int) -> Denoised:
            denoised = denoise(x_t, t)
            if not self._asked:
                self._x_t, self._x_0 = self._kept(x_t), self._kept(denoised.x_0)
                self._asked = True
            return denoised

        return watched

    def end_step(self, x: Tensor) -> None:
        """To be told after every step, with its x `[B, C, H, W]`."""
        if self._steps in self._shown:
            self._frames.append(torch.stack([self._x_t, self._x_0]))
        self._steps += 1
        self._asked, self._x_t = False, self._kept(x)

    def trajectory(self) -> Tensor:
        """uint8 `[frames, 2, k, C, H, W]`: x_t and the x_0 guessed of it; in the last frame the finished images."""
        return torch.stack([*self._frames, torch.stack([self._x_t, self._x_t])])

    def _kept(self, x: Tensor) -> Tensor:
        return to_uint8(x[: self._images])


def _shown(steps: int) -> list[int]:
    """The steps that are shown as they begin, evenly spread from the first one; with the end they are FILM_FRAMES."""
    frames = FILM_FRAMES - 1
    return [step for step in range(steps) if step * frames // steps != (step - 1) * frames // steps]


def strip(trajectory: Tensor, times: Sequence[int], names: Sequence[str] = ()) -> Tensor:
    """The whole way in one picture, uint8 `[C, H, W]`: a column for each frame below its t, two rows for each image.

    Args:
        trajectory: as of `Film`.
        times: the t at which each step begins, as of a `Plan`.
        names: of the images, if they have any.
    """
    frames, rows, images = trajectory.shape[:3]
    cells = trajectory.permute(2, 1, 0, 3, 4, 5).flatten(0, 2)  # by image, x_t or x_0, frame
    named = [*names[:images], *[""] * (images - len(names))]
    left = [f"{name}:  {row}" if name and row == ROWS[0] else row for name in named for row in ROWS]
    assert len(left) == images * rows
    top = [str(times[step]) for step in _shown(len(times))]
    return with_labels(grid(cells, columns=frames), left=left, top=[*top, "end"], corner="t")


def animation(trajectory: Tensor, times: Sequence[int]) -> list[Tensor]:
    """The frames of a film, uint8 `[C, H, W]`: all images side by side, below their t. Arguments as of `strip`."""
    images = trajectory.shape[2]
    said = [*(f"t = {times[step]}" for step in _shown(len(times))), "end"]
    frames = [on_checks(grid(frame.flatten(0, 1), columns=images)) for frame in trajectory]
    tops = [[text] for text in said] if fit(said, frames[0].shape[-1]) else [[]] * len(said)  # all are of one size
    return [with_labels(frame, left=ROWS, top=top) for frame, top in zip(frames, tops, strict=True)]
