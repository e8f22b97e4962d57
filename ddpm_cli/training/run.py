"""A run in its directory: the training loop with its metrics, previews and checkpoints, and the ways it may end."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import yaml
from torch import Tensor

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint.tensor_names import UNLOGGED
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.distributed.process_group import LostRankError
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.command_line import command, override
from ddpm_cli.io.images import to_uint8
from ddpm_cli.io.run_identity import Place
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError, Stopped
from ddpm_cli.runtime.logs import append, log
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.modes import Generate, SampleContext
from ddpm_cli.training import ending
from ddpm_cli.training.announcement import announce, origin, picture_data
from ddpm_cli.training.build import Training
from ddpm_cli.training.checks import describe
from ddpm_cli.training.cut_back import cut_back
from ddpm_cli.training.metrics import MetricsLogger
from ddpm_cli.training.step_stats import Progress
from ddpm_cli.training.train_state import capture
from ddpm_cli.training.trainer import NonFiniteError

_RECORDS = {
    "metrics": run_dir.METRICS_FILE,
    "tensorboard": run_dir.TENSORBOARD,
    "previews": run_dir.PREVIEWS,
}


class TrainingRun:
    """A trainer at work in a run directory.

    Args:
        stop: looked at after every step.
    """

    def __init__(self, training: Training, directory: Path, stop: Stop):
        self.trainer, self.sampler, self.options = training
        self.directory = directory
        self.stop = stop
        self.place = Place(directory) if self.trainer.world.main else None
        self.first_step = self.trainer.step
        # What was resumed from; a later one is known once it has been saved. A fork begins with another run's.
        self.saved_step = self.trainer.step if run_dir.by_step(directory / run_dir.CHECKPOINTS) else None
        self.recorded_step = self.first_step - self.trainer.owes_progress  # of what is on record to stay
        self.loss = float("nan")
        self.done = False  # whether the last step has been saved: nothing makes this run a failure any more

    def run(self, remarks: Sequence[str] = (), warnings: Sequence[str] = ()) -> float:
        """Train to the last step; returns the last loss that was logged.

        Args:
            remarks, warnings: to be said first.

        Raises:
            RunError: if it had to end early; says what has been saved, what is lost and how to resume.
            Stopped: if it was asked to; everything has been saved.
        """
        if self.trainer.world.main:
            self.stop.keep = partial(append, self.directory / run_dir.LOG_FILE)
            self.stop.lost = lambda: ending.lost(self.trainer.step, self.saved_step, self.first_step)
        begun = False
        try:
            if self.trainer.world.main:
                for remark in remarks:
                    log.info(remark)
                for warning in warnings:
                    log.warning(warning)
                self._begin_records()
                begun = True
                resumed = self.saved_step is not None
                announce(self.trainer, self.options, self.directory, resumed=resumed)
                picture_data(self.trainer, self.options, self.directory)
            with self._metrics_logger() as metrics:
                self.stop.defer("saving after this step")
                self._train(metrics)
            log.info(f"saved    {self.directory / run_dir.CHECKPOINTS / run_dir.step_name(self.trainer.step)}")
            log.info(f"sample   {command('ddpm-sample', override('ckpt', self.directory))}")
        except Stopped as stopped:
            ending.put_on_record(str(stopped))
            raise
        except BaseException as error:
            if isinstance(error, ConfigError) and not begun:  # records that are not ours: nothing has been changed
                raise
            if not self.done:
                raise self._ended_by(error) from error
            ending.put_on_record(f"after the last step had been saved: {ending.first_line(error)}")
        return self.loss

    def _train(self, metrics: MetricsLogger | None) -> None:
        trainer = self.trainer
        if not trainer.owes_progress and self._preview_is_missing():
            self._preview(metrics)
        self._end_if_asked(metrics)
        for progress in trainer.run():
            self._after_step(metrics, progress)
            if trainer.step < trainer.config.steps:
                self._end_if_asked(metrics)
        if self._preview_is_missing():  # asked to stop, but nothing else is left to do
            self._preview(metrics, to_the_end=True)
        trainer.world.barrier()
        self._finish()

    def _finish(self) -> None:
        self.done = True
        self.stop.finish()

    def _after_step(self, metrics: MetricsLogger | None, progress: Progress | None) -> None:
        trainer, config = self.trainer, self.trainer.config
        if progress is not None:
            self.loss = progress.loss
        if metrics is not None:
            metrics.bar.update(trainer.step - metrics.bar.n)
            if progress is not None:
                try:
                    metrics.progress(progress)
                except BaseException:
                    trainer.take_back()
                    raise
        if self._due(config.preview_every):
            self._preview(metrics)
        due = self._due(config.checkpoint_every) or trainer.step == config.steps
        if due and self.saved_step != trainer.step:
            self._save(metrics)
        if trainer.step == config.steps and trainer.world.main:
            self._finish()

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
        cut_back(self.directory, self.recorded_step, **_RECORDS)  # first: it may refuse them
        text = "".join(f"# {line}\n" for line in origin(self.directory))
        text += yaml.safe_dump(asdict(self.options), sort_keys=False)
        durable.replace(self.directory / run_dir.CONFIG_FILE, text.encode())
        checkpoint.remove_snapshots(self.directory / run_dir.AVERAGES, after=self.first_step)
        skipped = self.trainer.batches.images.skipped
        if skipped:
            listed = "".join(f"{line}\n" for line in skipped)
            durable.replace(self.directory / run_dir.SKIPPED_FILE, listed.encode())

    def _check_place(self) -> None:
        """Raises RunError if the directory has been moved or removed: nothing is to be scattered over a disk."""
        if self.place is None or not self.place.left():
            return
        here, there = self.directory, self.place.moved_to()
        if there is None:
            raise RunError(f"{here} has been removed while it was trained, and all that was saved with it")
        self.directory, self.place.directory = there, there  # where it is saved before the run ends
        raise RunError(f"{here} has been moved to {there} while it was trained")

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
        if self.saved_step is None or self.recorded_step == 0:
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
            self._check_place()
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
        self._check_place()
        trainer, world = self.trainer, self.trainer.world
        ema = world.gather_full_tensors(trainer.ema.model.state_dict().items())
        training = world.gather_full_tensors(capture(trainer).items())
        snapshot = world.gather_full_tensors(trainer.ema.snapshot().items())
        if world.main:
            self._write(metrics, ema, training, snapshot)
        self.saved_step = trainer.step
        if world.main and remove_old:
            self._remove_old()

    def _write(
        self,
        metrics: MetricsLogger | None,
        ema: dict[str, Tensor],
        training: dict[str, Tensor],
        snapshot: dict[str, Tensor],
    ) -> None:
        trainer = self.trainer
        for name, tensor in (*ema.items(), *training.items()):
            if tensor.is_floating_point() and not name.startswith(UNLOGGED) and not torch.isfinite(tensor).all():
                raise NonFiniteError(f"{name} is not finite after step {trainer.step - 1}: nothing was saved")
        if metrics is not None:
            metrics.flush()
        directory = self.directory / run_dir.CHECKPOINTS
        description = describe(trainer, self.options)
        if snapshot and trainer.ema.updates > 0:
            averages = self.directory / run_dir.AVERAGES
            checkpoint.save_snapshot(averages, snapshot, description, updates=trainer.ema.updates)
        checkpoint.save(directory, ema=ema, training=training, description=description)

    def _remove_old(self) -> None:
        config, directory = self.trainer.config, self.directory / run_dir.CHECKPOINTS
        try:
            checkpoint.remove_old(directory, keep_last=config.keep_last, keep_every=config.keep_every)
        except OSError as error:  # the new one is safe, which is what counts
            log.warning(f"step {self.trainer.step}: an old checkpoint cannot be removed: {error}")

    # How it may end --------------------------------------------------------------------------------------------------

    def _ended_by(self, error: BaseException) -> RunError:
        """What to end with; what is in memory has been saved if it is whole, finite and this process's to save."""
        if isinstance(error, NonFiniteError):
            replay = self._replay()  # first: it may save what the rest speaks of
            message = f"{error}. {replay}. {self._how_to_resume()}{self._how_to_go_another_way()}"
            status = NON_FINITE
        else:
            what, status = ending.reason(error, self.trainer)
            message = f"step {self.trainer.step}: {what}"
            if self.place is None or not self.place.left():
                message += f". {self._save_what_is_there()}{self._how_to_resume()}"
        ending.put_on_record(message, error)
        if not self.trainer.world.main and not isinstance(error, NonFiniteError | LostRankError):
            rank = self.trainer.world.rank  # of those that come to it together only the first speaks for all
            print(f"ddpm-train: process {rank}: {printable(message)}", file=sys.stderr)
        return RunError(message, status)

    def _save_what_is_there(self) -> str:
        """Save, without the records and without other processes, and say so; empty if there is nothing to save."""
        trainer, world = self.trainer, self.trainer.world
        if not world.main or trainer.step in (0, self.saved_step):
            return ""
        if not trainer.whole:
            return "Not saved in the middle of a step. "
        try:
            if world.size > 1 and (trainer.config.fsdp or trainer.first_fault >= 0):
                return "Not saved, which would take the other processes. "
            self._save(None, remove_old=False)
        except Exception as error:
            return f"Not saved: {ending.first_line(error)}. "
        return f"Saved at step {trainer.step:,}. "

    def _how_to_resume(self) -> str:
        if self.saved_step is None:
            return f"No checkpoint had been saved in {self.directory}"
        return f"From step {self.saved_step:,} on: {command('ddpm-train', override('resume', self.directory))}"

    def _how_to_go_another_way(self) -> str:
        """The same step would come out the same for ever."""
        if self.saved_step is None:
            return ""
        checkpoint = self.directory / run_dir.CHECKPOINTS / run_dir.step_name(self.saved_step)
        another = command("ddpm-train", override("fork", checkpoint))
        return f"; with other settings: {another} KEY=VALUE, say a smaller optimizer.lr"

    def _replay(self) -> str:
        """Save the state that the step started from, so that resuming replays exactly this step."""
        if self.saved_step != self.trainer.step:
            try:
                self._save(None, remove_old=False)
            except (OSError, NonFiniteError) as error:
                return f"Its state could not be saved ({error})"
        return "Nothing of it reached the weights, and resuming replays exactly this step"
