"""Options that are paths: `~` in them, and the directory that relative ones are seen from."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ddpm_cli.config.shipped import shipped_targets

_OF_DATA = ("path", "root", "cache_dir", "dataset")
PATHS = (
    *("output_dir", "resume", "fork", "init.path", "ckpt", "out", "image", "mask", "samples", "source"),
    *(f"data.{option}" for option in _OF_DATA),
    *("reference.path", "reference.save", "features.weights", "guidance.guide"),
)
_GROUPS = dict.fromkeys(key.partition(".")[0] for key in PATHS if "." in key)


def expanded(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, or options by their dotted keys, with `~` and `~user` in paths replaced; a new dict."""
    found = {key: os.path.expanduser(value) if _is_path(key, value) else value for key, value in config.items()}
    for group in _GROUPS:
        if isinstance(found.get(group), dict):
            options = found[group].items()
            found[group] = {key: os.path.expanduser(v) if _is_path(f"{group}.{key}", v) else v for key, v in options}
    return found


def _is_path(key: str, value: object) -> bool:
    return key in PATHS and isinstance(value, str)


def seen_from(directory: str | None, config: dict[str, Any], changes: Collection[str]) -> dict[str, Any]:
    """A run's configuration with its relative paths as seen from where the run is resumed; a new dict.

    Args:
        directory: where it was begun; None: that is not known. A path that begins with nothing that is there is seen
            from here: run and data may have been moved together.
        changes: keys of options that have been set here.
    """
    data = config.get("data")
    if not isinstance(data, dict) or data.get("_target_") not in shipped_targets()["data"]:
        return config
    if directory is not None and os.path.realpath(directory) == os.path.realpath(os.curdir):
        return config  # as they are: what is saved is what a run that was never stopped saves
    found = dict(data)
    for option in _OF_DATA:
        path = data.get(option)
        if not isinstance(path, str) or not path or "://" in path:
            continue
        if option == "dataset" and f"data.{option}" in changes and not os.path.exists(path):
            continue  # the name of one on the Hugging Face hub
        if f"data.{option}" in changes:
            found[option] = os.path.abspath(path)
        elif directory is not None and _begins(Path(directory), Path(path)):
            found[option] = os.path.join(directory, path)
    return config | {"data": found}


def _begins(directory: Path, path: Path) -> bool:
    """Whether the first part of a path exists in a directory; it may be a pattern (`*.tar`, `{000..127}`)."""
    first, *_ = path.parts or (".",)
    return (directory if re.search(r"[*?\[{]", first) else directory / first).exists()
