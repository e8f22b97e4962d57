"""How a command was called, beside its configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Invocation:
    """How a command was called, beside its configuration."""

    resume: str | None  # "auto", or the run directory to resume: then `changes` count and not the configuration
    changes: dict[str, Any]  # what the command line sets, by dotted key
    sweep_directory: Path | None  # this run's own directory, if it is one of a sweep
