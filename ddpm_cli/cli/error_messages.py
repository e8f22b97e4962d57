"""One message that a person can act on, for a command line that Hydra refuses.

Hydra composes. Only when it refuses do we look for the reason, not in Hydra's words but in the overrides, with what we
know of groups, options and keys. (Checking first would compose twice, which is a quarter of the start-up time.)
"""

from collections.abc import Sequence

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Sweep, ValueType
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.cli.arguments import read_arguments
from ddpm_cli.cli.other_primary import other_primary
from ddpm_cli.config.errors import ConfigError, nearest, shown
from ddpm_cli.config.schema import check_key
from ddpm_cli.config.shipped import configs_directory, groups, options
from ddpm_cli.io.command_line import hydra_text, word
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.exit_codes import RunError

# Options of Hydra's own groups that are there once the extra is installed.
_IN_EXTRAS = tuple(f"hydra/launcher={name}" for name in ("joblib", "submitit_local", "submitit_slurm"))


def explain(error: BaseException, arguments: Sequence[str], config_name: str, target: str) -> str:
    """The message for an error raised while `config_name` was composed for `target`, with these arguments."""
    text = str(error) or str(error.__cause__ or type(error).__name__)
    first_line = _shown(text.splitlines()[0].rstrip("."))
    match error:
        case ConfigError() | RunError():
            return text
        case OverrideParseException(override=override):
            how = "an override is KEY=VALUE, or \"KEY='VALUE'\" if the value holds more than letters and digits"
            reason = how if error.__cause__ is None else str(error.__cause__)  # of a function, such as int(x)
            return f"cannot read '{_shown(override.removeprefix('++'))}': {_shown(reason)}"
        case MissingConfigException(missing_cfg_file=str(name)) if "/" in name:
            group, _, option = name.rpartition("/")
            return _unknown_option(group, option, error.options or options(configs_directory()).get(group, []))
        case yaml.YAMLError():
            return f"a configuration file is not valid YAML: {' '.join(text.split())}"
        case OmegaConfBaseException(full_key=key):
            return f"{key}: {first_line}" if key else first_line
    cause = [_shown(line) for line in str(error.__cause__ or "").splitlines()[:1]]
    return _mistake(arguments, config_name, target) or ": ".join([first_line, *cause])


def _mistake(arguments: Sequence[str], config_name: str, target: str) -> str | None:
    """What is wrong with the first override that is wrong; None if none is."""
    try:
        _check_overrides(arguments, config_name, target)
    except ConfigError as mistake:
        return str(mistake)
    except Exception:  # of a file of the user's own, or of Hydra's options: what it is has been said already
        return None


def _check_overrides(arguments: Sequence[str], config_name: str, target: str) -> None:
    given = read_arguments(arguments)
    overrides = OverridesParser.create().parse_overrides(given.overrides)
    shipped, theirs, searchpath = options(configs_directory()), {}, []
    primary = other_primary(given, config_name)
    if given.config_dir is not None:
        theirs, searchpath = (
            options(given.config_dir),
            [f"hydra.searchpath=[{hydra_text(f'file://{given.config_dir}')}]"],
        )
    ours = {group: shipped[group] for group in groups(config_name)}
    choices, settings = [], []
    for override in overrides:
        if override.is_sweep_override() and not given.sweep:
            values = _shown(str(override.input_line).removeprefix("++"))
            says = "add -m for a run of each, write [a,b] for a list, or quote 'a,b' for a text"
            raise ConfigError(f"{values}: more than one value; {says}")
        group, is_dict = override.key_or_group, isinstance(override.value(), dict)
        if group in ours | theirs and override.package is None and not is_dict:
            _check_choice(override, ours, theirs)
            if primary is not None and override.type is OverrideType.CHANGE:
                raise ConfigError(
                    f"{override.input_line}: {primary} is a whole configuration; set its values with KEY=VALUE instead"
                )
            choices.append(_first(override))
        elif not override.is_hydra_override():
            settings.append(override)
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(config_name, searchpath + choices))
    assert isinstance(config, dict)
    for override in settings:
        if override.key_or_group in shipped and override.key_or_group not in ours:
            raise ConfigError(f"{override.key_or_group}: no such option of this command")
        key = override.get_key_element().lstrip("+~")
        _check_setting(override, key, check_key(config, key, target, groups=ours | theirs, absent=...))


def _check_choice(override: Override, ours: dict[str, list[str]], theirs: dict[str, list[str]]) -> None:
    group, value = override.key_or_group, override.value()
    if override.is_add() and group in ours:
        raise ConfigError(_there_already(group))
    if not override.is_delete() and not isinstance(value, str | list | Sweep):
        raise ConfigError(_unknown_option(group, override.get_value_element_as_str(), (ours | theirs)[group]))
    if override.type is OverrideType.CHANGE and group not in ours:
        raise ConfigError(f"{group}: no option of this group is chosen yet; {_with_plus(override)} chooses one")


def _check_setting(override: Override, key: str, there: object) -> None:
    """`there` is the value that the configuration has at `key`, `...` if it has none."""
    if override.is_delete() and there in (None, ...):
        raise ConfigError(f"~{key}: there is nothing to delete")
    if override.is_add() and there not in (None, ...) and not isinstance(override.value(), dict | list):
        raise ConfigError(_there_already(key))
    if override.type is OverrideType.CHANGE and there is ...:
        raise ConfigError(f"{key}: not in any YAML file in use; {_with_plus(override)} adds it")


def _with_plus(override: Override) -> str:
    return word(f"+{override.input_line}")


def _first(choice: Override) -> str:
    """A choice as an override; the first of several to sweep over."""
    if choice.value_type in (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP):
        return f"{choice.get_key_element()}={next(choice.sweep_string_iterator())}"
    return str(choice.input_line)


def _there_already(key: str) -> str:
    return f"+{key}: already set; leave out the + to change it"


def _unknown_option(group: str, option: str, available: Sequence[str]) -> str:
    if f"{group}={option}" in _IN_EXTRAS:
        return f"{group}={option}: needs a plugin; pip install 'ddpm-cli[sweep]'"
    there_are = f"; choose from {', '.join(available)}" if available else ""
    return f"{group}={_shown(option)}: no such option{nearest(option, available)}{there_are}"


def _shown(text: str) -> str:
    """A text from the command line, on one line, shortened if it is long."""
    return printable(shown(text))
