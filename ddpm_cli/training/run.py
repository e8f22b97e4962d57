"""A run in its directory: the training loop with its metrics, previews and checkpoints, and the ways it may end."""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from torch import Tensor

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint.metadata import parse
from ddpm_cli.checkpoint.tensor_names import UNLOGGED
from ddpm_cli.checkpoint.validate import check_config
from ddpm_cli.config.schema import targets_in
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.distributed.process_group import LostRankError
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.images import to_uint8
from ddpm_cli.io.text import size_text
from ddpm_cli.runtime.device import out_of_memory
from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError, Stopped
from ddpm_cli.runtime.logs import log
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.modes import Generate, SampleContext
from ddpm_cli.training.build import Training
from ddpm_cli.training.event_files import cut_back
from ddpm_cli.training.metrics import MetricsLogger
from ddpm_cli.training.step_stats import Progress
from ddpm_cli.training.train_state import capture
from ddpm_cli.training.trainer import NonFiniteError, Trainer

_RECORDS = {
    "metrics": run_dir.METRICS_FILE,
    "tensorboard": run_dir.TENSORBOARD,
    "previews": run_dir.PREVIEWS,
}
CLASSES_SHOWN = 20  # by name


def check_space(directory: Path, trainer: Trainer) -> None:
    """Refuse to begin where the checkpoints that will be kept, and the one being written, have no room.

    Raises:
        OSError: saying how much there is and how much it takes.
    """
    config = trainer.config
    size = checkpoint.size(trainer.ema.model.state_dict(), capture(trainer))  # sharded tensors know their full size
    if trainer.step == 0:  # the optimizer will add two moments to every parameter
        size += 2 * sum(p.numel() * p.element_size() for p in trainer.ddpm.parameters())
    remaining = config.steps - trainer.step
    saves = remaining // config.checkpoint_every + 1 if config.checkpoint_every > 0 else 1
    kept = config.keep_last + (remaining // config.keep_every if config.keep_every > 0 else 0)
    snapshot = sum(tensor.numel() * 4 for tensor in trainer.ema.snapshot().values())  # float32, all of them kept
    needed = size * min(saves, kept + 1) + snapshot * saves
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
        data=images.fingerprint or {},
    )


