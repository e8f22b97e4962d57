"""Drawing what a mode has planned, batch by batch.

On a GPU nothing in a batch waits for it before the batch is done: the loop runs ahead and only queues what is to be
computed.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.samplers import State
from ddpm_cli.diffusion.times import fill
from ddpm_cli.io.images import to_uint8
from ddpm_cli.runtime.device import Compute
from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError
from ddpm_cli.sampling.modes import Plan

FILM_IMAGES = 8
FILM_FRAMES = 16
NOT_FINITE = "the images are not finite numbers; try precision=fp32, more sampler.steps or a smaller guidance.scale"


class Keep(Protocol):
    """Takes a batch: the indices of its images, these as uint8 `[B, C, H, W]`, and its part of the film."""

    def __call__(self, indices: range, images: Tensor, film: Tensor | None, /) -> object: ...


class SamplingLoop:
    """A network, what is to be drawn with it, and how.

    Args:
        denoiser: makes one of a batch's labels.
        labels: of each of the plan's rows; None: none has one.
        compiled: draw batches of this many images with the network as it is compiled, others (0: all) as it was
            written; None: it is not compiled.
    """

    def __init__(
        self,
        ddpm: DDPM,
        plan: Plan,
        denoiser: Callable[[Tensor | None], Denoiser],
        labels: Sequence[int] | None,
        compute: Compute,
        *,
        compiled: int | None = None,
    ):
        self.ddpm = ddpm
        self.plan = plan
        self.denoiser = denoiser
        self.labels = labels
        self.compute = compute
        self.compiled = compiled

    @torch.no_grad()
    def draw(self, batches: Sequence[range], keep: Keep, *, filmed: int = 0, show_progress: bool = True) -> None:
        """Draw the images of these indices, and hand over each batch as soon as it is done.

        Args:
            filmed: how many of the plan's first images to show on their way.

        Raises:
            RunError: if an image is not finite.
        """
        bar = tqdm(desc="sampling", unit="step", disable=None if show_progress else True, dynamic_ncols=True)
        with bar, self._evaluating():
            for indices in batches:
                shown = max(0, filmed - indices.start)
                with self._translated(len(indices)):
                    keep(indices, *_finish(self._states(indices, bar, len(batches)), shown))

    @torch.no_grad()
    def translate(self, image_shape: tuple[int, int, int]) -> None:
        """Have the network compiled now, by a first call of it, rather than in the middle of drawing."""
        assert self.compiled is not None
        # Kernels that compute the same on every run, not those that a timing found faster; read when it is imported.
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
        self.compute.compile(self.ddpm.model)
        x = torch.zeros(self.compiled, *image_shape, device=self.compute.device)
        with self._evaluating():
            self._denoise(range(self.compiled))(x, fill(x, 0))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with self.compute.autocast(), self.ddpm.evaluating():
            yield

    @contextmanager
    def _translated(self, size: int) -> Iterator[None]:
        """Inside, a compiled network is called as it is compiled if it is so for batches of this size."""
        with ExitStack() as as_written:
            if self.compiled is not None and size != self.compiled:
                as_written.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def _states(self, indices: range, bar: tqdm, batches: int) -> Iterator[State]:
        for state in self.plan.states(self._denoise(indices), indices):
            bar.total = state.steps * batches
            bar.update()
            yield state

    def _denoise(self, indices: range) -> Denoiser:
        of_batch = None
        if self.labels is not None:
            labels = [self.labels[i // self.plan.per_row] for i in indices]
            of_batch = torch.tensor(labels, device=self.compute.device)
        denoise = self.denoiser(of_batch)
        if self.compiled is None:
            return denoise

        def same_layout(x_t: Tensor, t: Tensor) -> Denoised:
            return denoise(x_t.contiguous(), t)  # what is compiled holds for one order of x_t's numbers in memory

        return same_layout


def _finish(states: Iterator[State], shown: int) -> tuple[Tensor, Tensor | None]:
    """The last state as uint8 images, and of its first `shown` the film, both on the CPU."""
    frames, x = [], torch.empty(0)
    for state in states:
        x = state.x
        if shown > 0 and _is_frame(state.step, state.steps):
            frames.append(to_uint8(x[:shown]))
    if not torch.isfinite(x).all():
        raise RunError(NOT_FINITE, NON_FINITE)
    return to_uint8(x).cpu(), torch.stack(frames).cpu() if frames else None


def _is_frame(step: int, steps: int) -> bool:
    """Does the state after `step` of `steps` belong in a film of at most FILM_FRAMES states that ends with the last?"""
    return (step * FILM_FRAMES) // steps != ((step - 1) * FILM_FRAMES) // steps
