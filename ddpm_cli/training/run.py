"""A run in its directory: the training loop with its logs, previews and checkpoints, and the ways it may end."""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint.metadata import parse
from ddpm_cli.checkpoint.validate import check_config
from ddpm_cli.config.schema import targets_in
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.distributed.process_group import LostRankError
from ddpm_cli.io import durable
from ddpm_cli.io import run_dir as run_directory
from ddpm_cli.io.images import to_uint8
from ddpm_cli.runtime.device import out_of_memory
from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError, Stopped
from ddpm_cli.runtime.logs import log
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.modes import Generate, SampleContext
from ddpm_cli.training.build import pixels
from ddpm_cli.training.event_files import cut_back
from ddpm_cli.training.metrics import MetricsLogger
from ddpm_cli.training.step_stats import Progress
from ddpm_cli.training.trainer import NonFiniteError, Trainer

_RECORDS = {
    "metrics": run_directory.METRICS_FILE,
    "tensorboard": run_directory.TENSORBOARD,
    "previews": run_directory.PREVIEWS,
}
CLASSES_SHOWN = 20  # by name


def check_space(directory: Path, trainer: Trainer) -> None:
    """Refuse to begin where the checkpoints that will be kept, and the one being written, have no room.

    Raises:
        OSError: saying how much there is and how much it takes.
    """
    settings = trainer.settings
    size = checkpoint.size(trainer.ema.model.state_dict(), trainer.state())  # sharded tensors know their whole size
    if trainer.step == 0:  # the optimizer will add two moments to every parameter
        size += 2 * sum(p.numel() * p.element_size() for p in trainer.ddpm.parameters())
    remaining = settings.steps - trainer.step
    saves = remaining // settings.checkpoint_every + 1 if settings.checkpoint_every > 0 else 1
    kept = settings.keep_last + (remaining // settings.keep_every if settings.keep_every > 0 else 0)
    snapshot = sum(tensor.numel() * 4 for tensor in trainer.ema.snapshot().values())  # float32, all of them kept
    needed = size * min(saves, kept + 1) + snapshot * saves
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f"{existing} has {free / 1e6:,.0f} MB free, the run's checkpoints take {needed / 1e6:,.0f} MB")


def check_readable(trainer: Trainer, options: TrainOptions) -> None:
    """Find now, not after training, that the checkpoints could not be read again.

    Raises:
        ConfigError: for what `validate.check_config` refuses.
        CheckpointError: for more text than a description may have.
    """
    description = _described(trainer, options)
    again = parse(description.as_json(), Path("checkpoint.json"))
    check_config(again.config, trust=frozenset(targets_in(description.config)))


def _described(trainer: Trainer, options: TrainOptions) -> checkpoint.Metadata:
    images = trainer.batches.images
    return checkpoint.Metadata(
        step=trainer.step,
        image_shape=images.shape,
        images=len(images),
        config=asdict(options),
        versions=checkpoint.versions(),
        classes=tuple(images.class_names),
    )


