"""What is known before a run begins: what its checkpoints take, whether they have room, and can be read again."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint.metadata import parse
from ddpm_cli.checkpoint.validate import check_config
from ddpm_cli.config.compare import LOGGER
from ddpm_cli.config.schema import targets_in
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.training.train_state import capture
from ddpm_cli.training.trainer import Trainer
from ddpm_cli.training.trainer_config import TrainerConfig


class Disk(NamedTuple):
    """What a run leaves in checkpoints."""

    checkpoint: int  # bytes of one
    kept: int  # how many
    averages: int  # bytes of all snapshots of averages


def disk_of(trainer: Trainer) -> Disk:
    """What a run will leave when it has done its steps."""
    saves, kept = saved_and_kept(trainer.config)
    return Disk(_size(trainer), kept, saves * _snapshot_size(trainer))


def saved_and_kept(config: TrainerConfig) -> tuple[int, int]:
    """How many checkpoints a run saves from its first step to its last, and how many of them it leaves at most."""
    every = min(config.checkpoint_every, config.steps) or config.steps
    saved = -(-config.steps // every)
    oldest = min(config.steps, every * max(1, saved - config.keep_last + 1))  # of the last ones, which are kept
    for_good = 0 if config.keep_every == 0 else (oldest - 1) // config.keep_every
    return saved, min(saved, config.keep_last + for_good + (config.keep_best is not None))


def _size(trainer: Trainer) -> int:
    """Bytes of a checkpoint."""
    size = checkpoint.size(trainer.ema.model.state_dict(), capture(trainer))  # sharded tensors know their full size
    if trainer.step == 0:  # the optimizer will add two moments to every parameter
        size += 2 * sum(p.numel() * p.element_size() for p in trainer.ddpm.parameters())
    return size


def _snapshot_size(trainer: Trainer) -> int:
    """Bytes of one snapshot of averages: float32, all of them kept."""
    return sum(tensor.numel() * 4 for tensor in trainer.ema.snapshot().values())


def check_space(directory: Path, trainer: Trainer) -> None:
    """Refuse to begin where the checkpoints that will be kept, and the one being written, have no room.

    Raises:
        OSError: saying how much there is and how much it takes.
    """
    config = trainer.config
    remaining = config.steps - trainer.step
    saves = remaining // config.checkpoint_every + 1 if config.checkpoint_every > 0 else 1
    kept = config.keep_last + (remaining // config.keep_every if config.keep_every > 0 else 0)
    kept += config.keep_best is not None
    needed = _size(trainer) * min(saves, kept + 1) + _snapshot_size(trainer) * saves
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f"{existing} has {free / 1e6:,.0f} MB free, the run's checkpoints take {needed / 1e6:,.0f} MB")


def check_readable(trainer: Trainer, options: TrainOptions) -> None:
    """Find now, not after training, that the checkpoints could not be read again.

    Raises:
        ConfigError: for what `checkpoint.validate.check_config` refuses.
        CheckpointError: for more text than a description may have.
    """
    description = describe(trainer, options)
    again = parse(description.as_json(), Path("checkpoint.json"))
    check_config(again.config, trust=frozenset(targets_in(description.config)))


def describe(trainer: Trainer, options: TrainOptions) -> checkpoint.Metadata:
    """What a checkpoint saved now says beside its tensors."""
    images = trainer.batches.images
    return checkpoint.Metadata(
        step=trainer.step,
        image_shape=images.shape,
        images=len(images),
        config={key: value for key, value in asdict(options).items() if key != LOGGER},
        versions=checkpoint.versions(),
        classes=tuple(images.class_names),
        data=images.fingerprint or {},
    )
