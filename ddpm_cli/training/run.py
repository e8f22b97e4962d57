"""A run in its directory: the training loop with its metrics, previews and checkpoints, and the ways it may end."""

import os
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import yaml

from ddpm_cli import checkpoint
from ddpm_cli.config.compare import LOGGER
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.distributed.process_group import LostRankError
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.metrics_file import last_loss
from ddpm_cli.io.run_identity import identity_of
from ddpm_cli.io.text import printable
from ddpm_cli.loggers.logger import RunInfo
from ddpm_cli.loggers.of_run import RunLoggers, left_out
from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError, Stopped
from ddpm_cli.runtime.interruptible import carried_out
from ddpm_cli.runtime.logs import append, log
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.training import ending
from ddpm_cli.training.announcement import announce, origin, picture_data
from ddpm_cli.training.best import write_best
from ddpm_cli.training.build import Training
from ddpm_cli.training.cut_back import cut_back
from ddpm_cli.training.evaluations import Evaluations
from ddpm_cli.training.length import Length
from ddpm_cli.training.measured import final_figures, outcome
from ddpm_cli.training.metrics import MetricsLogger
from ddpm_cli.training.previews import preview
from ddpm_cli.training.saving import Checkpoints
from ddpm_cli.training.step_stats import Progress
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
        sweep: the name of the sweep that it is a run of.
    """

    def __init__(self, training: Training, directory: Path, stop: Stop, *, sweep: str | None = None):
        self.trainer, self.sampler, self.options = training.trainer, training.sampler, training.options
        self.loggers, self.sweep = training.loggers, sweep
        self.evaluations = Evaluations(training)
        self.checkpoints = Checkpoints(self.trainer, self.options, directory)
        self.length = Length(self.trainer)
        self.stop = stop
        self.first_step = self.trainer.step
        self.recorded_step = self.first_step - self.trainer.owes_progress  # of what is on record to stay
        self.loss = last_loss(directory / run_dir.METRICS_FILE)
        self.done = False  # whether the last step has been saved: nothing makes this run a failure any more

    @property
    def directory(self) -> Path:
        """Of the run."""
        return self.checkpoints.directory

    def run(self, remarks: Sequence[str] = (), warnings: Sequence[str] = ()) -> float:
        """Train to the last step; returns the last loss that was logged, or the figure that is the run's objective.

        Args:
            remarks, warnings: to be said first.

        Raises:
            RunError: if it had to end early; says what has been saved, what is lost and how to resume.
            Stopped: if it was asked to; everything has been saved.
        """
        if self.trainer.world.main:
            self.stop.keep = partial(append, self.directory / run_dir.LOG_FILE)
            self.stop.lost = lambda: ending.lost(self.trainer.step, self.checkpoints.step, self.first_step)
        begun = False
        try:
            if self.trainer.world.main:
                for remark in remarks:
                    log.info(remark)
                for warning in warnings:
                    log.warning(warning)
                self._begin_records()
                begun = True
                resumed = self.checkpoints.step is not None
                announce(self.trainer, self.options, self.directory, resumed=resumed)
                missed = left_out(self.directory, self.loggers)
                if missed is not None:
                    log.warning(missed)
                picture_data(self.trainer, self.options, self.directory)
            with self._metrics_logger() as metrics:
                self.stop.defer("saving after this step")
                self._train(metrics)
            log.info(f"saved    {self.checkpoints.newest}")
            for line in ending.what_next(self.trainer, self.directory, self.checkpoints.loggers):
                log.info(line)
        except Stopped as stopped:
            ending.put_on_record(str(stopped))
            raise
        except BaseException as error:
            if isinstance(error, ConfigError) and not begun:  # records that are not ours: nothing has been changed
                raise
            if not self.done:
                raise self._ended_by(error) from error
            ending.put_on_record(f"after the last step had been saved: {ending.first_line(error)}")
        return outcome(self.options.objective, self.loss, self.evaluations.last)

    def _train(self, metrics: MetricsLogger | None) -> None:
        trainer = self.trainer
        self.evaluations.recall(self.directory)
        if not trainer.owes_progress and self._preview_is_missing():
            self._preview(metrics)
        if not trainer.owes_progress and self.evaluations.missing:
            self._evaluate(metrics)
        self._end_if_asked(metrics)
        with self._profiled() as step_is_done:
            for progress in trainer.run():
                step_is_done()
                self.length.step_ended(progress)
                self._after_step(metrics, progress)
                if trainer.step < trainer.config.steps:
                    self._end_if_asked(metrics)
                self.length.step_begins()
        if self.evaluations.missing:  # asked to stop, and it may take long
            self._end_if_asked(metrics)
        if self._preview_is_missing():  # asked to stop, but nothing else is left to do
            self._preview(metrics, to_the_end=True)
        trainer.world.barrier()
        self._finish()
        if metrics is not None:
            metrics.summary = final_figures(self.options.objective, self.loss, self.evaluations.last)

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
        if due and self.checkpoints.step != trainer.step:
            self._save(metrics)
        if self.evaluations.missing:
            self._evaluate(metrics)
        if trainer.step == config.steps and trainer.world.main and not self.evaluations.missing:
            self._finish()

    def _end_if_asked(self, metrics: MetricsLogger | None) -> None:
        """Raises `Stopped`, with the state saved, if any rank was asked to stop."""
        trainer = self.trainer
        if not self._any_asked_to_stop():
            return
        if self.checkpoints.step != trainer.step:
            self._save(metrics)
        if metrics is not None:
            metrics.end("stopped")
        trainer.world.barrier()  # a launcher ends the others as soon as one has gone
        raise Stopped(
            f"{self.stop.signal or 'a signal to another process'}: stopped at step {trainer.step:,} and saved. "
            f"{self.checkpoints.how_to_resume()}"
        )

    def _due(self, every: int) -> bool:
        return self.trainer.config.due(every, self.trainer.step)

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

    def _metrics_logger(self) -> AbstractContextManager[MetricsLogger | None]:
        if not self.trainer.world.main:
            return nullcontext()
        return MetricsLogger(
            metrics=self.directory / run_dir.METRICS_FILE,
            previews=self.directory / run_dir.PREVIEWS,
            loggers=self._begun_loggers(),
            first_step=self.first_step,
            steps=self.trainer.config.steps,
            batch_size=self.trainer.config.batch_size,
            epoch_images=self.trainer.batches.epoch_images,
            timesteps=self.trainer.ddpm.schedule.timesteps,
            device=self.trainer.compute.device,
        )

    def _begun_loggers(self) -> RunLoggers:
        identity = identity_of(self.directory)
        place = self.directory.absolute()
        about = RunInfo(
            id=uuid.uuid4().hex if identity is None else identity.id,
            name=f"{place.parent.name}/{place.name}",
            group=self.sweep,
            directory=self.directory,
            config={key: value for key, value in asdict(self.options).items() if key != LOGGER},
            pid=os.getpid(),
        )
        nodes, asked = self.options.logger, lambda: self.stop.requested
        return RunLoggers(self.loggers, nodes, about, recorded=self.recorded_step, asked_to_stop=asked)

    def _profiled(self) -> AbstractContextManager[Callable[[], None]]:
        steps = self.trainer.config.profile_steps
        if steps == 0 or not self.trainer.world.main:
            return nullcontext(lambda: None)
        from ddpm_cli.training.profile import profiled  # torch's profiler takes a while to import

        return profiled(self.directory, steps=steps, device=self.trainer.compute.device)

    def _preview_is_missing(self) -> bool:
        """Whether the run was stopped in the middle of this step's preview."""
        step, pictures = self.trainer.step, self.directory / run_dir.PREVIEWS
        due = step > 0 and self._due(self.trainer.config.preview_every)
        return due and self.trainer.world.broadcast(not (pictures / f"{run_dir.step_name(step)}.png").exists())

    def _preview(self, metrics: MetricsLogger | None, *, to_the_end: bool = False) -> None:
        self.trainer.check_finite()
        work = preview(self.trainer, self.sampler, self.options.seed)
        images = carried_out(work, unless=lambda: self._any_asked_to_stop() and not to_the_end)
        if images is not None and metrics is not None:
            self.checkpoints.check_place()
            metrics.preview(self.trainer.step, images)

    def _evaluate(self, metrics: MetricsLogger | None) -> None:
        """Put on record how good the average is now, and keep its checkpoint if none was as good before.

        Nothing, if asked to stop meanwhile. Raises as `Checkpoints.save`.
        """
        found = self.evaluations.measure(unless=self._any_asked_to_stop)
        if found is None:
            return
        if metrics is not None:
            self.checkpoints.check_place()
            metrics.evaluation(found)
        best = self.evaluations.better(found)
        if best is None:
            return
        if self.checkpoints.step != self.trainer.step:
            self._save(metrics)
        self.evaluations.best = best  # from now on the one before it may go
        if metrics is not None:
            metrics.flush()
            write_best(self.directory, best)
            self.checkpoints.remove_old(best)

    def _any_asked_to_stop(self) -> bool:
        return self.trainer.world.any(self.stop.requested)

    def _save(self, metrics: MetricsLogger | None) -> None:
        """Save a checkpoint, and remove those that are not to be kept. Raises as `Checkpoints.save`."""
        self.checkpoints.save(metrics)
        self.checkpoints.remove_old(self.evaluations.best)

    def _ended_by(self, error: BaseException) -> RunError:
        """What to end with; what is in memory has been saved if it is whole, finite and this process's to save."""
        saved = self.checkpoints
        if isinstance(error, NonFiniteError):
            replay = saved.save_for_replay()  # first: it may save what the rest speaks of
            message = f"{error}. {replay}. {saved.how_to_resume()}{saved.how_to_go_another_way()}"
            status = NON_FINITE
        else:
            what, status = ending.reason(error, self.trainer)
            message = f"step {self.trainer.step}: {what}"
            if saved.in_place:
                message += f". {saved.save_what_is_there()}{saved.how_to_resume()}"
        ending.put_on_record(message, error)
        if not self.trainer.world.main and not isinstance(error, NonFiniteError | LostRankError):
            rank = self.trainer.world.rank  # of those that come to it together only the first speaks for all
            print(f"ddpm-train: process {rank}: {printable(message)}", file=sys.stderr)
        return RunError(message, status)
