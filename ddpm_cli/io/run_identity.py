"""The identity of runs: every run has its own, and a name records which of its runs was started last.

    RUN/run.json              the run's id, its name, when it was begun, and what it was forked from
    OUTPUT_DIR/NAME/.newest.json    the id and the directory of the run of that name that was begun last

The names of directories and the clock decide nothing: daylight saving, copies, archives and other machines change them.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_cli.io import durable, lock
from ddpm_cli.io.own_output import FINISHED_FILE, UNFINISHED_FOLDER
from ddpm_cli.io.run_dir import CHECKPOINTS, CONFIG_FILE, RUN_FILE
from ddpm_cli.io.text import printable

NEWEST_FILE = ".newest.json"
LOCK_FILE = ".names.lock"
MOST_TEXT = 2**16  # bytes of such a file; ours have a few hundred


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The identity of a run, independent of the name and place of its directory.

    Args:
        name: under which it was begun; None: it had none, and is not found by one.
        begun_in: the directory that its relative paths were seen from; None: that is not known.
        forked_from: the checkpoint that it began with, of another run; None: it began with new weights.
        fork_of: the id of that run, where it has one.
        init_from: what it took its first weights from: a checkpoint, or somebody else's network; None: from nothing.
        init_weights: which of a checkpoint's.
        init_of: the id of the run that they were trained in, where that is known.
        differs: one line for every option that is another than that run's; where it took weights alone, for those that
            say what weights mean.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    name: str | None = None
    begun: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    begun_in: str | None = None
    forked_from: str | None = None
    fork_of: str | None = None
    init_from: str | None = None
    init_weights: str | None = None
    init_of: str | None = None
    differs: tuple[str, ...] = ()

    def write(self, directory: Path) -> None:
        durable.replace(directory / RUN_FILE, f"{json.dumps(asdict(self), indent=2)}\n".encode())


class Found(NamedTuple):
    """The runs that a name leads to."""

    directory: Path | None  # of the run that is meant; None: there is none yet
    others: list[str]  # runs that were seen beside it, as messages name them


def identity_of(directory: Path) -> Identity | None:
    """The identity of the run in a directory; None if it has none: it is from an early version, or not a run.

    Raises:
        ValueError: if what should say so is not ours.
    """
    file = directory / RUN_FILE
    found = _read(file)
    if found is None:
        return None
    try:
        identity = Identity(**{**found, "differs": tuple(found.get("differs", ()))})
    except TypeError:
        raise ValueError(f"{file} was not written by ddpm-cli; remove it, and the run gets a new identity") from None
    texts = (identity.id, identity.begun, *identity.differs)
    optional = [identity.name, identity.begun_in, identity.forked_from, identity.fork_of]
    optional += [identity.init_from, identity.init_weights, identity.init_of]
    if not all(isinstance(text, str) for text in (*texts, *(text for text in optional if text is not None))):
        raise ValueError(f"{file} was not written by ddpm-cli; remove it, and the run gets a new identity")
    return identity


class Place:
    """The path of a run's directory, also after somebody has moved it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.id = None if (identity := identity_of(directory)) is None else identity.id
        # Windows opens no directories, and moves none in which a file is open.
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY) if hasattr(os, "O_DIRECTORY") else None

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def left(self) -> bool:
        """Whether the directory has been moved or removed."""
        return not _is(self.directory, self.id)

    def moved_to(self) -> Path | None:
        """Where it is now; None: it has been removed, or this system cannot tell."""
        try:
            now = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
        except OSError:
            return None
        return now if now != self.directory.absolute() and _is(now, self.id) else None


def _is(directory: Path, run: str | None) -> bool:
    try:
        identity = identity_of(directory)
    except (OSError, ValueError):
        return False
    return directory.is_dir() and (None if identity is None else identity.id) == run


@contextmanager
def choosing(output_dir: str | Path, name: str) -> Iterator[None]:
    """Inside, no other process starts a run of this name. Raises BlockingIOError if one is doing so."""
    place = Path(output_dir, name)
    if not place.is_dir():
        with suppress(FileExistsError):
            durable.make_directory(place)
    try:
        release = lock.acquire(place / LOCK_FILE)
    except BlockingIOError as error:
        raise BlockingIOError(f"{place}: another process is starting a run there: {error}") from error
    try:
        yield
    finally:
        release()


