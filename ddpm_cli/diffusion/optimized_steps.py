"""Timesteps chosen for one model: the few with which a solver ends closest to a fine solution.

Which timesteps matter depends on the data, the network and the solver (Watson et al. 2021; Xue et al. 2024; Sabour et
al. 2024, "Align Your Steps"). As in LD3 (Tong et al. 2025), we minimise the distance of the finished images from those
of a fine solution that starts from the same noise; as in Align Your Steps, we move one timestep at a time. Timesteps
stay whole numbers, at which the network was trained.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.samplers import Sampler, UniPC
from ddpm_cli.diffusion.spacing import OPTIMIZED, visited

FIXED = ("trailing", "linspace", "log_snr")  # what the search starts from; `leading` does not visit `first`
MOST_STEPS = 50  # beyond this `MOST_CALLS` is less than one sweep, and the fine solution has only twice as many steps
MOST_CALLS = 1000  # of the network, on all noises at once; 8 steps take about 500
FINE_STEPS = 100  # of the fine solution; see `solution`
SWEEPS = 2  # through all timesteps, for each length of move
MOVES_OF = 256  # the smallest move is this part of all timesteps: smaller ones fit the noises, not the model


class Optimized(NamedTuple):
    """The chosen timesteps, and how good they are."""

    times: list[int]  # decreasing
    error: float  # root mean square difference of a finished image from the fine solution's, in [-1, 1], on average
    fixed: str  # the nearest of the fixed spacings with as many steps
    fixed_error: float


def check_optimized(steps: int | Sequence[int] | None, timesteps: int) -> int:
    """How many of the schedule's `timesteps` are to be chosen. Raises ValueError if there is nothing to choose."""
    if isinstance(steps, Sequence):
        raise ValueError(f"{OPTIMIZED} chooses the timesteps, but steps lists them; steps must be their number")
    most = min(MOST_STEPS, timesteps)
    if steps is None or not 1 <= steps <= most:
        got = "all of them" if steps is None else steps
        raise ValueError(
            f"{OPTIMIZED} chooses 1 to {most} timesteps, got {got}; with more, any other spacing is as good"
        )
    return steps


@torch.no_grad()
def optimized_steps(
    sampler: Sampler, schedule: NoiseSchedule, denoise: Denoiser, x: Tensor, *, first: int | None = None
) -> Optimized:
    """The `sampler.steps` timesteps with which `sampler` ends closest to the fine solution from the same noise.

    The search starts from the best of the fixed spacings and moves each timestep but the first, by less and less, as
    long as the finished images get closer. The network is called at most `MOST_CALLS` times on x, and the result
    depends only on the arguments. A sampler that adds noise does not follow a solution: the timesteps are chosen for
    its deterministic counterpart (`Sampler.without_noise`).

        ddpm = load("RUN").ddpm
        x = torch.randn(32, 1, 16, 16)
        chosen = optimized_steps(UniPC(steps=8), ddpm.schedule, ddpm.denoiser(), x)
        images = ddpm.sample(64, 16, 1, sampler=UniPC(steps=chosen.times))

    Args:
        x: `[N, C, H, W]` at `first`, standard normal if that is T-1. N = 32 is enough; with fewer the timesteps
            overfit.
        first: the t of x, which is visited first; None: T-1.

    Raises:
        ValueError: if there is nothing to choose (`check_optimized`), or the sampler has no deterministic counterpart.
        FloatingPointError: if images are not finite.
    """
    top = schedule.timesteps - 1 if first is None else first
    steps = check_optimized(sampler.steps, top + 1)
    return _Search(sampler.without_noise(), schedule, denoise, x, top).best(steps)


