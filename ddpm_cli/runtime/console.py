"""Standard output and standard error for a run: if one fails, its messages are lost, and nothing else.

A terminal is closed, a `tee` is killed, the disk behind `> file` is full, a launcher has closed both. Whatever a write
raises then ends here: from there on the stream leads to /dev/null, which is told once.
"""

import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


class _Console(io.FileIO):
    """A file or descriptor for writing, whose errors are kept in `error` instead of raised."""

    def __init__(self, place: int | Path, label: str):
        super().__init__(place, "a" if isinstance(place, Path) else "w", closefd=isinstance(place, Path))
        self.label = label
        self.error: OSError | None = None

    def write(self, content) -> int:
        try:
            # None: it does not block, as a terminal that another program has left so, and takes no more just now.
            while (written := super().write(content)) is None:
                select.select([], [self], [])
        except OSError as error:
            self.give_up(error)
            return memoryview(content).nbytes
        return written

    def give_up(self, error: OSError) -> None:
        with suppress(OSError):
            _lead_to_null(self.fileno(), inheritable=self.fileno() <= 2)
        if self.error is None:
            self.error = error
            if _tell is not None:
                _tell(self.loss())

    def loss(self) -> str:
        assert self.error is not None
        return f"{self.label} cannot be written ({self.error.strerror}): its messages are lost, the run continues"


_standard: list[_Console] = []  # output and error, where they have been taken over
_tell: Callable[[str], None] | None = None


def install() -> None:
    """Take over this process's standard streams, unless something else has; call it before any file is opened.

    Where a descriptor is closed it is made to lead to /dev/null: the next file that is opened would be given its
    number, and whatever is said be written into it.
    """
    closed: dict[int, OSError] = {}
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError as error:
            closed[number] = error
            _lead_to_null(number, inheritable=True)
    sys.stdout = _taken_over(1, sys.stdout, "standard output", closed.get(1))
    sys.stderr = _taken_over(2, sys.stderr, "standard error", closed.get(2))


def output_error() -> OSError | None:
    """Why output to standard output was lost; None if none was."""
    sys.stdout.flush()
    return next((stream.error for stream in _standard if stream.fileno() == 1), None)


@contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside, `tell` gets a line about each stream that is lost, or was before. It may be called at any point."""
    global _tell
    before, _tell = _tell, tell
    try:
        for stream in _standard:
            if stream.error is not None:
                tell(stream.loss())
        yield
    finally:
        _tell = before


def opened(path: Path) -> TextIO:
    """A file to append to instead of a console: writing to it raises nothing."""
    return _text(_Console(path, str(path)), encoding="utf-8")


def _taken_over(number: int, stream: TextIO | None, label: str, closed: OSError | None) -> TextIO:
    if stream is not None:
        try:
            elsewhere = stream.fileno() != number
        except (AttributeError, OSError, ValueError):
            elsewhere = True
        if elsewhere or os.name == "nt" or any(console.fileno() == number for console in _standard):
            return stream
        with suppress(OSError):
            stream.flush()
    console = _Console(number, label)
    console.error = closed
    _standard.append(console)
    return _text(
        console,
        encoding=getattr(stream, "encoding", "utf-8"),
        line_buffering=getattr(stream, "line_buffering", False) or number == 2,
        write_through=getattr(stream, "write_through", False),
    )


def _text(console: _Console, *, encoding: str, line_buffering: bool = True, write_through: bool = False) -> TextIO:
    """Text for a console, with characters that it cannot show escaped."""
    return io.TextIOWrapper(
        io.BufferedWriter(console),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=line_buffering,
        write_through=write_through,
    )


def _lead_to_null(descriptor: int, *, inheritable: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == descriptor:
        os.set_inheritable(descriptor, inheritable)
        return
    os.dup2(null, descriptor, inheritable)
    os.close(null)
