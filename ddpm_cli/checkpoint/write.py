"""Saving a checkpoint: all or nothing, and older ones removed only when it is safe."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import PIL
import torch
from torch import Tensor

from ddpm_cli import __version__
from ddpm_cli.checkpoint.find import all_of
from ddpm_cli.checkpoint.metadata import (
    DESCRIPTION_FILE,
    EMA_FILE,
    HEADER_KEY,
    MANIFEST_FILE,
    TRAINING_FILE,
    Metadata,
    manifest_text,
)
from ddpm_cli.io import durable
from ddpm_cli.io.run_dir import step_name

SPARE = 2**20  # bytes to have free beside the tensors


def save(directory: Path, *, ema: dict[str, Tensor], training: dict[str, Tensor], description: Metadata) -> Path:
    """Write `directory/step_<step>` durably: when this returns it survives a power cut.

    The files are written to a hidden directory, flushed to the disk, and renamed into place: whatever happens on the
    way, what stands under the final name is whole.

    Args:
        directory: the run's `checkpoints/`; made if missing.

    Raises:
        FileExistsError: if that step has been saved.
        OSError: if the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    final = directory / step_name(description.step)
    temporary = directory / f".{final.name}.tmp"
    if directory.is_dir():
        durable.sync(directory.parent)  # whoever made it may have been killed before this
    else:
        durable.make_directory(directory)
    if os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, "this step has been saved", str(final))
    _remove_leftovers(directory)
    durable.check_space(directory, size(ema, training) + SPARE)
    try:
        os.mkdir(temporary)
        text = description.as_json()
        manifest = {
            EMA_FILE: durable.write_new(temporary / EMA_FILE, as_safetensors(ema, {HEADER_KEY: text})),
            TRAINING_FILE: durable.write_new(temporary / TRAINING_FILE, as_safetensors(training, {})),
            DESCRIPTION_FILE: durable.write_new(temporary / DESCRIPTION_FILE, [f"{text}\n".encode()]),
        }
        listed = {name: {"bytes": count, "sha256": sha256} for name, (count, sha256) in manifest.items()}
        durable.write_new(temporary / MANIFEST_FILE, [manifest_text(listed).encode()])
        durable.sync(temporary)
        durable.move(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            if final.exists():  # renamed, but perhaps not for good: it was never announced
                durable.move(final, temporary)
            durable.remove_tree(temporary)
        raise
    return final


def remove_old(directory: Path, *, keep_last: int, keep_every: int = 0, best: int | None = None) -> None:
    """Remove all checkpoints but the newest `keep_last`, every one whose step is a multiple of `keep_every`, and one.

    Args:
        best: the step of that one; None: there is none.

    Raises:
        OSError: if one cannot be removed; none is left in halves under its name.
    """
    for step, old in list(all_of(directory).items())[:-keep_last]:
        if step != best and (keep_every == 0 or step % keep_every != 0):
            hidden = directory / f".{old.name}.removed"
            durable.move(old, hidden)
            _remove(hidden)


def set_aside(checkpoint: Path, reason: str) -> Path:
    """Rename a checkpoint so that it neither counts as one nor is lost; returns its new place.

    Args:
        reason: a word to put before its name.
    """
    target = checkpoint.with_name(f"{reason}_{checkpoint.name}")
    while os.path.lexists(target):
        target = target.with_name(f"{target.name}_again")
    durable.move(checkpoint, target)
    return target


def size(ema: dict[str, Tensor], training: dict[str, Tensor]) -> int:
    """Bytes that a checkpoint of these tensors takes, without its few kilobytes of text."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*ema.values(), *training.values()))


def versions() -> dict[str, str]:
    """What wrote a checkpoint, for whoever has to find out later."""
    return {"ddpm_cli": __version__, "torch": str(torch.__version__), "pillow": PIL.__version__}


def _remove_leftovers(directory: Path) -> None:
    """Remove what saves and removals that were cut short have left."""
    left = [name for name in os.listdir(directory) if name.startswith(".step_")]
    if left:
        durable.sync(directory)  # one may have been a checkpoint, and on the disk may bear that name still
    for name in left:
        _remove(directory / name)


def _remove(path: Path) -> None:
    """Remove a directory and all below it; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        durable.remove_tree(path)
    else:
        os.unlink(path)


_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def as_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file piece by piece, to be hashed and flushed as it is written; one tensor in memory at a time."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"} | metadata}
    end = 0
    # Widest elements first, so that every tensor lies at a multiple of its element; then by name, whatever order they
    # came in: equal states make equal files.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors' bytes start aligned
    yield len(text).to_bytes(8, "little")
    yield text
    for _, tensor in ordered:
        if tensor.numel() > 0:
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
