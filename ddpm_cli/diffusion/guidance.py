"""Guidance: a denoiser made of a better and a worse one, further away from what the worse one sees.

Classifier-free guidance (Ho & Salimans 2022) has the network with labels and without; autoguidance (Karras et al. 2024)
a network and one that is smaller or was trained for less long.
"""

from dataclasses import dataclass

from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, expand_t
from ddpm_cli.diffusion.prediction import noise_of


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly the labels count, or what the network knows and its guide does not.

    Args:
        scale: 1: as the network was trained, one network call per step; more: away from what it does without labels,
            or from the guide; 0: without labels, or as the guide.
        interval: [lowest, highest] t in which to guide (Kynkäänniemi et al. 2024); None: everywhere. Outside, all is
            as trained.
        rescale: in [0, 1], how far to bring the contrast of x_0, its standard deviation per image, back to what it is
            without guidance (Lin et al. 2023, section 3.4, there on the network's output).

    Raises:
        ValueError: if a value is out of its range.
    """

    scale: float = 1.0
    interval: tuple[int, int] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"scale must not be negative, got {self.scale:g}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval must be [lowest t, highest t], got {list(self.interval)}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {self.rescale:g}")
        if self.scale == 1 and (self.interval is not None or self.rescale > 0):
            raise ValueError("interval and rescale have no effect with scale 1: there is no guidance")

    def guides(self, t: int) -> bool:
        """Whether to guide at t."""
        return self.interval is None or self.interval[0] <= t <= self.interval[1]


UNGUIDED = Guidance()


def guided(positive: Denoiser, negative: Denoiser, schedule: NoiseSchedule, guidance: Guidance) -> Denoiser:
    """x_0 and eps moved from what `negative` sees through what `positive` sees, `scale` times as far."""
    if guidance.scale == 1:
        return positive

    def denoise(x_t: Tensor, t: int) -> Denoised:
        if not guidance.guides(t):
            return positive(x_t, t)
        worse = negative(x_t, t)
        if guidance.scale == 0:
            return worse
        better = positive(x_t, t)
        x_0 = worse.x_0 + guidance.scale * (better.x_0 - worse.x_0)
        eps = worse.eps + guidance.scale * (better.eps - worse.eps)
        if guidance.rescale > 0:
            contrast = _contrast(better.x_0) / _contrast(x_0)
            x_0 = x_0 * (guidance.rescale * contrast + 1 - guidance.rescale)
            eps = noise_of(x_0, x_t, *schedule.alpha_sigma(expand_t(t, x_t), x_t.shape))
        return Denoised(x_0, eps, better.variance)

    return denoise


def _contrast(x_0: Tensor) -> Tensor:
    return x_0.std(dim=tuple(range(1, x_0.ndim)), keepdim=True).clamp(min=1e-6)  # a blank image stays one
