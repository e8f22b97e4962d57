"""One mistake of a command line."""

from dataclasses import dataclass

RUN = "../run"  # a finished run with schedule.timesteps=30, as seen from where the line is tried


@dataclass(frozen=True)
class Mistake:
    """Arguments that make a command line malformed, whatever fine ones stand beside them."""

    arguments: tuple[str, ...]
    mentions: str  # is in the message
    among: str | None = None  # whose fine options; None: the command's
    without: tuple[str, ...] = ()  # keys that would mend it, or be a second mistake
    together: bool = False  # the arguments stay side by side, and come last


def key_of(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def mistake_of(argument: str, mentions: str | None = None) -> Mistake:
    """One malformed argument, the last part of whose key the message mentions."""
    return Mistake((argument,), key_of(argument).rpartition(".")[2] if mentions is None else mentions)
