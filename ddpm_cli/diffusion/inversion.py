"""DDIM inversion: the noise that DDIM makes a given image of."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.samplers import ddim_mean
from ddpm_cli.diffusion.schedule import NoiseSchedule, expand_t


def invert(denoise: Denoiser, schedule: NoiseSchedule, times: Sequence[int], x_0: Tensor) -> Iterator[Tensor]:
    """DDIM at eta = 0 walked backwards, from x_0 `[B, C, H, W]` up to x at times[0]; yields x after every step.

    A step up from s to t uses the eps that the network sees at s, where DDIM's step down uses that at t: the two undo
    each other only as the steps get small (Song et al. 2021, section 4.3). Clean data is not a t that a network knows:
    the step up from there asks at its other end.

    Args:
        times: falling timesteps, as DDIM visits them.
    """
    x, asked_at = x_0, times[-1]
    for i, t in enumerate(reversed(times)):
        denoised = denoise(x, asked_at)
        if i == 0:
            denoised = Denoised(x_0, denoised.eps)
        x, asked_at = ddim_mean(schedule, expand_t(t, x), denoised), t
        yield x
