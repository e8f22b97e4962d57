"""The YAML files that come with the package, and what they name: the exact list of what a checkpoint may ask for."""

import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml


def configs_directory() -> Path:
    """The folder of our YAML files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no configs/train.yaml in {package} or {package.parent}")


@functools.cache
def shipped_targets() -> dict[str, dict[str, bool]]:
    """For every group, each `_target_` in our own YAML files, with its `_partial_`.

    This is the exact list of what a checkpoint may ask for.
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
