"""Autoguidance (Karras et al. 2024): guidance away from the prediction of a worse model of the same images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ddpm_cli.config.errors import naming
from ddpm_cli.diffusion.guidance import Guidance

if TYPE_CHECKING:
    from ddpm_cli.checkpoint.pretrained import Pretrained
    from ddpm_cli.diffusion.ddpm import DDPM
    from ddpm_cli.runtime.device import Compute


@dataclass(frozen=True, kw_only=True)
class Autoguidance:
    """The guide, and how strongly to guide away from it.

    Args:
        guide: given like `ckpt=`: an earlier checkpoint of the run, or a run of a smaller network on the same images.
        weights: of the guide, like `weights=` of the command.
        scale, interval, rescale: as of `Guidance`, with the guide instead of the network without labels.

    Raises:
        ValueError: if a value is out of its range.
    """

    guide: str
    weights: str = "ema"
    scale: float = 2.0
    interval: tuple[int, int] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.scale == 1:
            raise ValueError("scale 1 leaves the guide without effect; use a scale above 1")
        assert self.guidance  # which checks the rest

    @property
    def guidance(self) -> Guidance:
        """How the difference from the guide is used."""
        return Guidance(scale=self.scale, interval=self.interval, rescale=self.rescale)


class Guide(NamedTuple):
    """A guide that has been loaded."""

    ddpm: "DDPM"
    said: str  # which checkpoint it is of


def read_guide(options: Autoguidance, pretrained: "Pretrained", compute: "Compute", *, trust: list[str]) -> Guide:
    """Load the verified guide onto the device; every process loads it itself.

    Raises:
        ConfigError: if there is none, or it cannot guide this model; the message says what differs.
    """
    from ddpm_cli.checkpoint.pretrained import rebuild, select

    with naming("guidance.guide"):
        selection = select(options.guide, weights=options.weights, trust=trust, key="guidance.weights")
        guide = rebuild(selection, trust=trust)
        if guide.image_shape != pretrained.image_shape:
            ours, theirs = (list(model.image_shape) for model in (pretrained, guide))
            raise ValueError(f"its images are {theirs}, ckpt's are {ours}")
        pretrained.ddpm.check_guide(guide.ddpm)
    compute.place(guide.ddpm)
    return Guide(guide.ddpm, f"step {guide.step:,} of {selection.checkpoint.path}")
