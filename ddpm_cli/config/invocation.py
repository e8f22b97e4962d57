"""How a command was called, beside its configuration."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Invocation:
    """How a command was called, beside its configuration."""

    resume: str | None  # "auto", or the run to resume: then `changes` count and not the configuration
    changes: dict[str, Any]  # what the command line sets, by dotted key
    sweep_directory: Path | None  # this run's own directory, if it is one of a sweep
    fork: str | None = None  # the run to begin another one from: `changes` and `chosen` count
    chosen: dict[str, dict] = field(default_factory=dict)  # by group, the options of what `changes` choose of it


def override(key: str, path: Path) -> str:
    """KEY=PATH as Hydra reads it: what a person is to type, once it has been quoted for the shell."""
    text = str(path)
    if not re.fullmatch(r"[\w./+@%:-]+", text):
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
        text = f"'{escaped}'"
    return f"{key}={text}"
