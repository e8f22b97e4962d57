"""What a run says and shows of itself before its first step: data, network, device, length, where it comes from."""

from pathlib import Path

import torch

from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.config.unet_levels import levels_text
from ddpm_cli.data.degenerate import degenerate
from ddpm_cli.io import run_dir
from ddpm_cli.io.images import grid, on_checks, save_png
from ddpm_cli.io.run_identity import identity_of
from ddpm_cli.io.text import printable, size_text
from ddpm_cli.runtime.logs import log
from ddpm_cli.training.recipe import doubts_of_data
from ddpm_cli.training.trainer import Trainer

CLASSES_SHOWN = 20  # by name
_FLIPPED = {
    "none": "",
    "horizontal": "half of them flipped left to right",
    "both": "half of them flipped left to right, half top to bottom",
}
PICTURED = 64  # images in the picture of the data
PICTURED_PIXELS = PICTURED * 256 * 256  # of larger images there are fewer in it


def announce(trainer: Trainer, options: TrainOptions, directory: Path, *, resumed: bool) -> None:
    """Say what is about to be trained, where, and on what."""
    images, config = trainer.batches.images, trainer.config
    parameters = sum(p.numel() for p in trainer.ddpm.parameters())
    count = trainer.batches.count
    epochs = config.steps * config.batch_size / trainer.batches.epoch_images
    left_out = f"; left out: {images.left_out}" if images.left_out else ""
    held_out = f"; held out: {len(images) - count:,}" if count < len(images) else ""
    log.info(f"data     {images.name}: {len(images):,} images, {size_text(images.shape)}{held_out}{left_out}")
    drawn = ", ".join(filter(None, [images.treatment, _FLIPPED[images.flip]]))
    if drawn:
        log.info(f"pictures {drawn}")
    if images.fingerprint is None:
        log.warning("data     the set has no checksums of its images: resuming cannot tell them from others")
    if images.labels is not None:
        more = ["..."] if len(images.class_names) > CLASSES_SHOWN else []
        numbered = [f"{number}: {name}" for number, name in enumerate(images.class_names[:CLASSES_SHOWN])]
        log.info(f"classes  {', '.join([*numbered, *more])}")
    for remark in images.remarks:
        log.warning(remark)
    if images.skipped:
        log.warning(f"skipped  {len(images.skipped):,} bad images, listed in {run_dir.SKIPPED_FILE}")
    network = options.model["_target_"].rpartition(".")[2]
    described = [network, f"{parameters:,} parameters", levels_text(options.model)]
    log.info(f"network  {', '.join(filter(None, described))}")
    together = f", {trainer.world.size} processes" if trainer.world.size > 1 else ""
    sharded = ", sharded" if config.fsdp else ""
    compiled = ", compiled" if config.compiles(trainer.compute.device.type) else ""
    log.info(f"device   {trainer.compute}{together}{sharded}{compiled}")
    parts = f" in {config.micro_batches} parts" if config.micro_batches > 1 else ""
    log.info(f"steps    {config.steps:,} of batch {config.batch_size}{parts} ({epochs:,.1f} epochs)")
    for doubt in doubts_of_data(config, count):
        log.warning(doubt)
    if config.overfit_batches > 0:
        log.warning(f"overfit  {_overfit(config.overfit_batches)} again and again, of {count:,} images")
    if config.eval_every > 0:
        log.info(f"eval     every {config.eval_every:,} steps: {', '.join(_measured(trainer))}")
    log.info(f"run      {directory}")
    if resumed:
        log.info(f"resumed  at step {trainer.step:,}")
    else:
        for line in origin(directory):
            log.info(line)


def _overfit(batches: int) -> str:
    return "one batch" if batches == 1 else f"{batches:,} batches"


def _measured(trainer: Trainer) -> list[str]:
    """What an evaluation has to look at."""
    held_out, samples = len(trainer.batches.images) - trainer.batches.count, trainer.config.eval_images
    said = [f"the loss on {held_out:,} held-out images"] if held_out > 0 else []
    return said + ([f"fd and kd of {samples:,} samples"] if samples > 0 else [])


def picture_data(trainer: Trainer, options: TrainOptions, directory: Path) -> None:
    """Keep the first images as the network sees them, and say what is wrong with them all."""
    first = trainer.batches.first_images(PICTURED)
    picture = directory / run_dir.DATA_FILE
    if not picture.exists():
        height, width = first.shape[2:]
        shown = torch.from_numpy(first[: max(1, PICTURED_PIXELS // (height * width))])
        save_png(on_checks(grid(shown)), picture)
    for line in degenerate(trainer.batches.images, first, options.data):
        log.warning(f"data     {line}")


def origin(directory: Path) -> list[str]:
    """What this run was forked from, or took its weights from, and every option that is another."""
    identity = identity_of(directory)
    if identity is None:
        return []
    if identity.forked_from is not None:
        first = f"forked from {identity.forked_from}"
    elif identity.init_from is not None:
        which = "" if identity.init_weights is None else f"the {identity.init_weights} weights of "
        first = f"init from {which}{identity.init_from}"
    else:
        return []
    return [printable(first), *(f"  {printable(line)}" for line in identity.differs)]
