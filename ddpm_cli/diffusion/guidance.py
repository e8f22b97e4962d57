"""Classifier-free guidance (Ho & Salimans 2022): a denoiser made of one with labels and one without."""

from dataclasses import dataclass

from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.prediction import noise_of
from ddpm_cli.diffusion.schedule import NoiseSchedule, expand_t


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly the labels count.

    Args:
        scale: 1: as the network was trained, one network call per step; more: away from what it does without labels;
            0: without labels.
        interval: [lowest, highest] t in which to guide (Kynkäänniemi et al. 2024); None: everywhere. Outside, the
            labels count as trained.
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


def guided(conditional: Denoiser, unconditional: Denoiser, schedule: NoiseSchedule, guidance: Guidance) -> Denoiser:
    """x_0 and eps moved from what `unconditional` sees through what `conditional` sees, `scale` times as far."""
    if guidance.scale == 1:
        return conditional

    def denoise(x_t: Tensor, t: int) -> Denoised:
        if not guidance.guides(t):
            return conditional(x_t, t)
        without = unconditional(x_t, t)
        if guidance.scale == 0:
            return without
        with_labels = conditional(x_t, t)
        x_0 = without.x_0 + guidance.scale * (with_labels.x_0 - without.x_0)
        eps = without.eps + guidance.scale * (with_labels.eps - without.eps)
        if guidance.rescale > 0:
            contrast = _contrast(with_labels.x_0) / _contrast(x_0)
            x_0 = x_0 * (guidance.rescale * contrast + 1 - guidance.rescale)
            eps = noise_of(x_0, x_t, *schedule.alpha_sigma(expand_t(t, x_t), x_t.shape))
        return Denoised(x_0, eps, with_labels.variance)

    return denoise


def _contrast(x_0: Tensor) -> Tensor:
    return x_0.std(dim=tuple(range(1, x_0.ndim)), keepdim=True).clamp(min=1e-6)  # a blank image stays one
