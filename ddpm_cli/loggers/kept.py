"""The state of loggers in a run's directory: the run's id with each logger, and the newest step of every figure.

    RUN/loggers/NAME.json    for each logger that works in a process of its own

A step is put down before it is logged: whatever is killed then, no step is logged twice.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_cli.io import plain_files

MOST_TEXT = 2**20  # bytes; ours has a few thousand


class Kept:
    """The state of one logger of a run; empty if it logged elsewhere before, or the file is not ours.

    Args:
        place: where it logs, as `Logger.place` says.

    Attributes:
        id: of the run there; None: it has not been logged there.
        group: that it was given.
    """

    def __init__(self, path: Path, place: str):
        self.path = path
        self._place = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()  # it may hold a password
        self.id: str | None = None
        self.group: str | None = None
        self._logged: dict[str, int] = {}
        found = _read(path)
        if found.get("place") == self._place and isinstance(found.get("id"), str):
            self.id, self.group = found["id"], found["group"] if isinstance(found.get("group"), str) else None
            logged = found.get("logged")
            if isinstance(logged, dict) and all(isinstance(step, int) for step in logged.values()):
                self._logged = logged

    def is_new(self, name: str, step: int) -> bool:
        """Whether a step of a figure has not been logged yet."""
        return step > self._logged.get(name, -1)

    @contextmanager
    def logging(self, names: Iterable[str], step: int) -> Iterator[None]:
        """Inside, a step of some figures is logged; if it fails, it counts as not logged."""
        before = self._logged
        self._logged = before | dict.fromkeys(names, step)
        self.write()
        try:
            yield
        except Exception:
            self._logged = before
            self.write()
            raise

    def write(self) -> None:
        """Not flushed to the disk, for which training would wait: after a power cut a step may be logged twice."""
        content = {"place": self._place, "id": self.id, "group": self.group, "logged": self._logged}
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, self.path)


def _read(path: Path) -> dict:
    try:
        found = json.loads(plain_files.read(path, MOST_TEXT))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
