"""A trained model back from its checkpoint, from the shell or in a notebook."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import CheckpointError, Description
from ddpm_cli.config import build_ddpm, naming
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.untrusted import MisfitError, check_ddpm

_OWN_WEIGHTS = "model."  # what the names of the network's own weights begin with in the training state


class Pretrained(NamedTuple):
    """What `load` returns."""

    ddpm: DDPM  # on the CPU, in eval mode
    image_shape: tuple[int, int, int]  # (C, H, W) of its images
    step: int  # it was trained for
    config: dict  # it was trained with


def load(path: str | Path, *, weights: str = "ema", trust: Iterable[str] = (), sha256: str | None = None) -> Pretrained:
    """Rebuild a model from a run directory (its newest checkpoint), a checkpoint directory, or an EMA file.

    Args:
        path: which.
        weights: "ema", or "model" for the weights that were being optimized.
        trust: classes of your own, by full name, that the checkpoint may ask for beside ours.
        sha256: of the checkpoint's manifest.json (of a lone EMA file: of that file); any other is refused.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged, not ours, or not the one of that SHA-256.
        ConfigError: if it asks for something that is not on the list, or holds an impossible value.
    """
    found = checkpoint.find(path)
    if sha256 is not None:
        _check_pinned(found, sha256)
    trust = frozenset(trust)

    def check(description: Description, shapes: dict[str, tuple[int, ...]]) -> None:
        own = {name.removeprefix(_OWN_WEIGHTS): shape for name, shape in shapes.items()}
        try:
            check_ddpm(description.config, own if weights == "model" else shapes, description.image_shape, trust=trust)
        except MisfitError as error:
            raise CheckpointError(f"{found}: {error}") from error

    if weights == "ema":
        tensors, description = checkpoint.load_ema(found, check=check)
    elif weights == "model":
        tensors, description = checkpoint.load_training(found, check=check, prefix=_OWN_WEIGHTS)
        tensors = {name.removeprefix(_OWN_WEIGHTS): tensor for name, tensor in tensors.items()}
    else:
        raise ValueError(f"weights must be 'ema' or 'model', got {weights!r}")
    ddpm = build_ddpm(description.config).eval()
    try:
        ddpm.model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{found}: its weights do not fit the network it describes: {error}") from error
    if description.config["model"]["_target_"] in trust:  # ours has been asked already, without memory
        with naming("model"):
            ddpm.check_images(description.image_shape)
    return Pretrained(ddpm, description.image_shape, description.step, description.config)


def _check_pinned(found: Path, sha256: str) -> None:
    file = checkpoint.pinned_file(found)
    actual = checkpoint.fingerprint(file)
    if actual != sha256.lower():
        raise CheckpointError(f"{file} is not the one asked for: its SHA-256 is {actual}")
