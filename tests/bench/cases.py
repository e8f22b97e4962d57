"""What is trained: a configuration of ours, and the same for the peers in their own terms."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from ddpm_cli.cli.launch import register_resolvers
from ddpm_cli.config.schema import check
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.config.train_options import OPTIONS
from ddpm_cli.data.datasets import digits

FOLDER = ("data=folder", "data.path={pictures}", "data.cache_dir={cache}")
STEPS = 800_000  # of the run that is begun: what its learning rate and compile=auto go by


@dataclass(frozen=True)
class Case:
    """One configuration of ours, and how much of it a turn of the clock is.

    `overrides` are those of ddpm-train; `{pictures}` and `{cache}` in them become directories.
    """

    name: str
    overrides: tuple[str, ...]
    pixels: Callable[[], np.ndarray]  # uint8 [N, C, H, W]: what everybody trains on
    batch_sizes: dict[str, int]  # by device
    turns: dict[str, int]  # training steps of one turn, by device
    sampled: dict[str, int]  # images sampled at a time, by device


def _pictures(count: int, side: int) -> np.ndarray:
    """Smooth colours: they decode and compress as photographs do, which noise does not."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pictures = [Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC) for grid in coarse]
    return np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)


CASES = {
    case.name: case
    for case in (
        Case(
            name="digits",
            overrides=("data=digits",),
            pixels=lambda: digits(image_size=16).pixels,
            batch_sizes={"cpu": 64, "cuda": 64},
            turns={"cpu": 4, "cuda": 50},
            sampled={"cpu": 64, "cuda": 500},
        ),
        Case(
            # CIFAR-10's archive need not be there: only the sizes of its images count.
            name="cifar10",
            overrides=(*FOLDER, "data.image_size=32", "model=unet_32"),
            pixels=functools.partial(_pictures, 2048, 32),
            batch_sizes={"cpu": 4, "cuda": 128},
            turns={"cpu": 2, "cuda": 20},
            sampled={"cpu": 4, "cuda": 500},
        ),
        Case(
            name="folder_64",
            overrides=("experiment=folder_64", *FOLDER[1:]),
            pixels=functools.partial(_pictures, 1024, 96),
            batch_sizes={"cpu": 2, "cuda": 64},
            turns={"cpu": 1, "cuda": 10},
            sampled={"cpu": 2, "cuda": 128},
        ),
        Case(
            name="tiny",  # for the test of this script
            overrides=(
                *("data=digits", "schedule.timesteps=20", "sampler.steps=3"),
                *("model.base_channels=8", "model.channel_mults=[1,2]", "model.norm_groups=4"),
            ),
            pixels=lambda: digits(image_size=16).pixels[:128],
            batch_sizes={"cpu": 16, "cuda": 16},
            turns={"cpu": 1, "cuda": 1},
            sampled={"cpu": 2, "cuda": 2},
        ),
    )
}
SHOWN = [name for name in CASES if name != "tiny"]
# Ways to run our network, by the value of trainer.compile; the first is what runs by default on that device.
WAYS = {"cpu": ("false",), "cuda": ("true", "false", "graphs")}


@dataclass(frozen=True)
class Place:
    """A case on a device, with its pictures on disk."""

    case: Case
    device: str  # "cpu" or "cuda"
    precision: str  # in which everybody can be compared: "fp32" or "bf16"
    directory: Path
    ways: tuple[str, ...] = ()  # of WAYS, those that were asked for; all where none was

    @property
    def compiled(self) -> tuple[str, ...]:
        """What trainer.compile is set to, one after the other; the others are compared with the first."""
        return self.ways or WAYS[self.device]

    @property
    def batch_size(self) -> int:
        return self.case.batch_sizes[self.device]

    @property
    def pictures(self) -> Path:
        return self.directory / "pictures"

    @functools.cached_property
    def config(self) -> dict:
        return self.compose()

    def overrides(self, *more: str) -> list[str]:
        """What ddpm-train would be told."""
        places = {"pictures": self.pictures, "cache": self.directory / "cache"}
        told = [override.format(**places) for override in self.case.overrides]
        return [*told, f"trainer.batch_size={self.batch_size}", f"trainer.device={self.device}", *more]

    def compose(self, *more: str) -> dict:
        """A configuration of ours, composed and checked as ddpm-train does it."""
        register_resolvers()
        with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
            composed = hydra.compose("train", self.overrides(f"trainer.steps={STEPS}", *more))
        config = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(config, dict)
        check(config, OPTIONS)
        return config

    def write_pictures(self) -> None:
        """What everybody trains on, as PNG: the peers read files."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(self.case.pixels()):
            shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(shown).save(self.pictures / f"{i:05}.png")
