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

import torch
from torch import Tensor

from ddpm_cli import durable
from ddpm_cli.checkpoint.description import HEADER_KEY, CheckpointError, Description, parse
from ddpm_cli.checkpoint.loading import reading
from ddpm_cli.checkpoint.saving import SPARE, as_safetensors, size

_UPDATES_KEY = "updates"
_SHA256_KEY = "sha256"


class Snapshot(NamedTuple):
    """What the header of a snapshot says."""

    file: Path
    description: Description
    updates: int  # t of the averages


def save_snapshot(directory: Path, tensors: dict[str, Tensor], description: Description, *, updates: int) -> Path:
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


def snapshots_of(checkpoint: Path, *, step: int) -> list[Snapshot]:
    """The snapshots of a checkpoint's run up to its `step`, oldest first; empty if it lies in no run.

    Raises:
        CheckpointError: if one is not ours, or is of another step than its name says.
    """
    checkpoint = checkpoint.absolute()
    if checkpoint.parent.name != "checkpoints":
        return []
    found: list[Snapshot] = []
    for named, file in sorted(_by_step(checkpoint.parent.parent / "averages").items()):
        if named <= step:
            with reading(file) as opened:
                snapshot = _described(file, opened.metadata() or {})
            before = found[-1].updates if found else 1
            if snapshot.description.step != named or not before <= snapshot.updates <= named:
                raise CheckpointError(
                    f"{file} is damaged: it says step {snapshot.description.step}, {snapshot.updates} updates"
                )
            found.append(snapshot)
    return found


def load_snapshot(snapshot: Snapshot, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The float32 weights of a snapshot, on the CPU.

    Args:
        shapes: of the tensors that it must have; compared before any is read.

    Raises:
        CheckpointError: if it is damaged, or has others.
    """
    file = snapshot.file
    with reading(file) as opened:
        stored = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        for name in sorted(stored.keys() | shapes.keys()):
            if stored.get(name) != shapes.get(name):
                has, should = (list(of[name]) if name in of else "missing" for of in (stored, shapes))
                raise CheckpointError(f"{file} does not fit the checkpoint: {name} is {has}, should be {should}")
        metadata = opened.metadata() or {}
        if _described(file, metadata) != snapshot or metadata.get(_SHA256_KEY) != _sha256(file, metadata):
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in its header")
        tensors = {name: opened.get_tensor(name) for name in stored}
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise CheckpointError(f"{file} is damaged: not all of it is float32")
    return tensors


def _described(file: Path, metadata: dict[str, str]) -> Snapshot:
    if not {HEADER_KEY, _UPDATES_KEY} <= metadata.keys():
        raise CheckpointError(f"{file} is no snapshot of ddpm-cli: its header has no description")
    updates = metadata[_UPDATES_KEY]
    if not (updates.isdecimal() and updates.isascii() and len(updates) <= 16):
        raise CheckpointError(f"{file} is damaged: its header says {updates[:20]!r} updates")
    return Snapshot(file, parse(metadata[HEADER_KEY], file), int(updates))


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
