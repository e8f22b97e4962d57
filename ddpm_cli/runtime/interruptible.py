"""Work that may be left between its parts: a generator that yields there, and returns what comes of it."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar, cast

T = TypeVar("T")


def carried_out(
    work: Generator[None, None, T], *, unless: Callable[[], bool], advance: Callable[[], object] = lambda: None
) -> T | None:
    """What `work` returns; None if `unless` says after one of its parts that it is to be left.

    Args:
        advance: is called after each part.
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
    """What `work` returns, carried out to its end."""
    return cast(T, carried_out(work, unless=lambda: False, advance=advance))
