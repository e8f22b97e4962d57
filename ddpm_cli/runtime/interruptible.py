"""Work that can be abandoned between its parts: a generator that yields there, and returns its result."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar, cast

T = TypeVar("T")


def carried_out(
    work: Generator[None, None, T], *, unless: Callable[[], bool], advance: Callable[[], object] = lambda: None
) -> T | None:
    """The result of `work`; None if `unless` asks after one of its parts to abandon it.

    Args:
        advance: called after each part.
    """
    with closing(work):
        while True:
            try:
                next(work)
            except StopIteration as done:
                return done.value
            advance()
            if unless():
                return None


def finished(work: Generator[None, None, T], advance: Callable[[], object] = lambda: None) -> T:
    """The result of `work`, done to its end."""
    return cast(T, carried_out(work, unless=lambda: False, advance=advance))
