"""The log of a run: on the terminal, above the progress bar, and with times in its log file."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ddpm_cli.runtime import console

log = logging.getLogger("ddpm_cli")
FOR_FILE = {"for_file": True}  # as `extra`: for the file alone, the terminal hears of it another way

_held: list[str] = []

_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


class _Terminal(logging.Handler):
    """Prints records to stdout without tearing a progress bar, and leaves out what the bar already shows."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "for_file", False):
            return
        if getattr(record, "on_bar", False) and sys.stderr.isatty() and sys.stdout.isatty():
            return
        with tqdm.external_write_mode(sys.stdout):  # the bar goes, and comes back once the line is really there
            sys.stdout.write(f"{self.format(record)}\n")
            sys.stdout.flush()


class _File(logging.FileHandler):
    """Appends records to a file; one that cannot be written is an error like any other, not a traceback on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.filename is None:
            error.filename = self.baseFilename
        raise


class _Early(logging.Handler):
    """While there is no log file yet: prints warnings to stderr, and keeps them for the file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "for_file", False):
            return
        self.kept.append(record)
        if logging.lastResort is not None:
            logging.lastResort.handle(record)


def hold(warnings: Iterable[str]) -> None:
    """Keep warnings that are to be said before the next thing that takes long, and not beside a mistake found first."""
    _held[:] = warnings


def say_held() -> None:
    """Say what is held, before something that takes long."""
    while _held:
        log.warning(_held.pop(0))


_early = _Early()
log.addHandler(_early)


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Send `log` to the terminal and append it to `file` while inside; the file also says if the terminal is lost.

    Raises:
        OSError: if the file cannot be written, also from `log.info` while inside.
    """
    in_file = _File(file, encoding="utf-8", errors="backslashreplace")
    in_file.setFormatter(_FORMAT)
    terminal = _Terminal()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.removeHandler(_early)
    log.addHandler(in_file)
    log.addHandler(terminal)
    try:
        while _early.kept:
            in_file.handle(_early.kept.pop(0))
        with console.telling(partial(append, file)):
            yield
    finally:
        log.addHandler(_early)
        log.removeHandler(terminal)
        log.removeHandler(in_file)
        with suppress(OSError):  # what it could not write has been said
            in_file.close()


@contextmanager
def said_on_terminal() -> Iterator[None]:
    """Print `log` while inside, for commands without a log file; warnings go to stderr, as they do outside."""
    terminal, level = _Terminal(), log.level
    terminal.addFilter(lambda record: record.levelno < logging.WARNING)
    log.setLevel(logging.INFO)
    log.addHandler(terminal)
    try:
        yield
    finally:
        log.removeHandler(terminal)
        log.setLevel(level)


def append(file: Path, message: str) -> None:
    """Add a line to a log file with one system call, in a signal handler or while something is being logged.

    What cannot be added is lost.
    """
    record = logging.LogRecord(log.name, logging.WARNING, "", 0, message, None, None)
    with suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, f"{_FORMAT.format(record)}\n".encode(errors="backslashreplace"))
        finally:
            os.close(descriptor)
