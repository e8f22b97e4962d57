"""What a run says: on the terminal, above the progress bar, and with times in its log file."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("ddpm_cli")


class _Terminal(logging.Handler):
    """Prints records to stdout without tearing a progress bar, and leaves out what the bar already shows."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_bar", False) and sys.stderr.isatty() and sys.stdout.isatty():
            return
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Send `log` to the terminal and append it to `file` while inside."""
    in_file = logging.FileHandler(file, encoding="utf-8")
    in_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    terminal = _Terminal()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(in_file)
    log.addHandler(terminal)
    try:
        yield
    finally:
        log.removeHandler(terminal)
        log.removeHandler(in_file)
        in_file.close()
