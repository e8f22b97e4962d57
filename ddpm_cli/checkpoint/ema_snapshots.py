"""Snapshots of a run's power-function averages, kept for good: what averages of other widths are made of afterwards.

averages/step_00005000.safetensors    float32 weights; in the header the description, the updates the averages had
                                      followed, and the SHA-256 of these and the weights
"""

import contextlib
import hashlib
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import safetensors
from torch import Tensor

from ddpm_cli.checkpoint.metadata import HEADER_KEY, CheckpointError, Metadata, parse
from ddpm_cli.checkpoint.read import reading
from ddpm_cli.checkpoint.write import SPARE, as_safetensors, size
from ddpm_cli.io import durable

_UPDATES_KEY = "updates"
_SHA256_KEY = "sha256"


class Snapshot(NamedTuple):
    """What is kept in memory of a snapshot that fits its run: little, for there may be many."""

    file: Path
    step: int
    updates: int  # t of the averages
    sha256: str  # of all of it, as its header says


def save_snapshot(directory: Path, tensors: dict[str, Tensor], description: Metadata, *, updates: int) -> Path:
    """Write `directory/step_<step>.safetensors` durably: under that name it is whole. One that is there is replaced.

    Args:
        directory: the run's `averages/`; made if missing.

    Raises:
        OSError: if the disk is full or cannot be written.
    """
    final = directory / _name(description.step)
    temporary = directory / f".{final.name}.tmp"
    if directory.is_dir():
        durable.sync(directory.parent)  # whoever made it may have been killed before this
    else:
        durable.make_directory(directory)
    for name in os.listdir(directory):
        if name.startswith(".step_"):  # left by a save that was cut short
            os.unlink(directory / name)
    durable.check_space(directory, size(tensors, {}) + SPARE)
    digest = _begun(description.as_json(), str(updates))
    for data in itertools.islice(as_safetensors(tensors, {}), 2, None):  # after the header and its length
        digest.update(data)
    header = {HEADER_KEY: description.as_json(), _UPDATES_KEY: str(updates), _SHA256_KEY: digest.hexdigest()}
    try:
        durable.write_new(temporary, as_safetensors(tensors, header))
        durable.move(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return final


def remove_snapshots(directory: Path, *, after: int) -> None:
    """Remove the snapshots of steps after `after`, which are about to be made again."""
    removed = [file for step, file in _by_step(directory).items() if step > after]
    for file in removed:
        os.unlink(file)
    if removed:
        durable.sync(directory)


def snapshots_of(checkpoint: Path, description: Metadata, shapes: dict[str, tuple[int, ...]]) -> list[Snapshot]:
    """The snapshots of a checkpoint's run up to its step, oldest first; empty if it lies in no run.

    What their headers say is compared; none of their tensors is read.

    Args:
        description: of the checkpoint.
        shapes: of the tensors that each must have.

    Raises:
        CheckpointError: if one is not ours, is of another step than its name says, of another run, or does not fit.
    """
    checkpoint = checkpoint.absolute()
    if checkpoint.parent.name != "checkpoints":
        return []
    found: list[Snapshot] = []
    for named, file in sorted(_by_step(checkpoint.parent.parent / "averages").items()):
        if named <= description.step:
            with reading(file) as opened:
                metadata = opened.metadata() or {}
                own, updates = _described(file, metadata)
                if own.step != named or not (found[-1].updates if found else 1) <= updates <= named:
                    raise CheckpointError(f"{file} is damaged: it says step {own.step}, {updates} updates")
                if any(own.config.get(key) != description.config[key] for key in ("model", "ema")):
                    raise CheckpointError(f"{file} is of another run: its model or ema is not the checkpoint's")
                _compare(file, opened, shapes)
            found.append(Snapshot(file, named, updates, metadata.get(_SHA256_KEY, "")))
    return found


def load_snapshot(snapshot: Snapshot) -> dict[str, Tensor]:
    """The float32 weights of a snapshot that `snapshots_of` has found, on the CPU.

    Raises:
        CheckpointError: if it is damaged.
    """
    file = snapshot.file
    with reading(file) as opened:
        metadata = opened.metadata() or {}
        _described(file, metadata)
        if not snapshot.sha256 == metadata.get(_SHA256_KEY) == _sha256(file, metadata):
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in its header")
        stored = opened.keys()
        return {name: opened.get_tensor(name) for name in stored}


def _compare(file: Path, opened: safetensors.safe_open, shapes: dict[str, tuple[int, ...]]) -> None:
    names = opened.keys()
    stored = {name: opened.get_slice(name) for name in names}
    found = {name: tuple(tensor.get_shape()) for name, tensor in stored.items()}
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            has, should = (list(of[name]) if name in of else "missing" for of in (found, shapes))
            raise CheckpointError(f"{file} does not fit the checkpoint: {name} is {has}, should be {should}")
    if any(tensor.get_dtype() != "F32" for tensor in stored.values()):
        raise CheckpointError(f"{file} is damaged: not all of it is float32")


def _described(file: Path, metadata: dict[str, str]) -> tuple[Metadata, int]:
    """The description and the updates that a header says."""
    if not {HEADER_KEY, _UPDATES_KEY} <= metadata.keys():
        raise CheckpointError(f"{file} is no snapshot of ddpm-cli: its header has no description")
    updates = metadata[_UPDATES_KEY]
    if not (updates.isdecimal() and updates.isascii() and len(updates) <= 16):
        raise CheckpointError(f"{file} is damaged: its header says {updates[:20]!r} updates")
    return parse(metadata[HEADER_KEY], file), int(updates)


def _by_step(directory: Path) -> dict[int, Path]:
    """The files of a run's `averages/` by the step in their name; others are not looked at."""
    if directory.is_symlink():
        raise CheckpointError(f"{directory} is a link; a run's averages lie in the run")
    found = {}
    for file in directory.glob("step_*.safetensors"):
        number = file.stem.removeprefix("step_")
        if number.isdecimal() and file.name == _name(int(number)):
            found[int(number)] = file
    return found


def _name(step: int) -> str:
    return f"step_{step:08d}.safetensors"


def _sha256(file: Path, metadata: dict[str, str]) -> str:
    """SHA-256 of what a header says, and of the file's bytes after it."""
    digest = _begun(metadata[HEADER_KEY], metadata[_UPDATES_KEY])
    with file.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def _begun(description: str, updates: str) -> "hashlib._Hash":
    return hashlib.sha256(f"{description}\n{updates}\n".encode())
