"""Reading a checkpoint: verified first, its shapes checked before any memory is taken."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors
from torch import Tensor

from ddpm_cli.checkpoint.find import read_text, size_of, verify
from ddpm_cli.checkpoint.metadata import (
    DESCRIPTION_FILE,
    EMA_FILE,
    HEADER_KEY,
    MOST_HEADER,
    TRAINING_FILE,
    CheckpointError,
    Metadata,
    parse,
)

# What a file is about to bring into memory: the shape of every tensor by name. Called before any is read; may refuse.
Check = Callable[[Metadata, dict[str, tuple[int, ...]]], None]


def load_ema(checkpoint: Path, *, check: Check | None = None) -> tuple[dict[str, Tensor], Metadata]:
    """EMA weights on the CPU and the description, from what `find` returned.

    Args:
        check: gets the description and the shapes of the tensors before any of them is read.

    Raises:
        CheckpointError: if it is damaged or not ours.
    """
    if checkpoint.is_dir():
        verify(checkpoint, EMA_FILE)
        checkpoint = checkpoint / EMA_FILE
    with reading(checkpoint) as file:
        metadata = file.metadata() or {}
        if HEADER_KEY not in metadata:
            raise CheckpointError(f"{checkpoint} is no EMA file of ddpm-cli: its header has no description")
        description = parse(metadata[HEADER_KEY], checkpoint)
        return _tensors(file, description, check, prefix=""), description


def load_training(
    checkpoint: Path, *, check: Check | None = None, prefix: str = ""
) -> tuple[dict[str, Tensor], Metadata]:
    """Training state on the CPU and the description, from a checkpoint directory.

    Args:
        check: gets the description and the shapes of the tensors before any of them is read.
        prefix: only of the tensors whose names begin so.

    Raises:
        CheckpointError: if it is damaged, not ours, or only an EMA file.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} holds the EMA weights alone; this needs a whole checkpoint directory")
    verify(checkpoint, TRAINING_FILE, DESCRIPTION_FILE)
    description = parse(read_text(checkpoint / DESCRIPTION_FILE), checkpoint)
    with reading(checkpoint / TRAINING_FILE) as file:
        return _tensors(file, description, check, prefix), description


@contextlib.contextmanager
def reading(file: Path) -> Iterator[safetensors.safe_open]:
    """A safetensors file whose header is of a sensible size; the library checks the rest of it.

    Raises:
        CheckpointError: naming the file.
    """
    length = size_of(file)
    try:
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        # The library takes up to 30 times its length in memory.
        if header > min(max(MOST_HEADER, length // 16), length):
            raise CheckpointError(f"{file} is damaged: a header of {header} bytes in a file of {length}")
        with safetensors.safe_open(file, "pt") as opened:
            yield opened
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _tensors(file: safetensors.safe_open, description: Metadata, check: Check | None, prefix: str) -> dict[str, Tensor]:
    stored = file.keys()
    names = [name for name in stored if name.startswith(prefix)]
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    if check is not None:
        check(description, shapes)
    return {name: file.get_tensor(name) for name in names}
