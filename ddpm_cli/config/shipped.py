"""The YAML files of the package, and the targets in them: the exact list of what a checkpoint may build."""

import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

SUFFIXES = (".yaml", ".yml")  # ours have the first


def configs_directory() -> Path:
    """The folder of our YAML files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no configs/train.yaml in {package} or {package.parent}")


def groups(config_name: str) -> dict[str, str | None]:
    """The groups of a command, in the order of its defaults list, with the default option of each."""
    content = yaml.safe_load((configs_directory() / f"{config_name}.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in content["defaults"] if isinstance(entry, dict)]
    return {group: option for entry in entries for group, option in entry.items() if not group.startswith("override ")}


def options(directory: Path) -> dict[str, list[str]]:
    """The options of each group in a folder of YAML files."""
    found = defaultdict(list)
    for file in sorted(file for suffix in SUFFIXES for file in directory.rglob(f"*{suffix}")):
        group = file.parent.relative_to(directory).as_posix()
        if group != ".":
            found[group].append(file.stem)
    return dict(found)


@functools.cache
def shipped_targets() -> dict[str, dict[str, bool]]:
    """For every group, each `_target_` in our own YAML files, with its `_partial_`.

    This is the exact list of what a checkpoint may build.
    """

    def targets(key: str, value: object) -> Iterator[tuple[str, str, bool]]:
        if isinstance(value, dict):
            if "_target_" in value:
                yield key, value["_target_"], value.get("_partial_", False)
            for inner_key, inner in value.items():
                yield from targets(inner_key, inner)

    found = defaultdict(dict)
    for file in configs_directory().glob("*/*.yaml"):
        for key, target, partial in targets(file.parent.name, yaml.safe_load(file.read_text(encoding="utf-8"))):
            found[key][target] = partial
    return dict(found)


@functools.cache
def options_by_target(group: str) -> dict[str, list[str]]:
    """The names of a group's options in our own YAML files, by the `_target_` that they have."""
    found = defaultdict(list)
    for file in sorted((configs_directory() / group).glob("*.yaml")) if group.isidentifier() else []:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        node = content.get(group, content)  # a recipe (`@package _global_`) holds its own group beside others
        if isinstance(node, dict) and isinstance(node.get("_target_"), str):
            found[node["_target_"]].append(file.stem)
    return dict(found)
