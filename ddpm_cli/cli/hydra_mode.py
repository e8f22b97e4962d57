"""Saves the first of the two compositions of every command: Hydra's question whether a file asks for a sweep.

Hydra composes the whole configuration to read `hydra.mode` from it, and then again to run. It is composed once where
no file and no override can set the mode, which takes a tenth of a second from each command.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath

from ddpm_cli.config.shipped import SUFFIXES, configs_directory

_FROM_HYDRA = ("hydra", "schema")  # who adds to the search path what is Hydra's own
_OURS = "main"
_A_MODE = re.compile(r"(?<!- )\bmode[\"']?\s*:")  # as a key; `- mode:` chooses from a group of that name


def compose_once() -> None:
    """From now on Hydra composes to ask for the mode only where it may be set."""
    ask: Any = Hydra.get_mode
    if ask.__module__ == __name__:
        return

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        if _may_be_set(self.config_loader.get_search_path(), overrides):
            return ask(self, config_name, overrides)
        return None

    Hydra.get_mode = get_mode


def _may_be_set(search_path: ConfigSearchPath, overrides: Sequence[str]) -> bool:
    providers = {place.provider for place in search_path.get_path()} - set(_FROM_HYDRA)
    if providers != {_OURS} or any("hydra" in override for override in overrides):
        return True
    return any(map(sets_mode, _files(configs_directory())))


def sets_mode(file: Path) -> bool:
    """Whether a YAML file may set `hydra.mode`."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return "hydra" in f"{file.parent.name} {file.name} {text}" and _A_MODE.search(text) is not None


def _files(directory: Path) -> Iterable[Path]:
    return (file for suffix in SUFFIXES for file in directory.rglob(f"*{suffix}"))
