"""The directory of a run: its name and its layout. One per run, never reused by accident."""

import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ddpm_cli.io import durable, lock, plain_files

CONFIG_FILE = "config.yaml"  # for reading; what a run resumes from is in its checkpoints
RUN_FILE = "run.json"  # see `run_identity`
BEST_FILE = "best.json"  # see `training.best`
LOG_FILE = "train.log"
METRICS_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped_images.txt"
DATA_FILE = "data.png"
LOCK_FILE = ".lock"
TENSORBOARD = "tensorboard"
PREVIEWS = "previews"
CHECKPOINTS = "checkpoints"
AVERAGES = "averages"
LOGGERS = "loggers"  # what those loggers keep that work in a process of their own
SAMPLES = "samples"
EVAL = "eval"
TIMESTEPS = "timesteps"  # chosen for its checkpoints, see `sampling.optimized`
PROFILE = "profile"
HYDRA = ".hydra"  # how the configuration was composed, as Hydra's users know it
MOST_BEST = 2**12  # bytes of best.json; ours has a hundred


def step_name(step: int) -> str:
    """The name of a step's checkpoint, snapshot of averages or preview, without a suffix."""
    return f"step_{step:08d}"


def step_of(path: Path, suffix: str = "") -> int | None:
    """The step in a name that is `step_name` of one and `suffix`; None for any other name."""
    number = path.name.removeprefix("step_").removesuffix(suffix)
    if not (number.isascii() and number.isdecimal()):
        return None
    step = int(number)
    return step if path.name == f"{step_name(step)}{suffix}" else None


def by_step(directory: Path, suffix: str = "") -> dict[int, Path]:
    """The entries of a directory that `step_of` recognises, by step and sorted by it."""
    paths = directory.glob(f"step_*{suffix}")
    return dict(sorted((step, path) for path in paths if (step := step_of(path, suffix)) is not None))


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a plain part of a path; `=` and `,` would break `ckpt=...` on the shell."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"may contain only letters, digits, '_', '-' and '.', got {name!r}")
    if len(name) > 200:
        raise ValueError(f"may be at most 200 characters long, got {len(name)}")


def plain_name(text: str) -> str:
    """A name that `check_name` accepts, made from any text."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip(".-") or "run"


def create(output_dir: str | Path, name: str) -> Path:
    """Create and return a new directory `output_dir/name/<date>_<time>`, with `-2`, `-3`... appended if it exists.

    Raises:
        OSError: if it cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    attempt = 1
    while True:
        directory = Path(output_dir) / name / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            durable.make_directory(directory)
        except FileExistsError:
            if not directory.is_dir():
                raise
            attempt += 1
        else:
            return directory


def is_dated(directory: Path) -> bool:
    """Whether a directory is called <date>_<time>, as `create` calls them."""
    return re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?", directory.name) is not None


def best_checkpoint(file: Path) -> Path:
    """The checkpoint that a run's best.json names; the file may be anybody's, and the checkpoint is in that run.

    Raises:
        ValueError: if it names none, or one that is not there.
    """
    try:
        found = json.loads(plain_files.read(file, MOST_BEST))
        step = found["step"]
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**53:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} names no checkpoint") from error
    checkpoint = file.parent / CHECKPOINTS / step_name(step)
    if not checkpoint.is_dir():
        raise ValueError(f"{file} names step {step:,}, which has no checkpoint")
    return checkpoint


def run_and_checkpoint(named: str) -> tuple[Path, Path | None]:
    """The run directory that `resume=` or `fork=` names, and the checkpoint in it if one is named.

    Raises:
        ValueError: if it names neither.
    """
    path = Path(named)
    if path.name == BEST_FILE and os.path.isfile(path):
        path = best_checkpoint(path)
    if not named or not os.path.isdir(path):  # False too for what can be no path, as a name of 300 letters
        raise ValueError(f"no such run directory: {named!r}")
    if path.name == CHECKPOINTS:
        return path.parent, None
    if step_of(path) is not None and path.absolute().parent.name == CHECKPOINTS:
        return path.absolute().parent.parent, path
    if not (path / CHECKPOINTS).is_dir():
        raise ValueError(f"{path} holds no checkpoint")
    return path, None


def keep_hydra(directory: Path, files: dict[str, str]) -> None:
    """Write `.hydra/`, replacing an earlier one: each of the files is complete, or absent."""
    folder = directory / HYDRA
    if not folder.is_dir():
        durable.make_directory(folder)
    for name, text in files.items():
        durable.replace(folder / name, text.encode())


@contextmanager
def locked_for_training(directory: Path) -> Iterator[None]:
    """Inside, no other process trains in this run directory: two would mix logs and remove each other's checkpoints.

    Raises:
        BlockingIOError: if another process has locked it; says which.
        ValueError: if something in it is a link, or not the file or folder that it should be.
    """
    _check_entries(directory)
    try:
        release = lock.acquire(directory / LOCK_FILE)
    except BlockingIOError as error:
        raise BlockingIOError(f"{directory}: another process is training there: {error}") from error
    try:
        yield
    finally:
        release()


_FOLDERS = (TENSORBOARD, PREVIEWS, CHECKPOINTS, AVERAGES, LOGGERS, PROFILE, HYDRA)
_FILES = (
    CONFIG_FILE,
    RUN_FILE,
    BEST_FILE,
    LOG_FILE,
    METRICS_FILE,
    SKIPPED_FILE,
    DATA_FILE,
    LOCK_FILE,
    LOCK_FILE + lock.EXISTS,
)
_FILES += tuple(f".{name}.tmp" for name in _FILES)  # as they are while they are written


def _check_entries(directory: Path) -> None:
    """Raise ValueError for an entry that would lead a trainer elsewhere (a link) or make it wait (a pipe)."""
    inner = (path for name in _FOLDERS for path in (directory / name).glob("*"))
    for path in itertools.chain(directory.iterdir(), inner):
        if path.is_symlink():
            raise ValueError(f"{path} is a link; all of a run's files must be in its own directory")
        if path.name in _FOLDERS and not path.is_dir():
            raise ValueError(f"{path} is not a directory")
        if (
            path.name in _FILES or path.parent.name in (TENSORBOARD, PREVIEWS, AVERAGES, PROFILE, HYDRA)
        ) and not path.is_file():
            raise ValueError(f"{path} is not a plain file")
        if path.parent.name == LOGGERS and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is neither a plain file nor a directory")
