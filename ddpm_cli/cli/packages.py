"""Finds a user's options that set values in the wrong place, as `# @package _global_` is not their first line."""

from pathlib import Path
from typing import Any

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.schema import is_node, options_of
from ddpm_cli.config.shipped import SUFFIXES, configs_directory

HEADER = "# @package _global_"


def check_packages(config: Any, target: str, runtime: Any) -> None:
    """Raise ConfigError for a file whose values ended up inside its group, but are meant for the whole configuration.

    Args:
        config: as it was composed, plain, with references in it.
        target: the class whose fields are the top-level keys.
        runtime: what Hydra knows of how it was composed: what was chosen of each group, and where it looks for files.
    """
    known = options_of(target)
    for group, option in runtime.choices.items():
        node = config.get(group)
        if not isinstance(option, str) or not isinstance(node, dict) or is_node(node):
            continue
        if group not in known or not node.keys().isdisjoint(known):
            raise ConfigError(_message(group, option, _file(group, option, runtime.config_sources)))


def _file(group: str, option: str, sources: Any) -> Path | None:
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    files = (folder / group / f"{option}{suffix}" for folder in folders for suffix in SUFFIXES)
    return next((file for file in files if file.is_file() and configs_directory() not in file.parents), None)


def _message(group: str, option: str, file: Path | None) -> str:
    first = f"'{HEADER}' has to be the first line of {f'{group}/{option}.yaml' if file is None else file}"
    lines = [] if file is None else file.read_text(encoding="utf-8").splitlines()
    at = next((number for number, line in enumerate(lines, 1) if line.strip() == HEADER), None)
    stands = "" if at is None else f", and stands in line {at}"
    return f"{group}={option}: {first}{stands}: without it, what the file sets is {group}.KEY instead of KEY"
