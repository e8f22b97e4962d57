"""DDIM inversion: the noise that DDIM makes a given image of."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.samplers import Spacing, State, ddim_step
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.spacing import visited
from ddpm_cli.diffusion.times import fill


def invert(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    *,
    steps: int | Sequence[int] = 50,
    spacing: Spacing = "linspace",
) -> Iterator[State]:
    """DDIM at eta = 0 walked backwards, from x_0 `[B, C, H, W]` up to x at the first t that DDIM visits.

    A step up from s to t uses the eps that the network sees at s, where DDIM's step down uses that at t: the two undo
    each other only as the steps get small (Song et al. 2021, section 4.3). Clean data is not a t that a network knows:
    the step up from there asks at its other end.

    Raises:
        ValueError: for steps that `spacing.visited` refuses.
    """
    times = visited(schedule, steps, spacing)[::-1]
    x = x_0
    for i, t in enumerate(times):
        denoised = denoise(x, fill(x, times[max(i - 1, 0)]))
        if i == 0:
            denoised = Denoised(x_0, denoised.eps)
        # The t that a step comes from matters only to its noise, of which there is none.
        x = ddim_step(schedule, fill(x, t), fill(x, t), denoised, None)
        yield State(x, i + 1, len(times))