class TrainingRun:
    """A trainer at work in a run directory.

    Args:
        options: as they will be kept in the checkpoints.
        stop: looked at after every step.
    """

    def __init__(self, trainer: Trainer, sampler: Sampler, options: TrainOptions, directory: Path, stop: Stop):
        self.trainer = trainer
        self.sampler = sampler
        self.options = options
        self.directory = directory
        self.stop = stop
        self.first_step = trainer.step
        # What was resumed from; a later one is known once it has been saved.
        self.saved_step = trainer.step if trainer.step > 0 else None
        self.loss = float("nan")

    def go(self, warnings: Sequence[str] = ()) -> float:
        """Train to the last step; returns the last loss that was logged.

        Args:
            warnings: to be said first.

        Raises:
            RunError: if it had to end early; says what is lost and how to go on.
            Stopped: if it was asked to; everything has been saved.
        """
        trainer = self.trainer
        try:
            if trainer.world.main:
                self._begin(warnings)
            with self._monitor() as monitor:
                self.stop.defer()
                self._train(monitor)
        except NonFiniteError as error:
            raise RunError(f"{error}. {self._replay()}. {self._go_on()}", NON_FINITE) from error
        except LostRankError as error:
            raise self._failed(str(error)) from error
        except OSError as error:
            raise self._failed(f"{error}; earlier checkpoints are untouched") from error
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise self._failed(self._what_needs_less_memory()) from error
        log.info(f"saved    {self.directory / run_directory.CHECKPOINTS / run_directory.step_name(trainer.step)}")
        log.info(f"sample   ddpm-sample ckpt={self.directory}")
        return self.loss

    def _train(self, monitor: MetricsLogger | None) -> None:
        trainer = self.trainer
        if self._preview_is_missing():
            self._preview(monitor)
        self._end_if_asked(monitor)
        for progress in trainer.run():
            self._after_step(monitor, progress)
            if trainer.step < trainer.settings.steps:
                self._end_if_asked(monitor)
        if self._preview_is_missing():  # asked to stop, but nothing else is left to do
            self._preview(monitor, to_the_end=True)
        trainer.world.wait()

    def _after_step(self, monitor: MetricsLogger | None, progress: Progress | None) -> None:
        settings = self.trainer.settings
        if progress is not None:
            self.loss = progress.loss
        if monitor is not None:
            monitor.bar.update()
            if progress is not None:
                monitor.progress(progress)
        if self._due(settings.preview_every):
            self._preview(monitor)
        if self._due(settings.checkpoint_every) or self.trainer.step == settings.steps:
            self._save(monitor)

    def _end_if_asked(self, monitor: MetricsLogger | None) -> None:
        """Raises `Stopped`, with the state saved, if any rank was asked to stop."""
        trainer = self.trainer
        if not trainer.world.any(self.stop.requested):
            return
        if self.saved_step != trainer.step:
            self._save(monitor)
        trainer.world.wait()  # a launcher ends the others as soon as one has gone
        raise Stopped(
            f"{self.stop.signal or 'a signal to another process'}: stopped at step {trainer.step:,} and saved. "
            f"{self._go_on()}"
        )

    def _due(self, every: int) -> bool:
        step = self.trainer.step
        return every > 0 and (step % every == 0 or step == self.trainer.settings.steps)

    # What a run leaves: rank 0, which alone has a monitor, writes it; every rank takes part in making it --------------

    def _begin(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            log.warning(warning)
        text = yaml.safe_dump(asdict(self.options), sort_keys=False)
        durable.replace(self.directory / run_directory.CONFIG_FILE, text.encode())
        cut_back(self.directory, self.first_step, **_RECORDS)
        checkpoint.remove_snapshots(self.directory / run_directory.AVERAGES, after=self.first_step)
        skipped = self.trainer.batches.images.skipped
        if skipped:
            listed = "".join(f"{line}\n" for line in skipped)
            durable.replace(self.directory / run_directory.SKIPPED_FILE, listed.encode())
        trainer, images, settings = self.trainer, self.trainer.batches.images, self.trainer.settings
        parameters = sum(p.numel() for p in trainer.ddpm.parameters())
        epochs = settings.steps * settings.batch_size / len(images)
        log.info(f"data     {images.name}: {len(images):,} images, {pixels(images.shape)}")
        if images.labels is not None:
            more = ["..."] if len(images.class_names) > CLASSES_SHOWN else []
            log.info(f"classes  from 0 on: {', '.join([*images.class_names[:CLASSES_SHOWN], *more])}")
        if skipped:
            log.warning(f"skipped  {len(skipped):,} bad images, listed in {run_directory.SKIPPED_FILE}")
        log.info(f"network  {self.options.model['_target_'].rpartition('.')[2]}, {parameters:,} parameters")
        together = f", {trainer.world.size} processes" if trainer.world.size > 1 else ""
        sharded = ", sharded" if settings.fsdp else ""
        compiled = ", compiled" if settings.compiles(trainer.compute.device.type) else ""
        log.info(f"device   {trainer.compute}{together}{sharded}{compiled}")
        parts = f" in {settings.parts} parts" if settings.parts > 1 else ""
        log.info(f"steps    {settings.steps:,} of batch {settings.batch_size}{parts} ({epochs:,.1f} epochs)")
        log.info(f"run      {self.directory}")
        if self.first_step > 0:
            log.info(f"resumed  at step {self.first_step:,}")

    def _monitor(self) -> Any:
        if not self.trainer.world.main:
            return nullcontext()
        monitor = MetricsLogger(
            **{name: self.directory / place for name, place in _RECORDS.items()},
            first_step=self.first_step,
            steps=self.trainer.settings.steps,
            timesteps=self.trainer.ddpm.schedule.timesteps,
            device=self.trainer.compute.device,
        )
        if self.first_step == 0:
            monitor.config((self.directory / run_directory.CONFIG_FILE).read_text(encoding="utf-8"))
        return monitor

    def _preview_is_missing(self) -> bool:
        """Whether the run was stopped in the middle of this step's preview."""
        step, pictures = self.trainer.step, self.directory / run_directory.PREVIEWS
        due = step > 0 and self._due(self.trainer.settings.preview_every)
        return due and self.trainer.world.broadcast(not (pictures / f"{run_directory.step_name(step)}.png").exists())

    def _preview(self, monitor: MetricsLogger | None, *, to_the_end: bool = False) -> None:
        self.trainer.check_finite()
        images = self._sample(to_the_end)
        if images is not None and monitor is not None:
            monitor.preview(self.trainer.step, images)

    def _sample(self, to_the_end: bool) -> Tensor | None:
        """uint8 EMA samples `[N, C, H, W]` from noise that is the same at every step; None if stopped meanwhile.

        Every rank draws its share, so that none waits for another one's.
        """
        world, wanted = self.trainer.world, self.trainer.settings.preview_images
        share = -(-wanted // world.size)  # some ranks may draw images that nobody asked for
        loop, x = self._preview_loop(share * world.size), None
        for x in loop.states(range(world.rank * share, (world.rank + 1) * share)):  # noqa: B007 - the last is the image
            if world.any(self.stop.requested) and not to_the_end:
                return None
        return None if x is None else world.gather(to_uint8(x))[:wanted]

    def _preview_loop(self, images: int) -> SamplingLoop:
        """What draws previews; where there are labels, the images take turns with them."""
        trainer = self.trainer
        context = SampleContext(
            schedule=trainer.ddpm.schedule,
            sampler=self.sampler,
            image_shape=trainer.batches.images.shape,
            n=images,
            classes=0,
            seed=self.options.seed,
            device=trainer.compute.device,
        )
        plan = Generate().plan(context)
        if trainer.ddpm.num_classes is not None:
            plan = plan._replace(rows=images, per_row=1, labels=[i % trainer.ddpm.num_classes for i in range(images)])
        return SamplingLoop(trainer.ddpm.with_model(trainer.ema.model), plan, trainer.compute)

    def _save(self, monitor: MetricsLogger | None, *, remove_old: bool = True) -> None:
        """Save a checkpoint, to which sharded ranks bring their parts; returns when it is safe.

        Raises:
            NonFiniteError: if something in it is not finite: nothing was saved.
            OSError: on rank 0, if it cannot be written.
        """
        trainer, world = self.trainer, self.trainer.world
        ema = world.gather_full_tensors(trainer.ema.model.state_dict().items())
        training = world.gather_full_tensors(trainer.state().items())
        snapshot = world.gather_full_tensors(trainer.ema.snapshot().items())
        if world.main:
            self._write(monitor, ema, training, snapshot, remove_old=remove_old)
        self.saved_step = trainer.step

    def _write(
        self,
        monitor: MetricsLogger | None,
        ema: dict[str, Tensor],
        training: dict[str, Tensor],
        snapshot: dict[str, Tensor],
        *,
        remove_old: bool,
    ) -> None:
        trainer, settings = self.trainer, self.trainer.settings
        for name, tensor in (*ema.items(), *training.items()):
            if tensor.is_floating_point() and not name.startswith("unlogged.") and not torch.isfinite(tensor).all():
                raise NonFiniteError(f"{name} is not finite after step {trainer.step - 1}: nothing was saved")
        if monitor is not None:
            monitor.flush()
        directory = self.directory / run_directory.CHECKPOINTS
        description = _described(trainer, self.options)
        if snapshot and trainer.ema.updates > 0:
            averages = self.directory / run_directory.AVERAGES
            checkpoint.save_snapshot(averages, snapshot, description, updates=trainer.ema.updates)
        checkpoint.save(directory, ema=ema, training=training, description=description)
        if remove_old:
            try:
                checkpoint.remove_old(directory, keep_last=settings.keep_last, keep_every=settings.keep_every)
            except OSError as error:  # the new one is safe, which is what counts
                log.warning(f"step {trainer.step}: an old checkpoint cannot be removed: {error}")

    # How it may end --------------------------------------------------------------------------------------------------

    def _failed(self, message: str, status: int = 1) -> RunError:
        return RunError(f"step {self.trainer.step}: {message}. {self._go_on()}", status)

    def _go_on(self) -> str:
        if self.saved_step is None:
            return f"No checkpoint had been saved in {self.directory}"
        return f"From step {self.saved_step:,} on: ddpm-train resume={self.directory}"

    def _replay(self) -> str:
        """Save the state that the step started from, so that resuming replays exactly this step."""
        if self.saved_step != self.trainer.step:
            try:
                self._save(None, remove_old=False)
            except (OSError, NonFiniteError) as error:
                return f"Its state could not be saved ({error})"
        return "Nothing of it reached the weights, and resuming replays exactly this step"

    def _what_needs_less_memory(self) -> str:
        settings = self.trainer.settings
        at_a_time = settings.batch_size // (settings.parts * self.trainer.world.size)
        ways = [f"trainer.accumulate={2 * settings.parts} or auto (now {at_a_time} images at a time)"]
        if not settings.activation_checkpointing:
            ways.append("trainer.activation_checkpointing=true")
        if settings.preview_images > at_a_time:
            ways.append(f"trainer.preview_images={at_a_time}")
        if self.trainer.world.size > 1 and not settings.fsdp:
            ways.append("trainer.fsdp=true")
        return (
            f"out of memory with batch_size {settings.batch_size} on {self.trainer.compute}; "
            f"what takes less: {', '.join(ways)}"
        )
