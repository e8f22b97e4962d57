"""Samplers: whole reverse processes as generators over a denoiser.

A sampler is called as `sampler(denoise, schedule, x, noise, first)` and yields a `State` after every step:

- `denoise(x_t, t) -> Denoised` is the only thing it knows of a network; t is `[B]` int64.
- `x` is x_first, `[B, C, H, W]`; standard normal where first is T-1. Its dtype is kept.
- `noise()` returns fresh standard normal noise of x's shape, so that the result is a pure function of its arguments.
  It is called at most once per step, and never by a deterministic sampler.

A step leads from t to the next visited s < t. The last one goes to clean data (s = -1, alpha_bar = 1) exactly. In the
solvers lambda = log(alpha / sigma) rises from step to step, by h; it is infinite for clean data, and minus infinity for
pure noise, where a schedule ends in that.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.schedule import NoiseSchedule, Point
from ddpm_cli.diffusion.spacing import visited
from ddpm_cli.diffusion.times import fill
from ddpm_cli.diffusion.variance import Variance


class State(NamedTuple):
    """A reverse process after `step` of `steps` steps; after the last one `x` is the finished image."""

    x: Tensor
    step: int
    steps: int


# The names in `spacing.SPACINGS`, here because configurations are checked against this file's source.
Spacing = Literal["leading", "trailing", "linspace", "log_snr"]
Noise = Callable[[], Tensor]


class Sampler(Protocol):
    """What this module's samplers are once their options are bound."""

    def __call__(
        self, denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, noise: Noise, first: int | None = None
    ) -> Iterator[State]: ...


def ddpm(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    first: int | None = None,
    *,
    steps: int | Sequence[int] | None = None,
    spacing: Spacing = "linspace",
    variance: Variance,
) -> Iterator[State]:
    """Ancestral sampling (DDPM, algorithm 2) over all T steps, over `steps` of them, or over exactly those listed."""
    times = visited(schedule, steps, spacing, first)
    for i, (t, s) in enumerate(pairwise([*times, -1])):
        t, s = fill(x, t), fill(x, s)
        x = ddpm_step(schedule, x, t, s, denoise(x, t), noise(), variance=variance)
        yield State(x, i + 1, len(times))


def ddpm_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    denoised: Denoised,
    noise: Tensor,
    *,
    variance: Variance,
) -> Tensor:
    """x_s drawn from N(posterior mean, variance) (DDPM eq. 7 for the mean); no noise where s is clean data."""
    posterior = schedule.posterior(t, s, x_t.shape)
    mean = posterior.x_0_factor * denoised.x_0 + posterior.x_t_factor * x_t
    noisy = (s >= 0).view(-1, *[1] * (x_t.ndim - 1))
    return mean + noisy * (0.5 * variance(schedule, t, s, denoised)).exp() * noise


def ddim(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    first: int | None = None,
    *,
    steps: int | Sequence[int] = 50,
    spacing: Spacing = "linspace",
    eta: float = 0.0,
) -> Iterator[State]:
    """DDIM (Song et al. 2021): deterministic at eta = 0, as noisy as ancestral sampling at eta = 1."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta:g}")
    times = visited(schedule, steps, spacing, first)
    for i, (t, s) in enumerate(pairwise([*times, -1])):
        t, s = fill(x, t), fill(x, s)
        x = ddim_step(schedule, t, s, denoise(x, t), noise() if eta > 0 else None, eta=eta)
        yield State(x, i + 1, len(times))


def ddim_step(
    schedule: NoiseSchedule, t: Tensor, s: Tensor, denoised: Denoised, noise: Tensor | None, *, eta: float = 0.0
) -> Tensor:
    """x_s by DDIM's eq. 12; its sigma_t is eta times the posterior's standard deviation (eq. 16)."""
    shape = denoised.x_0.shape
    alpha_s, sigma_s = schedule.alpha_sigma(s, shape)
    if noise is None:
        return alpha_s * denoised.x_0 + sigma_s * denoised.eps
    of_eps, of_noise = schedule.ddim_factors(t, s, eta, shape)
    return alpha_s * denoised.x_0 + of_eps * denoised.eps + of_noise * noise


def heun(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    first: int | None = None,
    *,
    steps: int | Sequence[int] = 25,
    spacing: Spacing = "log_snr",
) -> Iterator[State]:
    """Heun's method (Karras et al. 2022, algorithm 1), of second order, on d(x / alpha) = eps d(sigma / alpha).

    That is DDIM's differential equation (Song et al. 2021, eq. 14). The network is called twice in every step but the
    last, 2 steps - 1 times in all. The last step, and one from pure noise, where sigma / alpha is infinite, are
    Euler's, which is DDIM's.
    """
    times = visited(schedule, steps, spacing, first)
    points = schedule.points([*times, -1])
    for i, (t, s) in enumerate(pairwise([*times, -1])):
        (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = points[i : i + 2]
        x_0, eps, _ = denoise(x, fill(x, t))
        x = alpha_s * x_0 + sigma_s * eps
        if s >= 0 and alpha_t > 0:
            eps_s = denoise(x, fill(x, s)).eps
            x = x + alpha_s * (sigma_s / alpha_s - sigma_t / alpha_t) * (eps_s - eps) / 2
        yield State(x, i + 1, len(times))


def dpmpp_2m(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    first: int | None = None,
    *,
    steps: int | Sequence[int] = 20,
    spacing: Spacing = "trailing",
) -> Iterator[State]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): x_0 at the middle of a step is extrapolated from the last two.

    The first and the last step are of first order.
    """
    times = visited(schedule, steps, spacing, first)
    x_0_last, h_last = x, math.inf  # none yet: h_last is what makes the first step one of first order
    for i, (t, s) in enumerate(pairwise(schedule.points([*times, -1]))):
        x_0, h = denoise(x, fill(x, times[i])).x_0, s.half_log_snr - t.half_log_snr
        x = data_step(x, x_0 + _growth(h, h_last) / 2 * (x_0 - x_0_last), t, s)
        x_0_last, h_last = x_0, h
        yield State(x, i + 1, len(times))


