"""The resolvers that our YAML files call as `${name:...}`."""

import functools
import os
import textwrap
from collections.abc import Iterable

from omegaconf import OmegaConf

from ddpm_cli.config.comments import read_comments
from ddpm_cli.config.shipped import configs_directory, groups, options
from ddpm_cli.config.signatures import class_variable
from ddpm_cli.config.unet_levels import attention_resolutions, channel_mults

HELP_COLUMNS = 120


def register_resolvers() -> None:
    """Register them with OmegaConf; may be called again."""
    resolvers = {
        "groups": help_on_groups,
        "values": help_on_values,
        "learned": _learned,
        "rescaled": _rescaled,
        "channels": _channels,
        # As nodes: OmegaConf puts no plain list in the place of a reference.
        "channel_mults": lambda *given: OmegaConf.create(channel_mults(*given)),
        "attention_resolutions": lambda *given: OmegaConf.create(attention_resolutions(*given)),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    OmegaConf.register_new_resolver("expanduser", lambda path: os.path.expanduser(str(path)), replace=True)
    OmegaConf.register_new_resolver("prefix", lambda name: "" if name is None else f"{name}_", replace=True)
    # Hydra composes every run of a sweep with what the sweep itself has resolved and cached, by how it is written.
    OmegaConf.register_new_resolver("once", str, replace=True, use_cache=True)


def _learned(variance: object) -> bool:
    """Whether a network needs output channels for a variance, whose class is not imported here."""
    return isinstance(variance, str) and class_variable(variance, "learned") is True


def _rescaled(timesteps: object) -> float:
    """The factor of t with which it goes up to 1000; 1 for an invalid number of timesteps, which is refused later."""
    return 1000 / timesteps if isinstance(timesteps, int) and timesteps > 0 else 1.0


def _channels(background: object) -> int:
    """The number of channels of colour images: four if transparency is kept."""
    return 4 if background == "keep" else 3


@functools.cache  # every command composes its configuration, and with it the help text, twice
def help_on_groups(config_name: str) -> str:
    """For a help text, the groups of a command: the default, the meaning and the options of each."""
    there_are = options(configs_directory())
    return _table(
        (f"{group.key}={group.value}", ": ".join(filter(None, [group.meaning, ", ".join(there_are[group.key])])))
        for group in read_comments(configs_directory() / f"{config_name}.yaml").defaults
        if group.key in there_are
    )


@functools.cache
def help_on_values(config_name: str) -> str:
    """For a help text, the values of a command outside its groups."""
    chosen = groups(config_name)
    return _table(
        (f"{option.key}={option.value}".replace("???", "..."), option.meaning)
        for option in read_comments(configs_directory() / f"{config_name}.yaml").options
        if option.key not in chosen
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns, the second one wrapped."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows) + 6
    described = [
        textwrap.fill(
            meaning,
            HELP_COLUMNS,
            initial_indent=f"  {name}".ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for name, meaning in rows
    ]
    return "\n".join(described).replace("$", "$$")  # Hydra puts values of its own in the place of $NAME
