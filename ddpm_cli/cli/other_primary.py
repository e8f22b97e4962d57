"""Primary configurations other than ours (`--config-path`, `--config-name`), such as `.hydra/config.yaml` of a run.

Such a file says nothing of Hydra itself, whose own ways would then count: a directory that is made before anything is
checked, a second log. Where it has no `hydra` of its own, what our file has there is added to the command line.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ddpm_cli.cli.arguments import Arguments, key_of
from ddpm_cli.cli.own_yaml import check_yaml
from ddpm_cli.cli.path_values import RUN_DIR
from ddpm_cli.config.shipped import SUFFIXES, configs_directory
from ddpm_cli.io.command_line import hydra_quoted, hydra_text

_SEARCHPATH = "hydra.searchpath"


def completed(given: Arguments, config_name: str) -> Arguments:
    """The command line with the settings of Hydra in our `config_name`, if another file is read that has none.

    Raises:
        ConfigError: if that file is none that can be read.
    """
    file = other_primary(given, config_name)
    if file is None or "hydra" in (_read(file) or {}):
        return given
    said = {key_of(override) for override in given.overrides}
    without = RUN_DIR if given.sweep else "hydra.sweep"
    ours = [
        text for text in _of_hydra(config_name) if key_of(text) not in said and not key_of(text).startswith(without)
    ]
    return replace(given, overrides=[*ours, *given.overrides])


def other_primary(given: Arguments, config_name: str) -> Path | None:
    """The primary configuration, if it is not ours; None also if there is none, which Hydra reports."""
    if given.config_path is None and given.config_name is None:
        return None
    folders = [given.config_path, given.config_dir]
    name = given.config_name or config_name
    names = [name] if name.endswith(SUFFIXES) else [f"{name}{suffix}" for suffix in SUFFIXES]
    files = (folder / name for folder in folders if folder is not None for name in names)
    return next((file for file in files if file.is_file()), None)


def _read(file: Path) -> Any:
    check_yaml(file)
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _of_hydra(config_name: str) -> Iterator[str]:
    """Overrides with the same effect as our own file."""
    content = yaml.safe_load((configs_directory() / f"{config_name}.yaml").read_text(encoding="utf-8"))
    yield f"{_SEARCHPATH}=[{hydra_text(f'file://{configs_directory()}')}]"
    for entry in content["defaults"]:
        for key, option in entry.items() if isinstance(entry, dict) else ():
            if key.startswith("override hydra/"):
                yield f"{key.removeprefix('override ')}={option}"
    yield from _flat("hydra", content["hydra"])


def _flat(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    else:
        yield f"++{key}={'null' if value is None else hydra_quoted(str(value))}"
