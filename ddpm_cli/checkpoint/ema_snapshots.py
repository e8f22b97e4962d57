"""Snapshots of a run's power-function averages, kept for good, from which averages of other lengths are reconstructed.

averages/step_00005000.safetensors    float32 weights; in the header the description, the number of updates so far, and
                                      the SHA-256 of these and the weights
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
from torch import Tensor

from ddpm_cli.checkpoint.files import Shapes, opened, shapes_in
from ddpm_cli.checkpoint.metadata import HEADER_KEY, CheckpointError, Metadata, parse
from ddpm_cli.checkpoint.tensor_names import below
from ddpm_cli.checkpoint.verify import Verified
from ddpm_cli.checkpoint.write import SPARE, as_safetensors, size
from ddpm_cli.config.errors import shown
from ddpm_cli.ema.posthoc import posthoc_prefix
from ddpm_cli.io import durable
from ddpm_cli.io.run_dir import AVERAGES, CHECKPOINTS, by_step, step_name

_SUFFIX = ".safetensors"
_UPDATES_KEY = "updates"
_SHA256_KEY = "sha256"


class Snapshot(NamedTuple):
    """What is kept in memory of a snapshot that fits its run: little, as there may be many."""

    file: Path
    step: int
    updates: int  # t of the averages
    sha256: str  # of all of it, as its header says


# Writing -------------------------------------------------------------------------------------------------------------


def save_snapshot(directory: Path, tensors: dict[str, Tensor], description: Metadata, *, updates: int) -> Path:
    """Write `directory/step_<step>.safetensors` durably: under that name it is complete. An existing one is replaced.

    Args:
        directory: the run's `averages/`; created if missing.

    Raises:
        OSError: if the disk is full or cannot be written.
    """
    final = directory / f"{step_name(description.step)}{_SUFFIX}"
    temporary = directory / f".{final.name}.tmp"
    if directory.is_dir():
        durable.sync(directory.parent)  # whoever made it may have been killed before this
    else:
        durable.make_directory(directory)
    for name in os.listdir(directory):
        if name.startswith(".step_"):  # left by a save that was cut short
            os.unlink(directory / name)
    durable.check_space(directory, size(tensors, {}) + SPARE)
    text = description.as_json()
    digest = _begun(text, str(updates))
    for data in itertools.islice(as_safetensors(tensors, {}), 2, None):  # after the header and its length
        digest.update(data)
    header = {HEADER_KEY: text, _UPDATES_KEY: str(updates), _SHA256_KEY: digest.hexdigest()}
    try:
        durable.write_new(temporary, as_safetensors(tensors, header))
        durable.move(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return final


def remove_snapshots(directory: Path, *, after: int) -> None:
    """Remove the snapshots of steps after `after`, which will be made again."""
    removed = [file for step, file in _all_of(directory).items() if step > after]
    for file in removed:
        os.unlink(file)
    if removed:
        durable.sync(directory)


# Reading -------------------------------------------------------------------------------------------------------------


def snapshots_of(checkpoint: Verified, lengths: Sequence[float], weights: Shapes) -> list[Snapshot]:
    """The snapshots of a checkpoint's run up to its step, oldest first; empty if the checkpoint is not in a run.

    Their headers are compared; none of their tensors is read.

    Args:
        lengths: that each must hold.
        weights: the shapes of the network's tensors, parameters and buffers; a snapshot holds only parameters, and all
            hold the same ones.

    Raises:
        CheckpointError: if one is not ours, is of another step than its name says, of another run, or does not fit.
    """
    directory = checkpoint.path.absolute().parent
    if directory.name != CHECKPOINTS:
        return []
    files = [file for step, file in _all_of(directory.parent / AVERAGES).items() if step <= checkpoint.metadata.step]
    if not files:
        return []
    with opened(files[-1], header_only=True) as tensors:
        parameters = below(posthoc_prefix(lengths[0]), shapes_in(tensors))
    expected = {
        f"{posthoc_prefix(length)}{name}": shape
        for length in lengths
        for name, shape in weights.items()
        if name in parameters
    }
    found: list[Snapshot] = []
    for file in files:
        found.append(_snapshot(file, checkpoint.metadata, expected))
        earlier = found[-2].updates if len(found) > 1 else 1
        if not earlier <= found[-1].updates <= found[-1].step:
            raise _misnamed(file, found[-1].step, found[-1].updates)
    return found


def verify_snapshot(snapshot: Snapshot) -> None:
    """Compare a snapshot with the SHA-256 in its header.

    Raises:
        CheckpointError: if it is damaged.
    """
    file = snapshot.file
    with opened(file, header_only=True) as tensors:
        header = tensors.metadata() or {}
    _described(file, header)
    if not snapshot.sha256 == header.get(_SHA256_KEY) == _sha256(file, header):
        raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in its header")


def load_snapshot(snapshot: Snapshot) -> dict[str, Tensor]:
    """The float32 weights of a snapshot that has been verified, on the CPU.

    Raises:
        CheckpointError: if it cannot be read.
    """
    with opened(snapshot.file) as tensors:
        names = tensors.keys()
        return {name: tensors.get_tensor(name) for name in names}


def _snapshot(file: Path, of: Metadata, expected: Shapes) -> Snapshot:
    """A snapshot of the run in a checkpoint's description, checked by its header."""
    with opened(file, header_only=True) as tensors:
        header = tensors.metadata() or {}
        own, updates = _described(file, header)
        if file.name != f"{step_name(own.step)}{_SUFFIX}":
            raise _misnamed(file, own.step, updates)
        if any(own.config.get(key) != of.config.get(key) for key in ("model", "ema")):
            raise CheckpointError(f"{file} is of another run: its model or ema is not the checkpoint's")
        _compare(file, tensors, expected)
    return Snapshot(file, own.step, updates, header.get(_SHA256_KEY, ""))


