"""A trained model back from its checkpoint, from the shell or in a notebook."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import CheckpointError
from ddpm_cli.config import DDPM_GROUPS, build_ddpm, check_untrusted, naming
from ddpm_cli.diffusion.ddpm import DDPM


class Pretrained(NamedTuple):
    """What `load` returns."""

    ddpm: DDPM  # on the CPU, in eval mode
    image_shape: tuple[int, int, int]  # (C, H, W) of its images
    step: int  # it was trained for
    config: dict  # it was trained with


def load(path: str | Path, *, weights: str = "ema", trust: Iterable[str] = ()) -> Pretrained:
    """Rebuild a model from a run directory (its newest checkpoint), a checkpoint directory, or an EMA file.

    Args:
        path: which.
        weights: "ema", or "model" for the weights that were being optimized.
        trust: classes of your own, by full name, that the checkpoint may ask for beside ours.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged or not ours.
        ConfigError: if it asks for something that is not on the list, or holds an impossible value.
    """
    found = checkpoint.find(path)
    if weights == "ema":
        tensors, description = checkpoint.load_ema(found)
    elif weights == "model":
        tensors, description = checkpoint.load_training(found)
        tensors = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    else:
        raise ValueError(f"weights must be 'ema' or 'model', got {weights!r}")
    try:
        groups = {group: description.config[group] for group in DDPM_GROUPS}
    except KeyError as error:
        raise CheckpointError(f"{found}: its configuration has no {error}") from error
    for group, node in groups.items():
        check_untrusted(group, node, trust=trust)
    ddpm = build_ddpm(groups).eval()
    try:
        ddpm.model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{found}: its weights do not fit the network it describes: {error}") from error
    with naming("model"):
        ddpm.check_images(description.image_shape)
    return Pretrained(ddpm, description.image_shape, description.step, description.config)
