"""The directory of a run: its name, what lies where in it. One per run, never reused by accident."""

import re
from datetime import datetime
from pathlib import Path

CONFIG_FILE = "config.yaml"  # for reading; what a run goes on from is in its checkpoints
LOG_FILE = "train.log"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples"


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a plain part of a path; `=` and `,` would break `ckpt=...` on the shell."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"may hold letters, digits, '_', '-' and '.', got {name!r}")


def plain_name(text: str) -> str:
    """A name that `check_name` accepts, out of any text."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip(".-") or "run"


def create(output_dir: str | Path, name: str) -> Path:
    """Make and return a new directory `output_dir/name/<date>_<time>`, with `-2`, `-3`... added if that one exists.

    Raises:
        OSError: if it cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    attempt = 1
    while True:
        directory = Path(output_dir) / name / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            if not directory.is_dir():
                raise
            attempt += 1
        else:
            return directory
