"""Which checkpoints there are, and whether they are what was saved."""

import hashlib
import json
import os
import stat
from pathlib import Path

from ddpm_cli.checkpoint.metadata import (
    EMA_FILE,
    FILES,
    MANIFEST_FILE,
    MOST_TEXT,
    OWN_KEY,
    CheckpointError,
    manifest_text,
)


def newest(run_directory: Path) -> Path:
    """The checkpoint of the highest step in a run, whole or not.

    Raises:
        CheckpointError: if there is none.
    """
    found = all_of(run_directory / "checkpoints")
    if not found:
        raise CheckpointError(f"{run_directory} holds no checkpoint")
    return found[-1]


def newest_whole(run_directory: Path) -> tuple[Path, dict[Path, str]]:
    """The checkpoint of the highest step that is not damaged, and for each newer one what is wrong with it.

    Raises:
        CheckpointError: if there is no checkpoint, or none is whole; says what is wrong with each.
    """
    newest(run_directory)
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(all_of(run_directory / "checkpoints")):
        try:
            verify(checkpoint, *FILES)
        except CheckpointError as error:
            damaged[checkpoint] = str(error)
        else:
            return checkpoint, damaged
    raise CheckpointError(f"no checkpoint in {run_directory} is whole: {'; '.join(damaged.values())}")


def find(path: str | Path) -> Path:
    """What `ckpt=` means: the newest checkpoint of a run directory, a checkpoint directory, or its EMA file.

    Returns:
        A checkpoint directory, or a single `.safetensors` file.

    Raises:
        CheckpointError: if the path is none of these.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist")
    if path.is_file():
        if path.parent.joinpath(MANIFEST_FILE).is_file() and path.name == EMA_FILE:
            return path.parent
        if path.suffix == ".safetensors":
            return path
    elif path.name.startswith("step_") or (path / MANIFEST_FILE).is_file():
        return path
    elif (path / "checkpoints").is_dir():
        return newest(path)
    elif path.name == "checkpoints":
        return newest(path.parent)
    raise CheckpointError(f"{path} is neither a run directory nor a checkpoint nor an EMA file ({EMA_FILE})")


def all_of(directory: Path) -> list[Path]:
    """All of a run, oldest first: also those that have lost files, which must be noticed and not passed over."""
    if directory.is_symlink():
        raise CheckpointError(f"{directory} is a link; a run's checkpoints lie in the run")
    found = [path for path in directory.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step a checkpoint directory is named by."""
    return int(checkpoint.name.removeprefix("step_"))


def verify(checkpoint: Path, *names: str) -> None:
    """Compare files of a checkpoint with its manifest.

    Raises:
        CheckpointError: naming the first file that is missing or differs.
    """
    if checkpoint.is_symlink():
        raise CheckpointError(f"{checkpoint} is a link; a checkpoint lies in its run")
    try:
        listed = _listed(read_text(checkpoint / MANIFEST_FILE))
        expected = {name: (int(listed[name]["bytes"]), str(listed[name]["sha256"])) for name in names}
    except (AttributeError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{checkpoint / MANIFEST_FILE} is damaged: {type(error).__name__}: {error}") from error
    for name, (count, sha256) in expected.items():
        file = checkpoint / name
        found = size_of(file)
        if found != count:
            raise CheckpointError(f"{file} is damaged: {found} bytes, should be {count} by {MANIFEST_FILE}")
        if fingerprint(file) != sha256:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {MANIFEST_FILE}")


def _listed(manifest: str) -> dict[str, dict]:
    """What a manifest says of each file, if it is as it was written. The first ones did not hold their own SHA-256."""
    found = json.loads(manifest)
    listed = {name: entry for name, entry in found.items() if name != OWN_KEY}
    if OWN_KEY in found and manifest != manifest_text(listed):
        raise ValueError("its own SHA-256 is another")
    if not listed.keys() <= set(FILES):
        raise ValueError(f"lists {sorted(listed)}")
    return listed


def pinned_file(checkpoint: Path) -> Path:
    """The file whose SHA-256 stands for everything in a checkpoint: the manifest, or a lone EMA file itself."""
    return checkpoint / MANIFEST_FILE if checkpoint.is_dir() else checkpoint


def fingerprint(file: Path) -> str:
    """SHA-256 of a file of a checkpoint, in hexadecimal.

    Raises:
        CheckpointError: if it cannot be read, or is no plain file.
    """
    size_of(file)
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


def size_of(file: Path) -> int:
    """Bytes of a file of a checkpoint; a link might lead outside it, and a pipe would never end."""
    try:
        found = os.lstat(file)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise CheckpointError(f"{file} {'is missing' if missing else f'cannot be read: {error.strerror}'}") from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{file} is damaged: not a plain file")
    return found.st_size


def read_text(file: Path) -> str:
    if size_of(file) > MOST_TEXT:
        raise CheckpointError(f"{file} is damaged: larger than {MOST_TEXT} bytes")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
