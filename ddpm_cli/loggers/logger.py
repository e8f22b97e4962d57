"""The interface of a logger, which shows a run's curves, images and configuration while it trains."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

PREVIEW = "preview"  # the name of the pictures that are drawn while a run trains
State = Literal["finished", "stopped", "failed"]  # stopped: it was asked to, and can be resumed


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a logger is told about a run.

    Args:
        id: the run's own, also where it has been moved or resumed.
        name: for people.
        group: of the runs of one sweep; None: it is of none.
        directory: of the run.
        config: its configuration, resolved: plain values and dicts of them.
        pid: of the process that trains.
        earlier: the id that `Logger.begin` returned when the run was logged there before; None: it was not.
    """

    id: str
    name: str
    group: str | None
    directory: Path
    config: dict[str, Any] = field(repr=False)
    pid: int
    earlier: str | None = None


class Begun(NamedTuple):
    """The place where a logger logs a run."""

    id: str  # by which it will find the run again
    where: str  # for people: an address, or what to do to see it


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run ended.

    Args:
        step: its last.
        summary: its final figures, and the one that it returns as `objective`.
    """

    state: State
    step: int
    summary: dict[str, float] = field(default_factory=dict)


class Logger(Protocol):
    """Shows a run somewhere; an option of the group `logger`, whose arguments are its constructor's.

    The constructor raises ValueError for what cannot be, a missing package too, and does nothing else. All other calls
    may take their time, raise anything, and never return: but for TensorBoard, whose files are among the run's own
    records, they are made in another process (`ddpm_cli.loggers.aside`).

    A step that is logged again, as that of a run that was killed and resumed, has been left out before.
    """

    @property
    def place(self) -> str:
        """Where it shows runs: with another place, by other options, a resumed run is logged as a new one there."""
        ...

    def begin(self, run: RunInfo) -> Begun:
        """Show this run from now on, as the same one if it was shown there `earlier`."""
        ...

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Show finite figures of a step, such as loss/mean."""
        ...

    def image(self, step: int, name: str, png: bytes) -> None:
        """Show an image of a step."""
        ...

    def end(self, ending: Ending) -> None:
        """The run has ended, unless it is resumed. Returns once everything has been sent."""
        ...
