"""DDIM inversion: the noise from which DDIM makes a given image.

For a network that predicts eps or v, DDIM is simply walked backwards: `invert`. A network that predicts x_0 has some
error e however little noise there is, so that its eps, (x_t - alpha x_0) / sigma, is off by alpha e / sigma: by 5 to 20
at the first t, where eps itself is about 1. The walk up would carry this error along, and DDIM would not return from
there. So each image starts at the t where sigma exceeds the error, `outset`; from there `invert_implicitly` leads up,
and DDIM with `held_below` leads back.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import CLEAN, NoiseSchedule, append_dims, expand_t
from ddpm_cli.diffusion.prediction import X0, Epsilon, Prediction
from ddpm_cli.diffusion.samplers import ddim_mean

# sigma / alpha where an image starts, over the network's error in it. Found by trial on digits: with 1, 1.5 and 2 the
# images come back equally well, and the noise has a standard deviation of 1 to 1.4, of 0.8 to 1.2, and of 0.75 to 1.
ABOVE_ERROR = 1.5


def both_ways(
    denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x_0: Tensor, *, prediction: Prediction
) -> tuple[Iterator[Tensor], Denoiser]:
    """x after every step from x_0 `[B, C, H, W]` up to noise, and the denoiser for DDIM on the way back.

    Args:
        times: decreasing timesteps, as DDIM visits them in either direction.
        prediction: of the network behind `denoise`.
    """
    if not isinstance(prediction, X0):
        return invert(denoise, schedule, times, x_0), denoise
    begin = outset(denoise, schedule, times, x_0)
    return invert_implicitly(denoise, schedule, times, x_0, begin), held_below(denoise, begin)


def invert(denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x_0: Tensor) -> Iterator[Tensor]:
    """DDIM at eta = 0 walked backwards, from x_0 `[B, C, H, W]` up to x at times[0]; yields x after every step.

    A step up from s to t uses the eps predicted at s, while DDIM's step down uses the eps at t: the two undo each other
    only as the steps get small (Song et al. 2021, section 4.3). Clean data is not a t that the network knows: the step
    up from there uses the eps at its upper end.

    Args:
        times: decreasing timesteps, as DDIM visits them.
    """
    x, asked_at = x_0, times[-1]
    for i, t in enumerate(reversed(times)):
        denoised = denoise(x, asked_at)
        if i == 0:
            denoised = Denoised(x_0, denoised.eps)
        x, asked_at = ddim_mean(schedule, expand_t(t, x), denoised), t
        yield x


def outset(denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x_0: Tensor) -> Tensor:
    """The t at which each image x_0 starts, `[B]`: the lowest of `times` with sigma above the network's error.

    The error is the root mean square over the pixels at the lowest noise level, where only the network causes it.
    """
    error = (denoise(x_0, times[-1]).x_0 - x_0).square().flatten(1).mean(1).sqrt()
    begin = torch.full((len(x_0),), times[0], device=x_0.device)
    for t, point in zip(times, schedule.points(times), strict=True):
        begin = torch.where(point.sigma >= ABOVE_ERROR * point.alpha * error, t, begin)
    return begin


def invert_implicitly(
    denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x_0: Tensor, begin: Tensor
) -> Iterator[Tensor]:
    """Like `invert`, but a step up uses the eps at its upper end, as DDIM's step down does.

    One fixed-point iteration finds the upper end, starting from where `invert` would be (AIDI, Pan et al. 2023;
    ReNoise, Garibi et al. 2024).

    Args:
        begin: t of each image, `[B]`, to which its first step leads; below it, x is x_0.
    """
    x, s, last = x_0, expand_t(CLEAN, x_0), CLEAN
    first_steps = set(begin.tolist())
    for t in reversed(times):
        if t >= min(first_steps):
            eps = x  # any value will do for an image that stays where it is
            if t in first_steps:
                eps = denoise(x, t).eps  # as clean data is not a t that a network knows
            if t > min(first_steps):
                eps = torch.where(append_dims(begin < t, x.ndim), denoise(x, last).eps, eps)
            at_t, moves = expand_t(t, x), begin <= t
            eps = denoise(_carried(schedule, x, s, at_t, eps), t).eps
            x = torch.where(append_dims(moves, x.ndim), _carried(schedule, x, s, at_t, eps), x)
            s, last = torch.where(moves, t, s), t
        yield x


def _carried(schedule: NoiseSchedule, x_s: Tensor, s: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t of x_s with its eps; s and t are `[B]`."""
    x_0 = Epsilon().x_0(eps, x_s, *schedule.alpha_sigma(s, x_s.shape))
    return ddim_mean(schedule, t, Denoised(x_0, eps))


def held_below(denoise: Denoiser, begin: Tensor) -> Denoiser:
    """`denoise` for a walk down: below its t in `begin`, an image keeps the prediction that was made at that t."""
    held: Denoised | None = None
    highest, lowest = int(begin.max()), int(begin.min())

    def denoised(x_t: Tensor, t: int) -> Denoised:
        nonlocal held
        if held is None or t >= highest:
            held = denoise(x_t, t)
        elif t >= lowest:
            asked, on_its_way = denoise(x_t, t), append_dims(t >= begin, x_t.ndim)
            x_0, eps = (torch.where(on_its_way, new, old) for new, old in zip(asked[:2], held[:2], strict=True))
            held = Denoised(x_0, eps)
        return held

    return denoised
