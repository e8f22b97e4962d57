"""Checks of a user's YAML files before Hydra loads them: files that would grow while they are read are refused.

A file of half a kilobyte whose aliases stand for each other can describe more values than there is memory for, and one
of many values is read for minutes. Both are seen in the parser's events, without building any of it.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

from ddpm_cli.config.errors import ConfigError, shown
from ddpm_cli.config.shipped import SUFFIXES, configs_directory

MOST_BYTES = 2**18
VALUES_PER_REFERENCE = 10  # that could be read in the time in which a ${...} is
MOST_VALUES = 10_000  # a schedule has up to 8192; Hydra takes two seconds for so many
_DEEPEST = 32
_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of C where PyYAML was built with it


def check_what_hydra_loads() -> None:
    """From now on, Hydra loads no YAML file that `check_yaml` refuses, and also finds files called `.yml`.

    Its own source of files is changed, not replaced: a launcher registers that one again.
    """
    Plugins.instance()  # registers the sources that Hydra knows
    source: Any = SourcesRegistry.instance().types["file"]
    load_config = source.load_config
    if load_config.__module__ == __name__:  # it checks already
        return

    def load_checked(self: Any, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.is_relative_to(configs_directory()):
            check_yaml(file)
        return load_config(self, config_path)

    def file_name(self: Any, config_path: str) -> str:
        if config_path.endswith(SUFFIXES):
            return config_path
        found = (f"{config_path}{suffix}" for suffix in SUFFIXES)
        return next((name for name in found if Path(self.path, name).is_file()), f"{config_path}{SUFFIXES[0]}")

    source.load_config, source._normalize_file_name = load_checked, file_name


def check_yaml(file: Path) -> None:
    """Raise ConfigError, naming the file, unless it is a plain file with YAML within the limits of a configuration."""
    try:
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{file}: is not a plain file")
        if found.st_size > MOST_BYTES:
            raise ConfigError(f"{file}: has {found.st_size:,} bytes, a configuration may have {MOST_BYTES:,}")
        text = file.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8: {error.reason} at byte {error.start}") from error
    try:
        too_much = _too_much(yaml.parse(text, Loader=_Parser))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"no valid YAML in {file}: {shown(reason)}") from error
    if too_much is not None:
        raise ConfigError(f"{file}: {too_much}")


def _too_much(events: Iterator[yaml.Event]) -> str | None:
    """Why this exceeds the limits; None if it does not.

    Counts the values that will be built: an alias stands for all those of what it repeats.
    """
    sizes: dict[str, int] = {}  # of what has an anchor and is complete
    open_collections: list[tuple[str | None, int]] = []  # their anchors, and the count when they began
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                return f"*{event.anchor[:100]} stands for nothing that is complete before it"
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1 + VALUES_PER_REFERENCE * event.value.count("${")
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_collections.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        if count > MOST_VALUES:
            return f"holds more than {MOST_VALUES:,} values, with those that aliases repeat"
        if len(open_collections) > _DEEPEST:
            return "nested too deep"
    return None
