"""What `ddpm-sample` can draw: new images, given ones changed, what lies between two seeds, and inversions.

A mode lays its pictures out in rows: one for each class, given picture or pair of seeds. Image i of all lies in row
i // per_row, and is the same whichever images are drawn in one batch with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.inversion import both_ways
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, expand_t
from ddpm_cli.diffusion.prediction import Epsilon, Prediction
from ddpm_cli.diffusion.repaint import RePaint
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, Sampler
from ddpm_cli.io.images import from_uint8
from ddpm_cli.runtime.seeds import ImageNoise
from ddpm_cli.sampling.masks import read_mask
from ddpm_cli.sampling.pictures import picture_files, read_pictures

T = TypeVar("T")

GREY = 127  # uint8: where a picture is to be painted anew


class SampleContext(NamedTuple):
    """What every mode works with."""

    schedule: NoiseSchedule
    sampler: Sampler
    image_shape: tuple[int, int, int]  # (C, H, W)
    n: int  # images asked for, of each class, picture or pair
    classes: int  # asked for; 0: none
    seed: int
    device: torch.device
    prediction: Prediction = Epsilon()

    def noise(self, indices: range, seed: int | None = None) -> ImageNoise:
        """Source of the noise of these images."""
        return ImageNoise(self.seed if seed is None else seed, indices, self.image_shape, self.device)


class Plan(NamedTuple):
    """What a mode is about to draw: `rows` times `per_row` images."""

    rows: int
    per_row: int
    times: Sequence[int]  # of each step that an image takes, the t at which x is when it begins
    walk: Callable[[Denoiser, range], Iterator[Tensor]]  # images of these indices, x after every step
    shown: Tensor | None = None  # uint8 [rows, k, C, H, W]: what stands before each row's images in the picture
    by_seed: bool = True  # whether the context's seed decides what is drawn
    labels: Sequence[int] | None = None  # of each image; None: there are none
    row_names: Sequence[str] = ()  # what the picture calls its rows; empty: nothing
    square: bool = False  # whether the picture of a single row is as square as possible
    first: int | None = None  # the t that every image begins at, on one way down to clean data; None: it goes otherwise

    @property
    def images(self) -> int:
        """How many in all."""
        return self.rows * self.per_row

    @property
    def steps(self) -> int:
        """How many an image takes."""
        return len(self.times)

    @property
    def columns(self) -> int | None:
        """Of the picture; None: as square as possible."""
        if self.square and self.rows == 1:
            return None
        return self.per_row + (0 if self.shown is None else self.shown.shape[1])


@dataclass(frozen=True, kw_only=True)
class Generate:
    """New images from noise; with classes a row of each."""

    def plan(self, context: SampleContext) -> Plan:
        """The images that are to be drawn."""
        sampler, schedule = context.sampler, context.schedule
        times = sampler.times(schedule)

        def walk(denoise: Denoiser, indices: range) -> Iterator[Tensor]:
            noise = context.noise(indices)
            return sampler.solve(denoise, schedule, times, noise(), noise)

        return Plan(max(1, context.classes), context.n, times, walk, square=True, first=schedule.timesteps - 1)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Pictures brought to a noise level and back: SDEdit (Meng et al. 2022), `n` of each.

    Args:
        image: a picture or a folder of them.
        strength: in (0, 1], how far towards noise: 1 leaves nothing of the picture.
    """

    image: str | None
    strength: float | None

    def plan(self, context: SampleContext) -> Plan:
        """Raises ValueError for a strength out of its range, or a picture that cannot be read."""
        strength = _given("strength", self.strength)
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {strength:g}")
        given = read_pictures(_given("image", self.image), context.image_shape)
        sampler, schedule = context.sampler, context.schedule
        first = max(0, round(strength * schedule.timesteps) - 1)
        try:
            times = sampler.times(schedule, first)
        except ValueError as error:
            raise ValueError(f"strength {strength:g} begins at t = {first}: {error}") from error

        def walk(denoise: Denoiser, indices: range) -> Iterator[Tensor]:
            noise = context.noise(indices)
            x_0 = _of_rows(given, context, indices)
            alpha, sigma = schedule.alpha_sigma(expand_t(first, x_0), x_0.shape)
            return sampler.solve(denoise, schedule, times, alpha * x_0 + sigma * noise(), noise)

        return Plan(len(given), context.n, times, walk, given[:, None], first=first)


