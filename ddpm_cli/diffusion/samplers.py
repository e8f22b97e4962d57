"""Samplers: whole reverse processes, as small frozen dataclasses that say which timesteps they visit.

`sampler.times(schedule)` is the list of timesteps visited; `sampler.solve(denoise, schedule, times, x, noise)` yields x
after every step along such a list, and finally the finished image. So a solver gets its times as data, and all that it
knows of the network is `denoise(x_t, t) -> Denoised`.

A step leads from t to the next visited s < t. The last step ends exactly at clean data (s = -1, alpha_bar = 1). In the
solvers lambda = log(alpha / sigma) rises by h in each step; it is infinite for clean data, and minus infinity for pure
noise, if the schedule ends in it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import CLEAN, NoiseSchedule, Point, append_dims, expand_t
from ddpm_cli.diffusion.spacing import visited
from ddpm_cli.diffusion.variance import FixedSmall, Variance

# The names in `spacing.SPACINGS` and that of `optimized_steps`, here because configurations are checked against this
# file's source.
Spacing = Literal["leading", "trailing", "linspace", "log_snr", "optimized"]
Noise = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Which timesteps are visited, and how to get from each to the next.

    Args:
        steps: how many timesteps; or a decreasing list of them; None: all T of the schedule.
        spacing: which timesteps, if fewer than T; see `spacing`. With `optimized`, `optimized_steps` chooses them for
            one model, and its list takes the place of `steps`.
    """

    steps: int | Sequence[int] | None = None
    spacing: Spacing = "linspace"

    def __post_init__(self) -> None:
        if isinstance(self.steps, int) and self.steps < 1:  # of no schedule; a run without previews has no other check
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def times(self, schedule: NoiseSchedule, first: int | None = None) -> list[int]:
        """The timesteps visited, strictly decreasing from `first`, the t of x (None: T-1).

        Raises:
            ValueError: if this schedule does not have these `steps`.
        """
        return visited(schedule, self.steps, self.spacing, first)

    @property
    def stochastic(self) -> bool:
        """Whether steps add noise; if not, the sampler never asks for any."""
        return False

    def without_noise(self) -> "Sampler":
        """The same solver without noise in its steps, which solves the probability flow; itself if it adds none.

        Raises:
            ValueError: if it adds noise and does not define this.
        """
        if self.stochastic:
            raise ValueError(f"{type(self).__name__} adds noise, and has no deterministic counterpart")
        return self

    @abstractmethod
    def solve(
        self, denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """x after every step, `[B, C, H, W]`; one for each of `times`, the last one at clean data.

        Args:
            times: decreasing timesteps.
            x: x at times[0], standard normal if that is T-1. Its dtype is kept.
            noise: returns fresh standard normal noise of x's shape, so that the result is a pure function of the
                arguments; called at most once per step.
        """


@dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
    """Ancestral sampling (DDPM, algorithm 2)."""

    variance: Variance = FixedSmall()

    @property
    def stochastic(self) -> bool:
        """Yes."""
        return True

    def without_noise(self) -> Sampler:
        """DDIM."""
        return DDIM()

    def solve(
        self, denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """As `Sampler.solve`."""
        for t, s in pairwise([*times, CLEAN]):
            denoised = denoise(x, t)
            x = ddpm_step(schedule, x, expand_t(t, x), expand_t(s, x), denoised, noise(), variance=self.variance)
            yield x


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
    """x_s drawn from N(posterior mean, variance) (DDPM eq. 7 for the mean); the mean itself if s is clean data."""
    posterior = schedule.posterior(t, s, x_t.shape)
    mean = posterior.x_0_factor * denoised.x_0 + posterior.x_t_factor * x_t
    noisy = append_dims(s >= 0, x_t.ndim)
    log_variance = variance.log_variance(schedule, t, s, denoised.x_0.shape, denoised.variance)
    return mean + noisy * (0.5 * log_variance).exp() * noise


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """DDIM (Song et al. 2021): deterministic at eta = 0, as noisy as ancestral sampling at eta = 1.

    Raises:
        ValueError: if `eta` lies outside [0, 1].
    """

    steps: int | Sequence[int] = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta:g}")

    @property
    def stochastic(self) -> bool:
        """Whether `eta` is not 0."""
        return self.eta > 0

    def without_noise(self) -> Sampler:
        """With `eta` 0."""
        return replace(self, eta=0.0)

    def solve(
        self, denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """As `Sampler.solve`."""
        for t, s in pairwise([*times, CLEAN]):
            denoised = denoise(x, t)
            if self.stochastic:
                x = ddim_step(schedule, expand_t(t, x), expand_t(s, x), denoised, noise(), eta=self.eta)
            else:
                x = ddim_mean(schedule, expand_t(s, x), denoised)
            yield x


def ddim_mean(schedule: NoiseSchedule, s: Tensor, denoised: Denoised) -> Tensor:
    """x_s by DDIM's eq. 12 without noise, above or below the t of the denoised x."""
    alpha_s, sigma_s = schedule.alpha_sigma(s, denoised.x_0.shape)
    return alpha_s * denoised.x_0 + sigma_s * denoised.eps


def ddim_step(
    schedule: NoiseSchedule, t: Tensor, s: Tensor, denoised: Denoised, noise: Tensor, *, eta: float
) -> Tensor:
    """x_s by DDIM's eq. 12; its sigma_t is eta times the posterior's standard deviation (eq. 16)."""
    shape = denoised.x_0.shape
    alpha_s, _ = schedule.alpha_sigma(s, shape)
    of_eps, of_noise = schedule.ddim_factors(t, s, eta, shape)
    return alpha_s * denoised.x_0 + of_eps * denoised.eps + of_noise * noise


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Heun's method (Karras et al. 2022, algorithm 1), of second order, on d(x / alpha) = eps d(sigma / alpha).

    That is DDIM's differential equation (Song et al. 2021, eq. 14). The network is called twice in every step but the
    last, 2 steps - 1 times in all. The last step is Euler's, which is DDIM's; so is a step from pure noise, where
    sigma / alpha is infinite.
    """

    steps: int | Sequence[int] = 25
    spacing: Spacing = "log_snr"

    def solve(
        self, denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """As `Sampler.solve`."""
        points = schedule.points([*times, CLEAN])
        for i, (t, s) in enumerate(pairwise([*times, CLEAN])):
            (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = points[i : i + 2]
            x_0, eps, _ = denoise(x, t)
            x = alpha_s * x_0 + sigma_s * eps
            if s != CLEAN and alpha_t > 0:
                eps_s = denoise(x, s).eps
                x = x + alpha_s * (sigma_s / alpha_s - sigma_t / alpha_t) * (eps_s - eps) / 2
            yield x


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): x_0 at the middle of a step is extrapolated from the last two.

    The first and the last step are of first order.
    """

    steps: int | Sequence[int] = 20
    spacing: Spacing = "trailing"

    def solve(
        self, denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """As `Sampler.solve`."""
        x_0_last, h_last = x, math.inf  # none yet: h_last is what makes the first step one of first order
        for i, (t, s) in enumerate(pairwise(schedule.points([*times, CLEAN]))):
            x_0, h = denoise(x, times[i]).x_0, s.half_log_snr - t.half_log_snr
            x = data_step(x, x_0 + _growth(h, h_last) / 2 * (x_0 - x_0_last), t, s)
            x_0_last, h_last = x_0, h
            yield x


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2MSDE(Sampler):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022): DPM-Solver++(2M) of the reverse SDE, with fresh noise in every step."""

    steps: int | Sequence[int] = 25
    spacing: Spacing = "trailing"

    @property
    def stochastic(self) -> bool:
        """Yes."""
        return True

    def without_noise(self) -> Sampler:
        """DPM-Solver++(2M)."""
        return DPMSolverPP2M()

    def solve(
        self, denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """As `Sampler.solve`."""
        x_0_last, h_last = x, math.inf  # none yet, as in DPMSolverPP2M
        for i, (t, s) in enumerate(pairwise(schedule.points([*times, CLEAN]))):
            x_0, h = denoise(x, times[i]).x_0, s.half_log_snr - t.half_log_snr
            fresh = -math.expm1(-2 * h)  # the part of x_s's variance that is fresh noise
            D = x_0 + _growth(h, h_last) / 2 * (x_0 - x_0_last)
            x = s.sigma / t.sigma * math.exp(-h) * x + s.alpha * fresh * D + s.sigma * math.sqrt(fresh) * noise()
            x_0_last, h_last = x_0, h
            yield x


@dataclass(frozen=True, kw_only=True)
class UniPC(Sampler):
    """UniPC of order 2 on x_0 with B_2(h) = e^h - 1 (Zhao et al. 2023).

    The predictor is DPM-Solver++(2M)'s step; the corrector repeats that step with the network's prediction at its end.
    So there is one call of the network per step, and x is the predictor's: it is corrected only in the next step.
    """

    steps: int | Sequence[int] = 20
    spacing: Spacing = "trailing"

    def solve(
        self, denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """As `Sampler.solve`."""
        points = schedule.points([*times, CLEAN])
        x_last, x_0_last, trend, h_last = x, x, x, math.inf  # of the step that led here; none yet, as in DPMSolverPP2M
        h_before = math.inf  # of the one before that
        for i, (t, s) in enumerate(pairwise(points)):
            x_0, h = denoise(x, times[i]).x_0, s.half_log_snr - t.half_log_snr
            if i > 0:
                backward, forward = (0.0, 0.5) if i == 1 else _unic_weights(h_last, h_before)
                x = data_step(x_last, x_0_last + backward * trend + forward * (x_0 - x_0_last), points[i - 1], t)
            x_last, x_0_last, trend = x, x_0, _growth(h, h_last) * (x_0 - x_0_last)
            h_last, h_before = h, h_last
            x = data_step(x, x_0 + trend / 2, t, s)
            yield x


def data_step(x: Tensor, x_0: Tensor, t: Point, s: Point) -> Tensor:
    """x_s if the prediction were x_0 all the way from t to s: DPM-Solver++ of first order, which is DDIM."""
    return s.sigma / t.sigma * x - s.alpha * math.expm1(t.half_log_snr - s.half_log_snr) * x_0


def _growth(h: float, h_last: float) -> float:
    """The factor by which the change of x_0 in the last step predicts its change in this one.

    It is 0, which makes a step of first order, if h or h_last is infinite: in a step to clean data, from pure noise or
    just after it, and in the first step, which has no h_last and takes it as infinite.
    """
    return h / h_last if math.isfinite(h) else 0.0


def _unic_weights(h: float, h_last: float) -> tuple[float, float]:
    """Weights of x_0's predicted and actual change in UniC-2: UniPC's two linear equations, solved by hand."""
    b = -1 / math.expm1(-h) - 1 / h  # where in the step the weight e^lambda has its mean: 1/2 + h/12 - ...
    backward = (2 * b - 1) / (h + h_last)
    return backward, b - backward
