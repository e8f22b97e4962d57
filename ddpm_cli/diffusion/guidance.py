"""Guidance: a denoiser made of a better and a worse one, which moves away from the worse one's prediction.

In classifier-free guidance (Ho & Salimans 2022) these are the network with and without labels; in autoguidance (Karras
et al. 2024) a network and one that is smaller or was trained for fewer steps.
"""

from dataclasses import dataclass

from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, expand_t
from ddpm_cli.diffusion.prediction import noise_of


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly to guide: towards the labels, or away from a guide.

    Args:
        scale: 1: no guidance, one network call per step; above 1: away from the prediction without labels, or from the
            guide; 0: the prediction without labels, or the guide's.
        interval: [lowest, highest] t at which to guide (Kynkäänniemi et al. 2024); None: at all t. Outside, there is no
            guidance.
        rescale: in [0, 1], how far to bring the contrast of x_0, its standard deviation per image, back to what it is
            without guidance (Lin et al. 2023, section 3.4, who do it to the network's output).

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
    """The prediction of `negative` moved towards and past that of `positive`: `scale` times their difference."""
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
