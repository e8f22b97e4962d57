"""Train and sample denoising diffusion probabilistic models from the shell, or with these names in Python.

They are imported when they are first used: `import ddpm_cli` does not take the seconds that torch takes.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_cli.checkpoint.pretrained import load
    from ddpm_cli.diffusion.ddpm import DDPM
    from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
    from ddpm_cli.diffusion.schedule import cosine, linear
    from ddpm_cli.models.unet import UNet

__version__ = "0.1.0"

__all__ = ["DDPM", "NoiseSchedule", "UNet", "cosine", "linear", "load"]

_HOMES = {
    "DDPM": "ddpm_cli.diffusion.ddpm",
    "NoiseSchedule": "ddpm_cli.diffusion.noise_schedule",
    "UNet": "ddpm_cli.models.unet",
    "cosine": "ddpm_cli.diffusion.schedule",
    "linear": "ddpm_cli.diffusion.schedule",
    "load": "ddpm_cli.checkpoint.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