@dataclass(frozen=True, kw_only=True)
class Inpaint:
    """Parts of pictures painted anew to fit the rest: RePaint (Lugmayr et al. 2022), `n` of each.

    Args:
        image: a picture or a folder of them.
        mask: a picture of their size or aspect ratio, white where to paint; or one of the network's size.
        jump_length: steps that a jump goes back towards noise.
        resamplings: how often each stretch of that length is gone through; 1: without jumps.
    """

    image: str | None
    mask: str | None
    jump_length: int
    resamplings: int

    def plan(self, context: SampleContext) -> Plan:
        """Raises ValueError for another sampler than ddpm, jumps that cannot be, or a picture that cannot be read."""
        sampler, schedule = context.sampler, context.schedule
        if not isinstance(sampler, Ancestral):
            raise ValueError("RePaint goes by ancestral steps: choose sampler=ddpm")
        image, mask = _given("image", self.image), _given("mask", self.mask)
        given = read_pictures(image, context.image_shape)
        white = read_mask(mask, context.image_shape[1:], picture_files(image))
        holes_at = white[None].to(context.device)
        repaint = RePaint(variance=sampler.variance, jump_length=self.jump_length, resamplings=self.resamplings)
        times = sampler.times(schedule)
        down = [times[level] for level in repaint.steps_down(len(times))]
        holes = torch.where(white, torch.tensor(GREY, dtype=torch.uint8), given)
        holes[:, 3:] = torch.where(white, torch.tensor(255, dtype=torch.uint8), given[:, 3:])  # alpha, if there is any

        def walk(denoise: Denoiser, indices: range) -> Iterator[Tensor]:
            image = _of_rows(given, context, indices)
            return repaint.paint(denoise, schedule, times, context.noise(indices), image=image, mask=holes_at)

        return Plan(len(given), context.n, down, walk, torch.stack([given, holes], dim=1))


@dataclass(frozen=True, kw_only=True)
class Interpolate:
    """Images of noise on the great circle from one seed's to the next one's: `n` with both ends (DDIM, section 5.3).

    So is the noise of each step, where the sampler adds any: the ends are what the seeds alone give.

    Args:
        seeds: at least two; their first images are the ends.
    """

    seeds: Sequence[int] | None

    def plan(self, context: SampleContext) -> Plan:
        """Raises ValueError for less than two seeds or frames, or one seed twice running."""
        seeds = _given("seeds", self.seeds)
        if len(seeds) < 2:
            raise ValueError(f"seeds must be at least two, got {list(seeds)}")
        if any(a == b for a, b in pairwise(seeds)):
            raise ValueError(f"seeds must change from one to the next, got {list(seeds)}")
        if context.n < 2:
            raise ValueError(f"n must be at least 2, the two ends, got {context.n}")
        sampler, schedule = context.sampler, context.schedule
        times = sampler.times(schedule)

        def walk(denoise: Denoiser, indices: range) -> Iterator[Tensor]:
            places = [divmod(i, context.n) for i in indices]
            of_seeds = [context.noise(range(1), seed) for seed in seeds]

            def noise() -> Tensor:
                ends = [drawn()[0] for drawn in of_seeds]
                between = [_slerp(ends[row], ends[row + 1], frame / (context.n - 1)) for row, frame in places]
                return torch.stack(between)

            return sampler.solve(denoise, schedule, times, noise(), noise)

        names = [f"seeds {a} to {b}" for a, b in pairwise(seeds)]
        first = schedule.timesteps - 1
        return Plan(len(names), context.n, times, walk, by_seed=False, row_names=names, first=first)


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Pictures taken to the noise that they come from, and back: DDIM's inversion (DDIM, section 5.4).

    Args:
        image: a picture or a folder of them.
    """

    image: str | None

    def plan(self, context: SampleContext) -> Plan:
        """Raises ValueError for another sampler than deterministic DDIM, or a picture that cannot be read."""
        sampler, schedule = context.sampler, context.schedule
        if not isinstance(sampler, DDIM) or sampler.stochastic:
            raise ValueError("what is inverted is DDIM without noise: choose sampler=ddim sampler.eta=0")
        if context.n != 1:
            raise ValueError(f"n must be 1, as nothing is drawn at random, got {context.n}")
        given = read_pictures(_given("image", self.image), context.image_shape)
        times = sampler.times(schedule)

        def walk(denoise: Denoiser, indices: range) -> Iterator[Tensor]:
            x = _of_rows(given, context, indices)
            up, back = both_ways(denoise, schedule, times, x, prediction=context.prediction)
            for x in up:  # the last one is where the way back begins
                yield x
            yield from sampler.solve(back, schedule, times, x, _no_noise)

        up = [*times[-1:], *reversed(times[1:])]  # clean data is not a t: the first step asks at its other end
        return Plan(len(given), 1, [*up, *times], walk, given[:, None], by_seed=False)


Mode = Generate | Edit | Inpaint | Interpolate | Reconstruct


def _given(name: str, value: T | None) -> T:
    if value is None:
        raise ValueError(f"{name} must be given, as {name}=...")
    return value


def _of_rows(given: Tensor, context: SampleContext, indices: range) -> Tensor:
    """For each image the picture its row is made of, in [-1, 1] on the device."""
    rows = torch.tensor([i // context.n for i in indices])
    return from_uint8(given[rows].to(context.device))


def _slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985): in between it is as long, so as likely, as noise is."""
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    of_a, of_b = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - fraction, fraction))
    return of_a * a + of_b * b  # at the ends exactly a and b


def _no_noise() -> Tensor:
    raise AssertionError("a sampler that says it is not stochastic asks for noise")
