"""Tensors from other programs' files: safetensors, or files of torch.save, from which no code is run."""

import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_cli.checkpoint import CheckpointError
from ddpm_cli.checkpoint.files import opened
from ddpm_cli.checkpoint.metadata import HEADER_KEY
from ddpm_cli.config.errors import shown
from ddpm_cli.conversion.imported import ConversionError
from ddpm_cli.io import plain_files

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS = ".safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
MOST_PICKLE = 2**26  # bytes of the pickle in a file of torch.save, which holds names and shapes but no numbers


def read_tensors(file: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        ConversionError: if it is damaged, or a checkpoint of ours.
    """
    _check_plain(file)
    try:
        with opened(Path(os.path.realpath(file))) as tensors:  # a hub's cache is made of links
            if HEADER_KEY in (tensors.metadata() or {}):
                raise ConversionError(f"{file} is a model of ddpm-cli already: use it with ckpt= or init=")
            names = tensors.keys()
            return {name: tensors.get_tensor(name) for name in names}
    except CheckpointError as error:
        raise ConversionError(str(error)) from error


def read_pickled(file: Path) -> Any:
    """The content of a file of torch.save: tensors, numbers, texts, lists and dicts; nothing that would run code.

    Raises:
        ConversionError: if it is damaged, holds other objects, or would take more memory than it has bytes.
    """
    import torch

    size = _check_plain(file)
    _check_zip(file, size)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever comes of bytes that may be anybody's
        raise ConversionError(f"{file}: {_reason(error)}") from error
    taken = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(found))
    if taken > size:
        raise ConversionError(f"{file} is damaged: {taken:,} bytes of tensors in a file of {size:,}")
    return found


def state_dict(found: Any) -> "dict[str, Tensor] | None":
    """A dict of tensors by name, and nothing else; None for any other object."""
    import torch

    if not isinstance(found, dict) or not found:
        return None
    named = all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items())
    return dict(found) if named else None


def _check_plain(file: Path) -> int:
    try:
        return plain_files.size(file)
    except OSError as error:
        raise ConversionError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _check_zip(file: Path, size: int) -> None:
    """Refuse archives of torch.save that would grow when they are read, or whose checksums are wrong.

    torch looks at neither. Its files of before 2020 are no archives: in them everything has the length that it takes.
    """
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            wrong = _wrong_with(archive, size)
    except Exception as error:  # whatever comes of bytes that may be anybody's
        raise ConversionError(f"{file} is damaged: {shown(str(error))}") from error
    if wrong is not None:
        raise ConversionError(f"{file} is damaged: {wrong}")


def _wrong_with(archive: zipfile.ZipFile, size: int) -> str | None:
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > size:
        return "its parts are longer than the file"
    if any(entry.file_size > MOST_PICKLE for entry in entries if entry.filename.endswith(".pkl")):
        return f"its pickle is longer than {MOST_PICKLE:,} bytes"
    damaged = archive.testzip()
    return None if damaged is None else f"the checksum of {shown(damaged)} in it is wrong"


def _reason(error: Exception) -> str:
    """Why torch did not load a file, in one line."""
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global|operand)[^\w]*([\w.]+)", text)
    if asked is not None:
        name = shown(next(filter(None, asked.groups())))
        return (
            f"asks for {name}: loading it could run any code, so it is not loaded; "
            "save its state_dict alone as safetensors, which can be read"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"is damaged, or was not written by torch.save: {shown(first)}"


def _tensors_in(found: Any) -> "list[Tensor]":
    """Every tensor in nested dicts and lists, each of which is visited once."""
    import torch

    tensors, open_values, seen = [], [found], set()
    while open_values:
        value = open_values.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, dict):
            open_values += value.values()
        elif isinstance(value, list | tuple):
            open_values += value
    return tensors
