"""The checkpoints of a run: which exist, how they are saved, and the messages on how to resume from them."""

from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint.tensor_names import UNLOGGED
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.io import run_dir
from ddpm_cli.io.command_line import command, override
from ddpm_cli.io.run_identity import Place
from ddpm_cli.loggers.of_run import overrides
from ddpm_cli.runtime.exit_codes import RunError
from ddpm_cli.runtime.logs import log
from ddpm_cli.training import ending
from ddpm_cli.training.best import Best
from ddpm_cli.training.checks import describe
from ddpm_cli.training.metrics import MetricsLogger
from ddpm_cli.training.train_state import capture
from ddpm_cli.training.trainer import NonFiniteError, Trainer


class Checkpoints:
    """The checkpoints of a run, and its directory. Every rank has this; rank 0 writes.

    Attributes:
        directory: of the run; changes if somebody moves it.
        step: of the newest checkpoint; None: there is none.
    """

    def __init__(self, trainer: Trainer, options: TrainOptions, directory: Path):
        self.trainer = trainer
        self.options = options
        self.directory = directory
        self._place = Place(directory) if trainer.world.main else None
        # The one that was resumed from; later ones are known once they have been saved. A fork has another run's.
        self.step = trainer.step if run_dir.by_step(directory / run_dir.CHECKPOINTS) else None

    @property
    def newest(self) -> Path:
        """The directory of the newest checkpoint."""
        assert self.step is not None
        return self.directory / run_dir.CHECKPOINTS / run_dir.step_name(self.step)

    @property
    def in_place(self) -> bool:
        """Whether the run's directory is still in its place; always true on ranks that write nothing."""
        return self._place is None or not self._place.left()

    def check_place(self) -> None:
        """Raises RunError if the directory has been moved or removed, so that no files are scattered over the disk."""
        if self._place is None or not self._place.left():
            return
        here, there = self.directory, self._place.moved_to()
        if there is None:
            raise RunError(f"{here} was removed while the run was training, with everything that it had saved")
        self.directory, self._place.directory = there, there  # where it is saved before the run ends
        raise RunError(f"{here} was moved to {there} while the run was training")

    def save(self, metrics: MetricsLogger | None) -> None:
        """Save a checkpoint, to which sharded ranks contribute their parts; returns when it is safe.

        Args:
            metrics: flushed to the disk before; None: there are none.

        Raises:
            NonFiniteError: if a value in it is not finite: nothing was saved.
            OSError: on rank 0, if it cannot be written.
            RunError: as `check_place`.
        """
        self.check_place()
        trainer, world = self.trainer, self.trainer.world
        ema = world.gather_full_tensors(trainer.ema.model.state_dict().items())
        training = world.gather_full_tensors(capture(trainer).items())
        snapshot = world.gather_full_tensors(trainer.ema.snapshot().items())
        if world.main:
            self._write(metrics, ema, training, snapshot)
        self.step = trainer.step

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

    def remove_old(self, best: Best | None) -> None:
        """Remove checkpoints that need not be kept; does nothing on ranks that write nothing."""
        if not self.trainer.world.main:
            return
        config, directory = self.trainer.config, self.directory / run_dir.CHECKPOINTS
        try:
            keep = {"keep_last": config.keep_last, "keep_every": config.keep_every}
            checkpoint.remove_old(directory, **keep, best=None if best is None else best.step)
        except OSError as error:  # the new one is safe, which is what matters
            log.warning(f"step {self.trainer.step}: an old checkpoint cannot be removed: {error}")

    # Of a run that ends early ----------------------------------------------------------------------------------------

    def save_what_is_there(self) -> str:
        """Save, without records and other processes; returns a sentence on it, empty if there is nothing to save."""
        trainer, world = self.trainer, self.trainer.world
        if not world.main or trainer.step in (0, self.step):
            return ""
        if not trainer.whole:
            return "Not saved in the middle of a step. "
        try:
            if world.size > 1 and (trainer.config.fsdp or trainer.first_fault >= 0):
                return "Not saved, which would take the other processes. "
            self.save(None)
        except Exception as error:
            return f"Not saved: {ending.first_line(error)}. "
        return f"Saved at step {trainer.step:,}. "

    def save_for_replay(self) -> str:
        """Save the state from which a step started, so that resuming replays exactly this step; returns a sentence."""
        if self.step != self.trainer.step:
            try:
                self.save(None)
            except (OSError, NonFiniteError) as error:
                return f"Its state could not be saved ({error})"
        return "Nothing of it reached the weights, and resuming replays exactly this step"

    @property
    def loggers(self) -> list[str]:
        """The options that must be given again when the run is resumed."""
        return overrides(self.options.logger)

    def how_to_resume(self) -> str:
        """A sentence with the command that resumes the run."""
        if self.step is None:
            return f"No checkpoint had been saved in {self.directory}"
        resume = override("resume", self.directory)
        return f"From step {self.step:,} on: {command('ddpm-train', resume, *self.loggers)}"

    def how_to_go_another_way(self) -> str:
        """An addition to it, if the same step would fail in the same way again."""
        if self.step is None:
            return ""
        another = command("ddpm-train", override("fork", self.newest), *self.loggers)
        return f"; with other settings: {another} KEY=VALUE, say a smaller optimizer.lr"
