"""What Hydra and OmegaConf raise, said in one message that a person can act on."""

import argparse
import re
import sys
from pathlib import Path

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.config import ConfigError, check, configs_directory, nearest


def explain(error: BaseException, config_name: str, target: str) -> str:
    """The message for `error`, raised while composing `config_name` for `target`; our own errors say it themselves."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': {text.splitlines()[0]}; an override is KEY=VALUE, quoted where needed"
    unknown = re.match(r"Could not (?:override|delete from config\.) '?([^'\s]+?)'?\.?\s", text + "\n")
    if isinstance(error, HydraException) and unknown is not None:
        return _unknown_key(unknown[1], config_name, target) or text.splitlines()[0]
    option = re.search(r"Could not find '([^']+)/([^'/]*)'\s+Available options in '[^']*':\n((?:\t.*\n?)*)", text)
    if option is not None:
        return _unknown_option(option[1], option[2], option[3].split())
    if text.startswith("Config group override must be"):
        for override in OverridesParser.create().parse_overrides(_overrides()):
            options = _options(override.key_or_group)
            if options and not isinstance(override.value(), str | list):
                return _unknown_option(override.key_or_group, override.get_value_element_as_str(), options)
    if isinstance(error, yaml.YAMLError):
        return f"a configuration file is no valid YAML: {' '.join(text.split())}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return text.splitlines()[0]
    return text


def _unknown_option(group: str, option: str, available: list[str]) -> str:
    return f"{group}={option}: no such option{nearest(option, available)}; there are {', '.join(available)}"


def _unknown_key(key: str, config_name: str, target: str) -> str | None:
    """What our own check says of a key that Hydra refused: it knows the nearest right one."""
    others = [override for override in _overrides() if override.lstrip("+~").partition("=")[0] != key]
    for overrides in (others, []):
        try:
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
                cfg = hydra.compose(config_name, [*_own_configs(), *overrides, f"++{key}=null"])
            config = OmegaConf.to_container(cfg, resolve=True)
            assert isinstance(config, dict)
            check(config, target)
        except ConfigError as error:
            group = nearest(key, ["experiment"])  # a group whose options leave no key of that name
            return f"{key}: no such option{group}" if group else str(error)
        except (HydraException, OmegaConfBaseException):
            continue
    return None


def _overrides() -> list[str]:
    return [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]


def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (configs_directory() / group).glob("*.yaml")) if group else []


def _own_configs() -> list[str]:
    """The user's folder of further groups, as an override that has the same effect as `--config-dir`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    directory = parser.parse_known_args()[0].config_dir
    return [] if directory is None else [f"hydra.searchpath=['file://{Path(directory).absolute()}']"]