def solution(schedule: NoiseSchedule, denoise: Denoiser, x: Tensor, first: int) -> Tensor:
    """Where the probability flow (Song et al. 2021) takes x from `first`: `[N, C, H, W]` at clean data, in [-1, 1].

    By UniPC in `FINE_STEPS` steps; on digits, half as many steps are only a tenth as far from it as the best 8.
    """
    times = visited(schedule, min(FINE_STEPS, first + 1), "trailing", first)
    *_, x_0 = UniPC().solve(denoise, schedule, times, x, _no_noise)
    return x_0.clamp(-1, 1)


class _Search:
    """Coordinate descent on the timesteps that a solver visits.

    Args:
        solver: adds no noise.
        x: `[N, C, H, W]` at `first`.
    """

    def __init__(self, solver: Sampler, schedule: NoiseSchedule, denoise: Denoiser, x: Tensor, first: int):
        self.solver, self.schedule, self.x, self.first = solver, schedule, x, first
        self.target = solution(schedule, denoise, x, first)
        if not torch.isfinite(self.target).all():
            raise FloatingPointError("the fine solution is not finite")
        self.asked = _Asked(denoise)
        self.times: list[int] = []  # the best so far
        self.error = math.inf

    def best(self, steps: int) -> Optimized:
        """The best list of this many timesteps that is found."""
        fixed = {name: visited(self.schedule, steps, name, self.first) for name in FIXED}
        errors = {name: self.tried(times) for name, times in fixed.items()}
        nearest = min(errors, key=lambda name: errors[name])
        if not self.times:
            raise FloatingPointError(f"images of {steps} steps are not finite")
        least = max(1, self.first // MOVES_OF)
        move = max(least, self.first // (2 * steps))
        while True:
            for _ in range(SWEEPS):
                if not self.sweep(move):
                    break
            if move == least:
                return Optimized(self.times, self.error, nearest, errors[nearest])
            move = max(least, move // 2)

    def sweep(self, move: int) -> bool:
        """Move each timestep but the first to either side, starting from the last; returns whether any move helped."""
        before = self.error
        for i in reversed(range(1, len(self.times))):
            for to in (self.times[i] + move, self.times[i] - move):
                below = self.times[i + 1] if i + 1 < len(self.times) else -1
                to = max(below + 1, min(to, self.times[i - 1] - 1))
                self.tried([*self.times[:i], to, *self.times[i + 1 :]])
        return self.error < before

    def tried(self, times: list[int]) -> float:
        """The distance of these timesteps from the fine solution; they are kept if they are the best so far."""
        if times == self.times or self.asked.calls + 2 * len(times) > MOST_CALLS:
            return self.error
        *_, x_0 = self.solver.solve(self.asked.again(), self.schedule, times, self.x, _no_noise)
        # Averaged over images, not over all pixels: one image that becomes another digit would outweigh all others.
        error = (x_0.clamp(-1, 1) - self.target).square().flatten(1).mean(1).sqrt().mean().item()
        if math.isnan(error):
            return math.inf
        if error < self.error:
            self.times, self.error = times, error
            self.asked.keep()
        return error


class _Asked:
    """A denoiser that caches its predictions along the best timesteps so far: most candidates start the same way."""

    def __init__(self, denoise: Denoiser):
        self.denoise = denoise
        self.calls = 0
        self._best: list[tuple[int, Tensor, Denoised]] = []
        self._now: list[tuple[int, Tensor, Denoised]] = []

    def again(self) -> Denoiser:
        """A denoiser for another candidate, from its start."""
        self._now = []
        return self._answer

    def keep(self) -> None:
        """Make the last candidate the best so far."""
        self._best = self._now

    def _answer(self, x: Tensor, t: int) -> Denoised:
        place = len(self._now)
        if place < len(self._best) and self._best[place][0] == t and torch.equal(self._best[place][1], x):
            answer = self._best[place][2]
        else:
            self.calls += 1
            answer = self.denoise(x, t)
        self._now.append((t, x, answer))
        return answer


def _no_noise() -> Tensor:
    raise AssertionError("a sampler that says it is not stochastic asks for noise")
