"""All that a run is resumed from, out of a checkpoint that may be somebody else's."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from ddpm_cli.checkpoint.metadata import CheckpointError
from ddpm_cli.checkpoint.read import load_ema, load_training
from ddpm_cli.checkpoint.validate import (
    MisfitError,
    check_config,
    check_ddpm,
    check_state,
    check_types,
    check_weights,
)
from ddpm_cli.checkpoint.verify import Verified


class TrainingState(NamedTuple):
    """Tensors on the CPU, in one piece each."""

    training: dict[str, Tensor]  # named as `ddpm_cli.checkpoint.tensor_names` says
    ema: dict[str, Tensor]  # the main average, named as in the network


def load_state(checkpoint: Verified, *, trust: Iterable[str] = ()) -> TrainingState:
    """The state of training in a checkpoint, of which all of the configuration and every shape has been checked.

    Args:
        checkpoint: whole, as `newest_whole` returns it.
        trust: classes of the user's own, by full name, that it may ask for beside ours.

    Raises:
        CheckpointError: if a file is damaged, or does not fit the network that the checkpoint describes.
        ConfigError: if it asks for something that is not on the list, or holds an impossible value.
    """
    trust = frozenset(trust)
    metadata = checkpoint.metadata
    try:
        network = check_ddpm(metadata.config, metadata.image_shape, trust=trust)
        check_config(metadata.config, trust=trust)
        ema = load_ema(checkpoint, check=lambda shapes: check_weights(shapes, network))
        training = load_training(
            checkpoint, check=lambda shapes: check_state(metadata.config, shapes, network, trust=trust)
        )
        for tensors in (ema, training):
            check_types(tensors, network)
    except MisfitError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    return TrainingState(training, ema)
