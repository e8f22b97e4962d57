"""recorded.json: the digests of the version before, and what they were computed with."""

import json
from importlib.metadata import version
from pathlib import Path

import torch

FILE = Path(__file__).with_name("recorded.json")


def environment() -> dict[str, str]:
    """What decides the bits besides this repository."""
    packages = {name: version(name) for name in ("torch", "numpy", "pillow")}
    return packages | {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def read() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"environment": {}, "recipes": {}}


def write(recipes: dict[str, dict[str, str]]) -> None:
    """Keep the digests of these recipes, and of no others."""
    content = {"environment": environment(), "recipes": recipes}
    FILE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def difference(kept: dict) -> str | None:
    """Why what is computed here cannot be compared with what is kept; None: it can."""
    here, there = environment(), kept["environment"]
    other = [f"{name} {there.get(name)}, here {value}" for name, value in here.items() if there.get(name) != value]
    if not other:
        return None
    return (
        f"recorded with {'; '.join(other)}, which may round otherwise: check out the commit to compare with, run "
        "scripts/digests --record there, and bring its tests/digests/recorded.json here"
    )


def changes(kept: dict[str, str], found: dict[str, str]) -> list[str]:
    """What differs, is missing or was not there before, by name."""
    return sorted(name for name in kept.keys() | found.keys() if kept.get(name) != found.get(name))
