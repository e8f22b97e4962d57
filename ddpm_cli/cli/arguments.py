"""The command line in the form that Hydra takes; what Hydra would accept without effect is refused."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from ddpm_cli import __version__
from ddpm_cli.cli import lazy_help
from ddpm_cli.cli.path_values import RUN_DIR, readable
from ddpm_cli.config.errors import ConfigError, shown
from ddpm_cli.config.shipped import SUFFIXES, configs_directory
from ddpm_cli.io.run_dir import HYDRA

_FLAGS_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p"),
    "--experimental-rerun",
)
OUTPUT_SUBDIR = "hydra.output_subdir"
_CONFIG_DIR = ("--config-dir", "-cd")
_CONFIG_PATH = ("--config-path", "-cp")
_INFO = ("--info", "-i")
# What Hydra would do and we do not: the option, the values that are harmless, and what happens instead.
_NO_EFFECT = {
    OUTPUT_SUBDIR: (("null", HYDRA), f"a run's directory records its configuration in {HYDRA}; null leaves it out"),
    "hydra.job.chdir": (("false",), "a command stays in the directory in which it is started"),
}
# Hydra's parser takes a millisecond per value, and for lists the square of it.
_MOST_ARGUMENTS = 1000
_MOST_VALUES = 2000  # in all of them; a ${...} takes as long as ten
_MOST_CHARACTERS = 2**16  # of one
_DEEPEST = 64  # lists in lists
# As people know it from other trainers: a step still sees the recipe's batch, in as few parts as fit into memory.
_ALSO_CALLED = {"trainer.batch_size=auto": "trainer.accumulate=auto"}
_ALSO_CALLED |= dict.fromkeys(("logger=null", "logger=none", "~logger"), "logger=[]")
_SHORT = {"init": "init.path"}  # a section, and the one of its options that is meant where it is given a plain value


@dataclass(frozen=True)
class Arguments:
    """A command line: flags, and overrides KEY=VALUE."""

    flags: list[str]
    overrides: list[str]
    config_dir: Path | None  # of options of the user's own
    sweep: bool
    config_path: Path | None = None  # where the primary configuration lies, if not with ours
    config_name: str | None = None  # what it is called, if not as ours

    def as_hydra_takes_them(self) -> list[str]:
        """Argparse takes flags before or after the overrides, not among them."""
        return [*self.flags, *self.overrides]


def key_of(override: str) -> str:
    """The key of KEY=VALUE, without its sign (+, ++, ~)."""
    return override.lstrip("+~").partition("=")[0]


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """Raises ConfigError for arguments that Hydra cannot read, or only slowly, or that it takes without effect."""
    _check_texts(arguments)
    flags, overrides = _split(arguments)
    overrides = [_in_full(override) for override in overrides]
    for override in overrides:
        if not key_of(override):
            raise ConfigError(f"cannot read '{override}': an override is KEY=VALUE")
    given = _check_flags([*flags, *overrides])
    for override in overrides:
        _check_effect(override, sweep=given.multirun)
    # Hydra itself would write .hydra before anything is checked, and not where the run lies.
    overrides = [override.lstrip("+") if key_of(override) == OUTPUT_SUBDIR else override for override in overrides]
    overrides = [override for override in overrides if override != f"{OUTPUT_SUBDIR}={HYDRA}"]
    overrides = [readable(override, sweep=given.multirun) for override in overrides]
    config_dir = None if given.config_dir is None else Path(given.config_dir).absolute()
    if config_dir is not None:
        _check_own_configs(config_dir)
    if any(_names_a_run(override) for override in overrides):
        # A run's own options need not be among the defaults that Hydra composes: data.path of a folder, say.
        overrides = [f"++{o}" if "." in key_of(o) and o[0] not in "+~" else o for o in overrides]
    config_path = None if given.config_path is None else Path(given.config_path)
    if config_path is not None and not config_path.is_dir():
        raise ConfigError(f"--config-path: {config_path} is not a directory")
    return Arguments(flags, overrides, config_dir, given.multirun, config_path, given.config_name)


def _in_full(override: str) -> str:
    """An override in its full form."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if name in _SHORT and equals and not value.startswith("{"):
        key = f"{key.removesuffix(name)}{_SHORT[name]}"
    return _ALSO_CALLED.get(override, f"{key}{equals}{value}")


def _check_effect(override: str, *, sweep: bool) -> None:
    """Raise ConfigError for an option of Hydra's that would have no effect."""
    key, value = key_of(override), override.partition("=")[2]
    if key in _NO_EFFECT:
        harmless, instead = _NO_EFFECT[key]
        if value.lower() not in harmless:
            raise ConfigError(f"{key}: has no effect here; {instead}")
    if key == RUN_DIR and sweep:
        raise ConfigError(f"{key}: has no effect with -m; hydra.sweep.dir sets the directory of a sweep")


def _check_texts(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a text that a configuration cannot hold, or that would take minutes to parse."""
    elsewhere = "put long lists into a YAML file, GROUP/NAME.yaml in a folder for --config-dir, and choose GROUP=NAME"
    for argument in arguments:
        said = shown(argument)
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            raise ConfigError(f"cannot read '{said}': it is not UTF-8; rename the file")
        if len(argument) > _MOST_CHARACTERS:
            raise ConfigError(
                f"{shown(key_of(argument))}: {len(argument):,} characters, at most {_MOST_CHARACTERS:,}; {elsewhere}"
            )
        if _depth(argument) > _DEEPEST:
            raise ConfigError(f"cannot read '{said}': nested too deeply, at most {_DEEPEST} levels")
    values = {argument: argument.count(",") + 10 * argument.count("${") for argument in arguments}
    if sum(values.values()) > _MOST_VALUES or len(arguments) > _MOST_ARGUMENTS:
        longest = max(values, key=values.__getitem__)
        what = f"{shown(key_of(longest))}: too many values for a command line"
        raise ConfigError(f"{what} ({sum(values.values()):,} values in {len(arguments):,} arguments); {elsewhere}")


def _depth(argument: str) -> int:
    """The depth of nested brackets in it."""
    depth = deepest = 0
    for character in re.findall(r"[\[\](){}]", argument):
        depth += 1 if character in "[({" else -1
        deepest = max(deepest, depth)
    return deepest


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    remaining = list(reversed(arguments))
    while remaining:
        argument = remaining.pop()
        flag, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            overrides.append(argument)
        elif argument in _INFO:  # its value may be left out
            given = remaining and "=" not in remaining[-1] and remaining[-1][0:1] not in ("-", "~")
            flags.append(f"{argument}={remaining.pop() if given else 'all'}")
        elif argument in _FLAGS_WITH_VALUE:
            if not remaining:
                raise ConfigError(f"{argument}: needs a value")
            value = remaining.pop()
            flags += [argument, _folder(argument, value)]
        else:
            flags.append(f"{flag}={_folder(flag, value)}" if equals else argument)
    return flags, overrides


def _folder(flag: str, value: str) -> str:
    """A flag's value; a folder as seen from the current directory. Hydra would look beside its caller's file."""
    if flag in _CONFIG_DIR:
        return os.path.expanduser(value)
    return os.path.abspath(os.path.expanduser(value)) if flag in _CONFIG_PATH else value


def _check_flags(arguments: list[str]) -> argparse.Namespace:
    """The command line as Hydra's parser reads it. Raises ConfigError where that would print its usage and exit."""

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}; options are KEY=VALUE, without dashes; --hydra-help shows the flags")

    with lazy_help.unchecked():
        parser = get_args_parser()
    parser.allow_abbrev = False
    parser.error = error
    if "--version" in arguments:
        print(f"ddpm-cli {__version__}")
        sys.exit()
    given = parser.parse_args(arguments)
    if given.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: would run code from a file; use resume=RUN_DIR to resume a run")
    if given.package is not None and given.cfg is None:
        raise ConfigError("--package: has an effect only with --cfg")
    return given


def _names_a_run(override: str) -> bool:
    key, _, value = override.lstrip("+").partition("=")
    return key in ("resume", "fork") and value not in ("", "null", "auto")


def _check_own_configs(directory: Path) -> None:
    """Raise ConfigError if it is no directory, or for a file that Hydra would ignore for another of the same name."""
    if not directory.is_dir():
        raise ConfigError(f"--config-dir: {directory} is not a directory")
    for file in sorted(directory.glob("*/*.y*ml")):
        if file.suffix not in SUFFIXES:
            continue
        if (configs_directory() / file.relative_to(directory)).with_suffix(".yaml").exists():
            option = f"{file.parent.name}={file.stem}"
            raise ConfigError(f"{file}: ddpm-cli's own {option} would be used instead; rename this file")
        if file.suffix == ".yml" and file.with_suffix(".yaml").exists():
            raise ConfigError(f"{file}: {file.stem}.yaml beside it would be used instead; rename this file")