def dpmpp_2m_sde(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    first: int | None = None,
    *,
    steps: int | Sequence[int] = 25,
    spacing: Spacing = "trailing",
) -> Iterator[State]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022): DPM-Solver++(2M) of the reverse SDE, with fresh noise in every step."""
    times = visited(schedule, steps, spacing, first)
    x_0_last, h_last = x, math.inf  # none yet: h_last is what makes the first step one of first order
    for i, (t, s) in enumerate(pairwise(schedule.points([*times, -1]))):
        x_0, h = denoise(x, fill(x, times[i])).x_0, s.half_log_snr - t.half_log_snr
        fresh = -math.expm1(-2 * h)  # the part of x_s's variance that is drawn anew
        D = x_0 + _growth(h, h_last) / 2 * (x_0 - x_0_last)
        x = s.sigma / t.sigma * math.exp(-h) * x + s.alpha * fresh * D + s.sigma * math.sqrt(fresh) * noise()
        x_0_last, h_last = x_0, h
        yield State(x, i + 1, len(times))


def unipc(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    first: int | None = None,
    *,
    steps: int | Sequence[int] = 20,
    spacing: Spacing = "trailing",
) -> Iterator[State]:
    """UniPC of order 2 on x_0 with B_2(h) = e^h - 1 (Zhao et al. 2023).

    The predictor is DPM-Solver++(2M)'s step; the corrector repeats that step once the network has seen where it led. So
    there is one call of the network per step, and a state is what was predicted: it is corrected only in the next step.
    """
    times = visited(schedule, steps, spacing, first)
    points = schedule.points([*times, -1])
    x_last, x_0_last, trend, h_last = x, x, x, math.inf  # of the step that led here; none yet, as in dpmpp_2m
    h_before = math.inf  # of the one before that
    for i, (t, s) in enumerate(pairwise(points)):
        x_0, h = denoise(x, fill(x, times[i])).x_0, s.half_log_snr - t.half_log_snr
        if i > 0:
            backward, forward = (0.0, 0.5) if i == 1 else _unic_weights(h_last, h_before)
            x = data_step(x_last, x_0_last + backward * trend + forward * (x_0 - x_0_last), points[i - 1], t)
        x_last, x_0_last, trend = x, x_0, _growth(h, h_last) * (x_0 - x_0_last)
        h_last, h_before = h, h_last
        x = data_step(x, x_0 + trend / 2, t, s)
        yield State(x, i + 1, len(times))


def data_step(x: Tensor, x_0: Tensor, t: Point, s: Point) -> Tensor:
    """x_s if the network answered x_0 all the way from t to s: DPM-Solver++ of first order, which is DDIM."""
    return s.sigma / t.sigma * x - s.alpha * math.expm1(t.half_log_snr - s.half_log_snr) * x_0


def _growth(h: float, h_last: float) -> float:
    """What a change of x_0 in the last step is multiplied by to foretell its change in this one.

    0, which leaves a step of first order, if either is infinite: to clean data, from or just after pure noise, and in
    the first step, which has h_last = infinity for want of one.
    """
    return h / h_last if math.isfinite(h) else 0.0


def _unic_weights(h: float, h_last: float) -> tuple[float, float]:
    """Weights of x_0's change in UniC-2, foretold and found: UniPC's two linear equations, solved by hand."""
    b = -1 / math.expm1(-h) - 1 / h  # where in the step the weight e^lambda has its mean: 1/2 + h/12 - ...
    backward = (2 * b - 1) / (h + h_last)
    return backward, b - backward


def check_options(sampler: Sampler, schedule: NoiseSchedule, first: int | None = None) -> None:
    """Raise now what `sampler` would raise for its options at its first step from `first`, without a network.

    Raises:
        ValueError: if an option cannot be.
    """
    try:
        next(_on_one_pixel(sampler, schedule, lambda: _pixel(schedule), first))
    except TypeError as error:
        raise ValueError(f"cannot be called with these options: {error}") from error


def is_deterministic(sampler: Sampler, schedule: NoiseSchedule) -> bool:
    """Whether `sampler` asks for no noise but the x it starts from."""
    calls = 0

    def noise() -> Tensor:
        nonlocal calls
        calls += 1
        return _pixel(schedule)

    return all(calls == 0 for _ in _on_one_pixel(sampler, schedule, noise))


def _on_one_pixel(sampler: Sampler, schedule: NoiseSchedule, noise: Noise, first: int | None = None) -> Iterator[State]:
    return sampler(lambda x_t, _: Denoised(x_t, x_t, variance=x_t), schedule, _pixel(schedule), noise, first)


def _pixel(schedule: NoiseSchedule) -> Tensor:
    return torch.zeros(1, 1, 1, 1, device=schedule.device)
