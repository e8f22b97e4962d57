"""The sampling loop, which samples all images batch by batch, for `ddpm-sample` and for previews.

On a GPU nothing waits before a batch is done: the host runs ahead and only queues the computation.
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
from ddpm_cli.io.images import to_uint8
from ddpm_cli.runtime.device import Compute
from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError
from ddpm_cli.sampling.autoguidance import Guide
from ddpm_cli.sampling.film import Film
from ddpm_cli.sampling.modes import Plan

NOT_FINITE = "the images are not finite; try precision=fp32, more sampler.steps or a smaller guidance.scale"


class Keep(Protocol):
    """Takes a batch: the indices of its images, these as uint8 `[B, C, H, W]`, and its part of the trajectory."""

    def __call__(self, indices: range, images: Tensor, trajectory: Tensor | None, /) -> object: ...


class SamplingLoop:
    """A network, what to sample with it, and how.

    Args:
        denoiser: makes a denoiser from a batch's labels `[B]`, or from None; None: `DDPM.denoiser` of the network.
        guide: the model that the denoiser guides away from, if it is another one.
        compiled: use the compiled network for batches of this many images, and the original for others (0: for all);
            None: it is not compiled.
    """

    def __init__(
        self,
        ddpm: DDPM,
        plan: Plan,
        compute: Compute,
        *,
        denoiser: Callable[[Tensor | None], Denoiser] | None = None,
        guide: Guide | None = None,
        compiled: int | None = None,
    ):
        self.ddpm = ddpm
        self.plan = plan
        self.compute = compute
        self.denoiser = ddpm.denoiser if denoiser is None else denoiser
        self.guide = guide
        self.compiled = compiled

    def states(self, indices: range, film: Film | None = None) -> Iterator[Tensor]:
        """x of the images at these indices after every step of `plan.steps`, `[B, C, H, W]` on the device.

        Args:
            film: watches what the network is asked and answers; to be told of the steps by the caller.
        """
        with self.compute.autocast(), self._compiled_for(len(indices)):
            denoise = self._denoise(indices)
            denoise = denoise if film is None else film.watch(denoise)
            yield from self.ddpm.reverse_process(self.plan.walk(denoise, indices))

    def draw(self, batches: Sequence[range], keep: Keep, *, followed: int = 0, show_progress: bool = True) -> None:
        """Sample the images at these indices, and pass each batch to `keep` as soon as it is done.

        Args:
            followed: how many of the plan's first images to keep a `Film` of, from noise to image.

        Raises:
            RunError: if an image is not finite.
        """
        hidden = None if show_progress else True  # None: hidden if stderr is not a terminal
        total = self.plan.steps * len(batches)
        with tqdm(total=total, desc="sampling", unit="step", disable=hidden, dynamic_ncols=True) as bar:
            for indices in batches:
                keep(indices, *self._batch(indices, max(0, followed - indices.start), bar))

    def _batch(self, indices: range, followed: int, bar: tqdm) -> tuple[Tensor, Tensor | None]:
        """The finished images as uint8, and the trajectory of the first `followed` of them, both on the CPU."""
        film, x = Film(followed, self.plan.steps) if followed > 0 else None, torch.empty(0)
        for x in self.states(indices, film):
            bar.update()
            if film is not None:
                film.end_step(x)
        if not torch.isfinite(x).all():
            raise RunError(NOT_FINITE, NON_FINITE)
        return to_uint8(x).cpu(), None if film is None else film.trajectory().cpu()

    @torch.no_grad()
    def compile(self, image_shape: tuple[int, int, int]) -> None:
        """Compile the network now, by a first call, rather than in the middle of sampling."""
        assert self.compiled is not None
        # Kernels that compute the same in every run, not those that were timed as fastest; read at import.
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
        self.compute.compile(self.ddpm.model)
        x = torch.zeros(self.compiled, *image_shape, device=self.compute.device)
        with self.compute.autocast(), self.ddpm.evaluating():
            self._denoise(range(self.compiled))(x, 0)

    @contextmanager
    def _compiled_for(self, size: int) -> Iterator[None]:
        """Inside, the compiled network is used if it was compiled for batches of this size."""
        with ExitStack() as as_written:
            if self.compiled is not None and size != self.compiled:
                as_written.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def _denoise(self, indices: range) -> Denoiser:
        labels = None
        if self.plan.labels is not None:
            labels = torch.tensor([self.plan.labels[i] for i in indices], device=self.compute.device)
        denoise = self.denoiser(labels)
        if self.compiled is None:
            return denoise

        def same_layout(x_t: Tensor, t: int) -> Denoised:
            return denoise(x_t.contiguous(), t)  # the network is compiled for one memory layout of x_t

        return same_layout