class TrainingRun:
    """A trainer at work in a run directory.

    Args:
        stop: looked at after every step.
    """

    def __init__(self, training: Training, directory: Path, stop: Stop):
        self.trainer, self.sampler, self.options = training
        self.directory = directory
        self.stop = stop
        self.first_step = self.trainer.step
        # What was resumed from; a later one is known once it has been saved.
        self.saved_step = self.trainer.step if self.trainer.step > 0 else None
        self.loss = float("nan")

    def run(self, warnings: Sequence[str] = ()) -> float:
        """Train to the last step; returns the last loss that was logged.

        Args:
            warnings: to be said first.

        Raises:
            RunError: if it had to end early; says what is lost and how to resume.
            Stopped: if it was asked to; everything has been saved.
        """
        trainer = self.trainer
        try:
            if trainer.world.main:
                for warning in warnings:
                    log.warning(warning)
                self._begin_records()
                self._announce()
            with self._metrics_logger() as metrics:
                self.stop.defer()
                self._train(metrics)
        except NonFiniteError as error:
            raise RunError(f"{error}. {self._replay()}. {self._how_to_resume()}", NON_FINITE) from error
        except LostRankError as error:
            raise self._failed(str(error)) from error
        except OSError as error:
            raise self._failed(f"{error}; earlier checkpoints are untouched") from error
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise self._failed(self._what_needs_less_memory()) from error
        log.info(f"saved    {self.directory / run_dir.CHECKPOINTS / run_dir.step_name(trainer.step)}")
        log.info(f"sample   ddpm-sample ckpt={self.directory}")
        return self.loss

    def _train(self, metrics: MetricsLogger | None) -> None:
        trainer = self.trainer
        if self._preview_is_missing():
            self._preview(metrics)
        self._end_if_asked(metrics)
        for progress in trainer.run():
            self._after_step(metrics, progress)
            if trainer.step < trainer.config.steps:
                self._end_if_asked(metrics)
        if self._preview_is_missing():  # asked to stop, but nothing else is left to do
            self._preview(metrics, to_the_end=True)
        trainer.world.barrier()

    def _after_step(self, metrics: MetricsLogger | None, progress: Progress | None) -> None:
        config = self.trainer.config
        if progress is not None:
            self.loss = progress.loss
        if metrics is not None:
            metrics.bar.update()
            if progress is not None:
                metrics.progress(progress)
        if self._due(config.preview_every):
            self._preview(metrics)
        if self._due(config.checkpoint_every) or self.trainer.step == config.steps:
            self._save(metrics)

    def _end_if_asked(self, metrics: MetricsLogger | None) -> None:
        """Raises `Stopped`, with the state saved, if any rank was asked to stop."""
        trainer = self.trainer
        if not trainer.world.any(self.stop.requested):
            return
        if self.saved_step != trainer.step:
            self._save(metrics)
        trainer.world.barrier()  # a launcher ends the others as soon as one has gone
        raise Stopped(
            f"{self.stop.signal or 'a signal to another process'}: stopped at step {trainer.step:,} and saved. "
            f"{self._how_to_resume()}"
        )

    def _due(self, every: int) -> bool:
        step = self.trainer.step
        return every > 0 and (step % every == 0 or step == self.trainer.config.steps)

    # What a run leaves: rank 0, which alone has a MetricsLogger, writes it; every rank takes part in making it --------

    def _begin_records(self) -> None:
        text = yaml.safe_dump(asdict(self.options), sort_keys=False)
        durable.replace(self.directory / run_dir.CONFIG_FILE, text.encode())
        cut_back(self.directory, self.first_step, **_RECORDS)
        checkpoint.remove_snapshots(self.directory / run_dir.AVERAGES, after=self.first_step)
        skipped = self.trainer.batches.images.skipped
        if skipped:
            listed = "".join(f"{line}\n" for line in skipped)
            durable.replace(self.directory / run_dir.SKIPPED_FILE, listed.encode())

    def _announce(self) -> None:
        trainer, images, config = self.trainer, self.trainer.batches.images, self.trainer.config
        parameters = sum(p.numel() for p in trainer.ddpm.parameters())
        epochs = config.steps * config.batch_size / len(images)
        log.info(f"data     {images.name}: {len(images):,} images, {size_text(images.shape)}")
        if images.fingerprint is None:
            log.warning("data     the set has no checksums of its images: resuming cannot tell them from others")
        if images.labels is not None:
            more = ["..."] if len(images.class_names) > CLASSES_SHOWN else []
            log.info(f"classes  from 0 on: {', '.join([*images.class_names[:CLASSES_SHOWN], *more])}")
        if images.skipped:
            log.warning(f"skipped  {len(images.skipped):,} bad images, listed in {run_dir.SKIPPED_FILE}")
        log.info(f"network  {self.options.model['_target_'].rpartition('.')[2]}, {parameters:,} parameters")
        together = f", {trainer.world.size} processes" if trainer.world.size > 1 else ""
        sharded = ", sharded" if config.fsdp else ""
        compiled = ", compiled" if config.compiles(trainer.compute.device.type) else ""
        log.info(f"device   {trainer.compute}{together}{sharded}{compiled}")
        parts = f" in {config.micro_batches} parts" if config.micro_batches > 1 else ""
        log.info(f"steps    {config.steps:,} of batch {config.batch_size}{parts} ({epochs:,.1f} epochs)")
        log.info(f"run      {self.directory}")
        if self.first_step > 0:
            log.info(f"resumed  at step {self.first_step:,}")

    def _metrics_logger(self) -> AbstractContextManager[MetricsLogger | None]:
        if not self.trainer.world.main:
            return nullcontext()
        metrics = MetricsLogger(
            **{name: self.directory / place for name, place in _RECORDS.items()},
            first_step=self.first_step,
            steps=self.trainer.config.steps,
            timesteps=self.trainer.ddpm.schedule.timesteps,
            device=self.trainer.compute.device,
        )
        if self.first_step == 0:
            metrics.config((self.directory / run_dir.CONFIG_FILE).read_text(encoding="utf-8"))
        return metrics

    def _preview_is_missing(self) -> bool:
        """Whether the run was stopped in the middle of this step's preview."""
        step, pictures = self.trainer.step, self.directory / run_dir.PREVIEWS
        due = step > 0 and self._due(self.trainer.config.preview_every)
        return due and self.trainer.world.broadcast(not (pictures / f"{run_dir.step_name(step)}.png").exists())

    def _preview(self, metrics: MetricsLogger | None, *, to_the_end: bool = False) -> None:
        self.trainer.check_finite()
        images = self._sample(to_the_end)
        if images is not None and metrics is not None:
            metrics.preview(self.trainer.step, images)

    def _sample(self, to_the_end: bool) -> Tensor | None:
        """uint8 EMA samples `[N, C, H, W]` from noise that is the same at every step; None if stopped meanwhile.

        Every rank draws its share, so that none waits for another one's.
        """
        world, wanted = self.trainer.world, self.trainer.config.preview_images
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

    def _save(self, metrics: MetricsLogger | None, *, remove_old: bool = True) -> None:
        """Save a checkpoint, to which sharded ranks bring their parts; returns when it is safe.

        Raises:
            NonFiniteError: if something in it is not finite: nothing was saved.
            OSError: on rank 0, if it cannot be written.
        """
        trainer, world = self.trainer, self.trainer.world
        ema = world.gather_full_tensors(trainer.ema.model.state_dict().items())
        training = world.gather_full_tensors(capture(trainer).items())
        snapshot = world.gather_full_tensors(trainer.ema.snapshot().items())
        if world.main:
            self._write(metrics, ema, training, snapshot, remove_old=remove_old)
        self.saved_step = trainer.step

    def _write(
        self,
        metrics: MetricsLogger | None,
        ema: dict[str, Tensor],
        training: dict[str, Tensor],
        snapshot: dict[str, Tensor],
        *,
        remove_old: bool,
    ) -> None:
        trainer, config = self.trainer, self.trainer.config
        for name, tensor in (*ema.items(), *training.items()):
            if tensor.is_floating_point() and not name.startswith(UNLOGGED) and not torch.isfinite(tensor).all():
                raise NonFiniteError(f"{name} is not finite after step {trainer.step - 1}: nothing was saved")
        if metrics is not None:
            metrics.flush()
        directory = self.directory / run_dir.CHECKPOINTS
        description = _described(trainer, self.options)
        if snapshot and trainer.ema.updates > 0:
            averages = self.directory / run_dir.AVERAGES
            checkpoint.save_snapshot(averages, snapshot, description, updates=trainer.ema.updates)
        checkpoint.save(directory, ema=ema, training=training, description=description)
        if remove_old:
            try:
                checkpoint.remove_old(directory, keep_last=config.keep_last, keep_every=config.keep_every)
            except OSError as error:  # the new one is safe, which is what counts
                log.warning(f"step {trainer.step}: an old checkpoint cannot be removed: {error}")

    # How it may end --------------------------------------------------------------------------------------------------

    def _failed(self, message: str, status: int = 1) -> RunError:
        return RunError(f"step {self.trainer.step}: {message}. {self._how_to_resume()}", status)

    def _how_to_resume(self) -> str:
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
        config = self.trainer.config
        at_a_time = config.batch_size // (config.micro_batches * self.trainer.world.size)
        ways = [f"trainer.accumulate={2 * config.micro_batches} or auto (now {at_a_time} images at a time)"]
        if not config.activation_checkpointing:
            ways.append("trainer.activation_checkpointing=true")
        if config.preview_images > at_a_time:
            ways.append(f"trainer.preview_images={at_a_time}")
        if self.trainer.world.size > 1 and not config.fsdp:
            ways.append("trainer.fsdp=true")
        return (
            f"out of memory with batch_size {config.batch_size} on {self.trainer.compute}; "
            f"what takes less: {', '.join(ways)}"
        )
