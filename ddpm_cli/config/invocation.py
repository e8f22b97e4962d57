"""How a command was called, beside its configuration."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Invocation:
    """How a command was called, beside its configuration."""

    resume: str | None  # "auto", or the run to resume: then `changes` and `chosen` count and not the configuration
    changes: dict[str, Any]  # what the command line sets, by dotted key
    sweep_directory: Path | None  # this run's own directory, if it is one of a sweep
    fork: str | None = None  # the run to begin another one from: `changes` and `chosen` count
    chosen: dict[str, dict] = field(default_factory=dict)  # by group, the options of what `changes` choose of it
    spelt: dict[str, str] = field(default_factory=dict)  # by dotted key, how numbers and truth values were typed
    run_directory: Path | None = None  # the one that hydra.run.dir names; None: it names none
    # The files of .hydra/ by name, for a directory, and a configuration if it is another than the one that Hydra has
    # composed; None: there are to be none.
    record: Callable[[Path, dict | None], dict[str, str]] | None = None
    sweep: str | None = None  # the name of the sweep, if it is a run of one

    @property
    def directory(self) -> Path | None:
        """The very directory that this run is to have, whatever its name."""
        return self.run_directory if self.sweep_directory is None else self.sweep_directory
