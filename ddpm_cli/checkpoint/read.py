"""Reading the tensors of a verified checkpoint: their shapes are checked before any memory is taken."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ddpm_cli.checkpoint.files import Shapes, opened, shapes_in
from ddpm_cli.checkpoint.metadata import EMA_FILE, TRAINING_FILE
from ddpm_cli.checkpoint.verify import Verified

# Takes the shapes of a file's tensors before any of them is read, and may refuse them.
Check = Callable[[Shapes], None]


def load_ema(checkpoint: Verified, *, check: Check | None = None) -> dict[str, Tensor]:
    """EMA weights on the CPU.

    Args:
        check: gets the shapes of the tensors before any of them is read.

    Raises:
        CheckpointError: if it is damaged.
    """
    return _tensors(checkpoint.file(EMA_FILE), check, prefix="")


def load_training(checkpoint: Verified, *, check: Check | None = None, prefix: str = "") -> dict[str, Tensor]:
    """Training state on the CPU.

    Args:
        check: gets the shapes of the tensors before any of them is read.
        prefix: only of the tensors whose names begin so.

    Raises:
        CheckpointError: if it is damaged.
    """
    return _tensors(checkpoint.file(TRAINING_FILE), check, prefix)


def shapes_of_ema(checkpoint: Verified) -> Shapes:
    """The shapes of the EMA weights.

    Raises:
        CheckpointError: if the file is damaged.
    """
    with opened(checkpoint.file(EMA_FILE), header_only=True) as tensors:
        return shapes_in(tensors)


def _tensors(file: Path, check: Check | None, prefix: str) -> dict[str, Tensor]:
    with opened(file) as tensors:
        shapes = {name: shape for name, shape in shapes_in(tensors).items() if name.startswith(prefix)}
        if check is not None:
            check(shapes)
        return {name: tensors.get_tensor(name) for name in shapes}
