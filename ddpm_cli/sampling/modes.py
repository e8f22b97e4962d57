"""What `ddpm-sample` can draw: new images, given ones changed, what lies between two seeds, and inversions.

A mode lays its pictures out in rows: one for each class, given picture or pair of seeds. Image i of all lies in row
i // per_row, and is the same whichever images are drawn in one batch with it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ddpm_cli.data.decode import decode
from ddpm_cli.data.scan import find_images
from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.inversion import invert
from ddpm_cli.diffusion.repaint import repaint
from ddpm_cli.diffusion.samplers import Sampler, State
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.times import fill
from ddpm_cli.io.images import from_uint8
from ddpm_cli.runtime.seeds import ImageNoise

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

    def noise(self, indices: range, seed: int | None = None) -> ImageNoise:
        return ImageNoise(self.seed if seed is None else seed, indices, self.image_shape, self.device)


class Plan(NamedTuple):
    """What a mode is about to draw: `rows` times `per_row` images."""

    rows: int
    per_row: int
    shown: Tensor | None  # uint8 [rows, k, C, H, W]: what stands before each row's images in the picture; None: nothing
    states: Callable[[Denoiser, range], Iterator[State]]  # images of these indices on their way
    by_seed: bool = True  # whether the setting's seed decides what is drawn

    @property
    def images(self) -> int:
        """How many in all."""
        return self.rows * self.per_row

    @property
    def columns(self) -> int | None:
        """Of the picture; None: as square as possible."""
        if self.rows == 1 and self.shown is None:
            return None
        return self.per_row + (0 if self.shown is None else self.shown.shape[1])

    def steps(self) -> int:
        """How many states an image goes through; asks no network."""
        return next(self.states(lambda x_t, _: Denoised(x_t, x_t, x_t), range(1))).steps


@dataclass(frozen=True, kw_only=True)
class Generate:
    """New images from noise; with classes a row of each."""

    def plan(self, setting: SampleContext) -> Plan:
        def states(denoise: Denoiser, indices: range) -> Iterator[State]:
            noise = setting.noise(indices)
            return setting.sampler(denoise, setting.schedule, noise(), noise)

        return Plan(max(1, setting.classes), setting.n, None, states)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Pictures brought to a noise level and back: SDEdit (Meng et al. 2022), `n` of each.

    Args:
        image: a picture or a folder of them.
        strength: in (0, 1], how far towards noise: 1 leaves nothing of the picture.
    """

    image: str | None
    strength: float | None

    def plan(self, setting: SampleContext) -> Plan:
        """Raises ValueError for a strength out of its range, or a picture that cannot be read."""
        strength = _given("strength", self.strength)
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {strength:g}")
        given = _read(_given("image", self.image), setting)
        first = max(0, round(strength * setting.schedule.timesteps) - 1)
        try:
            samplers.check_options(setting.sampler, setting.schedule, first)
        except ValueError as error:
            raise ValueError(f"strength {strength:g} begins at t = {first}: {error}") from error

        def states(denoise: Denoiser, indices: range) -> Iterator[State]:
            noise = setting.noise(indices)
            x_0 = _rows(given, setting, indices)
            alpha, sigma = setting.schedule.alpha_sigma(fill(x_0, first), x_0.shape)
            return setting.sampler(denoise, setting.schedule, alpha * x_0 + sigma * noise(), noise, first)

        return Plan(len(given), setting.n, given[:, None], states)


@dataclass(frozen=True, kw_only=True)
class Inpaint:
    """Parts of pictures painted anew to fit the rest: RePaint (Lugmayr et al. 2022), `n` of each.

    Args:
        image: a picture or a folder of them.
        mask: a picture, white where to paint.
        jump_length: steps that a jump goes back towards noise.
        jumps: how often it does so from each such stretch; 0: never.
    """

    image: str | None
    mask: str | None
    jump_length: int
    jumps: int

    def plan(self, setting: SampleContext) -> Plan:
        """Raises ValueError for another sampler than ddpm, jumps that cannot be, or a picture that cannot be read."""
        options = getattr(setting.sampler, "keywords", {})
        if getattr(setting.sampler, "func", None) is not samplers.ddpm:
            raise ValueError("RePaint goes by ancestral steps: choose sampler=ddpm")
        given = _read(_given("image", self.image), setting)
        mask_file = _given("mask", self.mask)
        _, height, width = setting.image_shape
        white = _decoded(Path(mask_file).expanduser(), (1, height, width)) >= 128  # [1, H, W]
        if not white.any() or white.all():
            where = "nowhere" if not white.any() else "everywhere"
            raise ValueError(f"{mask_file} is white {where}: white is where to paint, black what to keep")
        mask = white[None].float().to(setting.device)
        paint = partial(repaint, mask=mask, jump_length=self.jump_length, jumps=self.jumps, **options)
        pixel = torch.zeros(1, 1, 1, 1, device=setting.device)
        trial = partial(paint, mask=torch.ones_like(pixel), image=pixel)
        next(trial(lambda x_t, _: Denoised(x_t, x_t, x_t), setting.schedule, pixel, lambda: pixel))
        holes = torch.where(white, torch.tensor(GREY, dtype=torch.uint8), given)

        def states(denoise: Denoiser, indices: range) -> Iterator[State]:
            noise = setting.noise(indices)
            return paint(denoise, setting.schedule, noise(), noise, image=_rows(given, setting, indices))

        return Plan(len(given), setting.n, torch.stack([given, holes], dim=1), states)


