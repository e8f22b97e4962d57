"""What the top level of configs/sample.yaml holds."""

from dataclasses import dataclass
from typing import Literal

from ddpm_cli.config.drawing_options import DrawingOptions
from ddpm_cli.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SampleOptions(DrawingOptions):
    """The top-level keys of configs/sample.yaml; the groups are nodes as `ddpm_cli.config.schema` describes them."""

    ckpt: str
    n: int
    save: Literal["grid", "images", "npz"]
    save_trajectory: bool
    classes: list[int | str] | int | str | None  # "all", or by number or name
    mode: dict
    image: str | None
    mask: str | None
    strength: float | None
    seeds: list[int] | None

    def __post_init__(self) -> None:
        for name in ("n", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in OF_MODES:
            if getattr(self, name) is not None and name not in self.mode:
                raise ConfigError(f"{name}: has no effect with mode={option_called(self.mode)}; see --help")


OPTIONS = "ddpm_cli.config.sample_options.SampleOptions"


OF_MODES = ("image", "mask", "strength", "seeds")  # options that only some modes have


def option_called(node: dict) -> str:
    """What a group's option is called on the command line, more or less: the name of what it builds."""
    return node["_target_"].rpartition(".")[2].lower()
