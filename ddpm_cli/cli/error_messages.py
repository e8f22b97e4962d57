"""What Hydra and OmegaConf raise, said in one message that a person can act on."""

import argparse
import itertools
import re
import sys
from pathlib import Path

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.config.errors import ConfigError, nearest
from ddpm_cli.config.schema import check
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.exit_codes import RunError

# Options of Hydra's own groups that are there once the extra is installed.
_IN_EXTRAS = tuple(f"hydra/launcher={name}" for name in ("joblib", "submitit_local", "submitit_slurm"))


def explain(error: BaseException, config_name: str, target: str) -> str:
    """The message for `error`, raised while composing `config_name` for `target`; our own errors say it themselves."""
    text = str(error) or str(error.__cause__ or type(error).__name__)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, text)
    if isinstance(error, yaml.YAMLError):
        return f"a configuration file is no valid YAML: {' '.join(text.split())}"
    if isinstance(error, OmegaConfBaseException):
        place = f"{error.full_key}: " if error.full_key else ""
        return place + _shown(text.splitlines()[0])
    if isinstance(error, ConfigError):
        return _meant_experiment(text, config_name)
    if isinstance(error, RunError):
        return text
    lines = [text.splitlines()[0].rstrip("."), *str(error.__cause__ or "").splitlines()[:1]]
    return _of_hydra(text, config_name, target) or _shown(": ".join(lines))


def _unreadable(override: str, text: str) -> str:
    reason = re.search(r"while evaluating '.*?': (.*)", text)  # of a function, such as int(x)
    how = "an override is KEY=VALUE, or \"KEY='VALUE'\" where the value holds more than letters and digits"
    return f"cannot read '{_shown(override.removeprefix('++'))}': {_shown(reason[1]) if reason is not None else how}"


def _of_hydra(text: str, config_name: str, target: str) -> str | None:
    """What is wrong with the command line, going by Hydra's words for it; None if they say it themselves."""
    option = re.search(r"Could not (?:find|load) '([^']+)/([^'/]*)'", text)
    if option is not None:
        listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*)", text)
        return _unknown_option(option[1], option[2], _options(option[1]) if listed is None else listed[1].split())
    if text.startswith("Config group override must be"):
        for override in _parsed():
            options = _options(override.key_or_group)
            if options and not isinstance(override.value(), str | list):
                return _unknown_option(override.key_or_group, override.get_value_element_as_str(), options)
    twice = re.match(r"Multiple values for (\S+)\.|Could not append to config\. An item is already at '(.+)'", text)
    if twice is not None:
        return f"+{twice[1] or twice[2]}: there is one already; without the + it is changed"
    several = re.match(r"Ambiguous value for argument '(.*)'|Sweep parameters '(.*)' requires", text)
    if several is not None:
        values = _shown(several[1] or several[2])
        return f"{values}: more than one value; -m runs one after another, [a,b] is a list, 'a,b' in quotes a text"
    in_a_list = re.match(r"(?:invalid literal for int\(\) with base 10: |Index )'(\w+)'", text)
    if in_a_list is not None:
        keys = (override.lstrip("+~").partition("=")[0] for override in _overrides())
        return next((f"{key}: no such option; a list has none" for key in keys if in_a_list[1] in key.split(".")), None)
    unknown = re.match(r"Could not (?:override|delete(?: from config\.)?) '([^'=]+)'|.* config group '(.+)' does", text)
    if unknown is None:
        return None
    nothing = f"~{unknown[1]}: there is nothing to delete" if text.startswith("Could not delete") else None
    key = unknown[1] or unknown[2]
    if text.startswith("Could not override") and _options(key):  # a group, but of another command
        return f"{key}: no such option of this command"
    return _unknown_key(key, config_name, target) or nothing


def _unknown_option(group: str, option: str, available: list[str]) -> str:
    if f"{group}={option}" in _IN_EXTRAS:
        return f"{group}={option}: comes with a plug-in; pip install 'ddpm-cli[sweep]'"
    there_are = f"; there are {', '.join(available)}" if available else ""
    return f"{group}={_shown(option)}: no such option{nearest(option, available)}{there_are}"


def _unknown_key(key: str, config_name: str, target: str) -> str | None:
    """What our own check says of a key that Hydra refused: it knows the nearest right one."""
    values, others = [], []
    for override in _overrides():
        name, _, value = override.lstrip("+~").partition("=")
        (values if name == key else others).append(value if name == key else override)
    for overrides, value in itertools.product((others, []), (*values, "null")):
        try:
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
                cfg = hydra.compose(config_name, [*_own_configs(), *overrides, f"++{key}={value}"])
            config = OmegaConf.to_container(cfg, resolve=True)
            assert isinstance(config, dict)
            check(config, target)
        except ConfigError as error:
            return _meant_experiment(str(error), config_name)
        except (HydraException, OmegaConfBaseException):
            continue
    return None


def _meant_experiment(text: str, config_name: str) -> str:
    """`text` with the hint that `check` cannot give: an experiment leaves no key of that name."""
    unknown = re.match(r"([^.\s]+): no such option;", text)
    hint = nearest(unknown[1], ["experiment"]) if unknown is not None and config_name == "train" else ""
    return f"{unknown[1]}: no such option{hint}" if unknown is not None and hint else text


def _shown(text: str) -> str:
    """A text from the command line, on one line and not all of a long one."""
    return printable(text if len(text) <= 200 else f"{text[:200]}...")


def _parsed() -> list[Override]:
    return OverridesParser.create().parse_overrides(_overrides())


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