@dataclass(frozen=True, kw_only=True)
class Interpolate:
    """Images of noise on the great circle from one seed's to the next one's: `n` with both ends (DDIM, section 5.3).

    Args:
        seeds: at least two; their first images are the ends.
    """

    seeds: Sequence[int] | None

    def plan(self, setting: SampleContext) -> Plan:
        """Raises ValueError for less than two seeds or frames, one seed twice running, or a sampler that adds noise."""
        seeds = _given("seeds", self.seeds)
        if len(seeds) < 2:
            raise ValueError(f"seeds must be at least two, got {list(seeds)}")
        if any(a == b for a, b in pairwise(seeds)):
            raise ValueError(f"seeds must change from one to the next, got {list(seeds)}")
        if setting.n < 2:
            raise ValueError(f"n must be at least 2, the two ends, got {setting.n}")
        _check_deterministic(setting, "interpolation")
        ends = torch.cat([setting.noise(range(1), seed)() for seed in seeds])

        def states(denoise: Denoiser, indices: range) -> Iterator[State]:
            places = [divmod(i, setting.n) for i in indices]
            x = [_slerp(ends[row], ends[row + 1], frame / (setting.n - 1)) for row, frame in places]
            return setting.sampler(denoise, setting.schedule, torch.stack(x), _no_noise)

        return Plan(len(seeds) - 1, setting.n, None, states, by_seed=False)


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Pictures taken to the noise that they come from, and back: DDIM's inversion (DDIM, section 5.4).

    Args:
        image: a picture or a folder of them.
    """

    image: str | None

    def plan(self, setting: SampleContext) -> Plan:
        """Raises ValueError for another sampler than deterministic DDIM, or a picture that cannot be read."""
        options = dict(getattr(setting.sampler, "keywords", {}))
        if getattr(setting.sampler, "func", None) is not samplers.ddim or options.pop("eta", 0.0) != 0:
            raise ValueError("what is inverted is DDIM without noise: choose sampler=ddim sampler.eta=0")
        if setting.n != 1:
            raise ValueError(f"n must be 1, as nothing is drawn at random, got {setting.n}")
        given = _read(_given("image", self.image), setting)

        def states(denoise: Denoiser, indices: range) -> Iterator[State]:
            x = _rows(given, setting, indices)
            for state in invert(denoise, setting.schedule, x, **options):
                x = state.x
                yield State(x, state.step, 2 * state.steps)
            for state in setting.sampler(denoise, setting.schedule, x, _no_noise):
                yield State(state.x, state.steps + state.step, 2 * state.steps)

        return Plan(len(given), 1, given[:, None], states, by_seed=False)


Mode = Generate | Edit | Inpaint | Interpolate | Reconstruct


def _given(name: str, value: T | None) -> T:
    if value is None:
        raise ValueError(f"{name} must be given, as {name}=...")
    return value


def _read(path: str, setting: SampleContext) -> Tensor:
    """The picture at `path`, or those in that folder, as the network's images: uint8 `[K, C, H, W]`."""
    place = Path(path).expanduser()
    names = [place]
    if place.is_dir():
        found, bad = find_images(os.fspath(place))
        if bad:
            raise ValueError(bad[0].line(os.fspath(place)))
        names = [place / file.name for file in found]
        if not names:
            raise ValueError(f"there are no pictures in {place}")
    return torch.stack([_decoded(name, setting.image_shape) for name in names])


def _decoded(file: Path, shape: tuple[int, int, int]) -> Tensor:
    """A picture as uint8 of `shape` (C, H, W). Raises ValueError, which names the file, if it cannot be decoded."""
    channels, height, width = shape
    try:
        return torch.from_numpy(decode(file, (height, width), channels).copy())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _rows(given: Tensor, setting: SampleContext, indices: range) -> Tensor:
    """For each image the picture its row is made of, in [-1, 1] on the device."""
    rows = torch.tensor([i // setting.n for i in indices])
    return from_uint8(given[rows].to(setting.device))


def _slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985): in between it is as long, so as likely, as noise is."""
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    of_a, of_b = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - fraction, fraction))
    return of_a * a + of_b * b  # at the ends exactly a and b


def _check_deterministic(setting: SampleContext, what: str) -> None:
    if not samplers.is_deterministic(setting.sampler, setting.schedule):
        raise ValueError(f"{what} takes a sampler without noise of its own: choose sampler=ddim or another solver")


def _no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler asks for no noise")