def _misnamed(file: Path, step: int, updates: int) -> CheckpointError:
    return CheckpointError(f"{file} is damaged: it says step {step}, {updates} updates")


def _compare(file: Path, tensors: safetensors.safe_open, expected: Shapes) -> None:
    found = shapes_in(tensors)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            has, should = (str(list(shapes[name])) if name in shapes else "missing" for shapes in (found, expected))
            what = f"{shown(name)} is {shown(has)}, should be {shown(should)}"
            raise CheckpointError(f"{file} does not fit the checkpoint: {what}")
    if any(tensors.get_slice(name).get_dtype() != "F32" for name in found):
        raise CheckpointError(f"{file} is damaged: not all of it is float32")


def _described(file: Path, header: dict[str, str]) -> tuple[Metadata, int]:
    """The description and the number of updates in a header."""
    if not {HEADER_KEY, _UPDATES_KEY} <= header.keys():
        raise CheckpointError(f"{file} is not a snapshot of ddpm-cli: its header has no description")
    updates = header[_UPDATES_KEY]
    if not (updates.isdecimal() and updates.isascii() and len(updates) <= 16):
        raise CheckpointError(f"{file} is damaged: its header says {updates[:20]!r} updates")
    return parse(header[HEADER_KEY], file), int(updates)


def _all_of(directory: Path) -> dict[int, Path]:
    """The files of a run's `averages/` by the step in their name; others are not looked at."""
    if directory.is_symlink():
        raise CheckpointError(f"{directory} is a link; the averages must be in the run's own directory")
    return by_step(directory, _SUFFIX)


def _sha256(file: Path, header: dict[str, str]) -> str:
    """SHA-256 of a header's description and updates, and of the file's bytes after the header."""
    digest = _begun(header[HEADER_KEY], header[_UPDATES_KEY])
    with file.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def _begun(description: str, updates: str) -> "hashlib._Hash":
    return hashlib.sha256(f"{description}\n{updates}\n".encode())
