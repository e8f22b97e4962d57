"""Builds a network and its diffusion from a configuration: the one place where configurations meet the mathematics."""

from typing import TYPE_CHECKING

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.instantiate import instantiate

if TYPE_CHECKING:
    from ddpm_cli.diffusion.ddpm import DDPM

DDPM_GROUPS = ("model", "schedule", "prediction", "weighting", "variance", "loss")


def build_ddpm(config: dict) -> "DDPM":
    """The network and its diffusion that a checked configuration describes, on the CPU.

    Raises:
        ConfigError: if a value is refused, or choices that cannot work together.
    """
    from ddpm_cli.diffusion.ddpm import DDPM

    built = {group: instantiate(config[group], group) for group in DDPM_GROUPS}
    try:
        return DDPM(**built)
    except ValueError as error:  # about several groups: the message names them
        raise ConfigError(str(error)) from error