def remember(output_dir: str | Path, name: str, directory: Path, identity: Identity) -> None:
    """Record this run as the one that `name` means."""
    content = json.dumps({"id": identity.id, "directory": directory.name})
    durable.replace(Path(output_dir, name, NEWEST_FILE), f"{content}\n".encode())


def find(output_dir: str | Path, name: str) -> Found:
    """The run of this `name` that was started last, and the others.

    Raises:
        ValueError: if that cannot be known; the message says what there is, and what to do.
    """
    place = Path(output_dir, name)
    runs = _runs_in(place)
    newest = _read(place / NEWEST_FILE)
    if newest is None:
        # Runs that were begun without a name lie here too if their data is called so: they are none of this name.
        meant = [path for path, identity in runs.items() if identity is None or identity.name is not None]
        if len(meant) > 1:
            listed = _listed(meant)
            raise ValueError(f"{len(meant)} runs are in {place}, and no record says which was started last: {listed}")
    else:
        meant = _same(place, runs, newest)
    directory = meant[0] if meant else None
    own = None if directory is None else runs[directory]
    others = []
    for path, identity in runs.items():
        copy = " (a copy of it)" if own is not None and identity is not None and identity.id == own.id else ""
        if path != directory:
            others.append(f"{printable(path.name)}{copy}")
    return Found(directory, others)


def runs_below(directory: Path) -> list[Path]:
    """The runs in a directory, or in the directories in it, that have saved something, the last started first."""
    found = []
    for pattern in (f"*/{CHECKPOINTS}", f"*/*/{CHECKPOINTS}"):
        for run in (checkpoints.parent for checkpoints in directory.glob(pattern) if checkpoints.is_dir()):
            with suppress(OSError, ValueError):  # of one that cannot be read nobody knows when it was begun
                identity = identity_of(run)
                found.append((("" if identity is None else identity.begun), run.name, run))
    return [run for *_, run in sorted(found, reverse=True)]


def _runs_in(place: Path) -> dict[Path, Identity | None]:
    paths = sorted(place.iterdir()) if place.is_dir() else []
    return {path: identity_of(path) for path in paths if _is_run(path)}


def _is_run(path: Path) -> bool:
    """Whether a run has begun there, also one of before there was a run.json; drawn images have a config.yaml too."""
    if (path / RUN_FILE).is_file():
        return True
    drawn = (path / FINISHED_FILE).exists() or (path / UNFINISHED_FOLDER).exists()
    return (path / CONFIG_FILE).is_file() and ((path / CHECKPOINTS).is_dir() or not drawn)


def _same(place: Path, runs: dict[Path, Identity | None], newest: dict) -> list[Path]:
    """The directory of the recorded run: by its name if that is still the same run, else the only one with its id."""
    of_this_id = [path for path, identity in runs.items() if identity is not None and identity.id == newest.get("id")]
    recorded = place / str(newest.get("directory"))
    if recorded in of_this_id:
        return [recorded]
    if not of_this_id:
        beside = f"; there are {_listed(runs)}" if runs else ""
        raise ValueError(f"{recorded}, the run of this name that was started last, no longer exists{beside}")
    if len(of_this_id) > 1:
        raise ValueError(f"{recorded}, the run of this name that was started last, is now {_listed(of_this_id)}")
    return of_this_id


def _listed(paths: Iterable[Path]) -> str:
    names = [printable(path.name) for path in paths]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{', '.join(names[:8])}{more}"


def _read(file: Path) -> dict[str, Any] | None:
    """The object in a small JSON file, None if there is no such file. Raises ValueError if it is not ours."""
    if not file.is_file():
        if os.path.lexists(file):
            raise ValueError(f"{file} is not a plain file")
        return None
    with file.open("rb") as opened:
        content = opened.read(MOST_TEXT + 1)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or len(content) > MOST_TEXT:
        raise ValueError(f"{file} is not ours")
    return found
