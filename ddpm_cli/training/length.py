"""How long a run still takes, by its own steps, and what its checkpoints take on the disk: said once, early on."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from ddpm_cli.io.text import duration_text
from ddpm_cli.runtime.logs import log
from ddpm_cli.training.checks import Disk, disk_of
from ddpm_cli.training.step_stats import Progress
from ddpm_cli.training.trainer import Trainer
from ddpm_cli.training.trainer_config import TrainerConfig

SETTLING_STEPS = 3  # memory is found in these, kernels are chosen, networks compiled
MEASURED_STEPS = 3  # at least
MEASURED_SECONDS = 3.0  # at least: a clock and a scheduler tell little of less
YEAR = timedelta(days=365.25)


class Pace:
    """Seconds per step, of steps after the first few, without what a run does between them.

    A clock on the host says how long steps took only between moments at which the device had nothing left to do. None
    is brought about for this: where every step waits for the device they are the ends of steps, else those of steps
    after which the log has read its figures from there.

    Args:
        waits: whether every step waits for the device.
        clock: in seconds.
    """

    def __init__(self, *, waits: bool, clock: Callable[[], float] = time.perf_counter):
        self._waits = waits
        self._clock = clock
        self._steps = 0
        self._between = 0.0  # seconds that were spent elsewhere
        self._ended = 0.0  # when the last step did
        self._begun: tuple[int, float] | None = None  # steps done, and when, where measuring began
        self.seconds: float | None = None  # per step, once known

    def step_ended(self, *, read: bool) -> None:
        """To be called after a step; `read`: the log has read its figures from the device."""
        self._ended = self._clock()
        self._steps += 1
        if self.seconds is not None or not (self._waits or read) or self._steps < SETTLING_STEPS:
            return
        now = self._ended - self._between
        if self._begun is None:
            self._begun = self._steps, now
            return
        steps, seconds = self._steps - self._begun[0], now - self._begun[1]
        if steps >= MEASURED_STEPS and seconds >= MEASURED_SECONDS:
            self.seconds = seconds / steps

    def step_begins(self) -> None:
        """To be called before the next one: what was done since the last does not count."""
        self._between += self._clock() - self._ended


class Length:
    """Says how long a run takes, once `trainer` has done a few steps of it; of several ranks the first one does."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._pace = Pace(waits=not trainer.defers_finite_check)
        self._disk = disk_of(trainer)
        self._step = trainer.step

    def step_ended(self, progress: Progress | None) -> None:
        """To be called after every step, with what there is to log of it."""
        trainer = self._trainer
        # A resumed run may owe the log an entry, for which it does no step.
        if trainer.step == self._step or self._pace.seconds is not None:
            return
        self._step = trainer.step
        self._pace.step_ended(read=progress is not None)
        if self._pace.seconds is not None and trainer.world.main and trainer.step < trainer.config.steps:
            _say(self._pace.seconds, trainer.config, trainer.step, self._disk)

    def step_begins(self) -> None:
        """To be called before the next one."""
        self._pace.step_begins()


def _say(seconds: float, config: TrainerConfig, step: int, disk: Disk) -> None:
    """Log how long the steps after `step` take at `seconds` each, and what the checkpoints will take."""
    left = timedelta(seconds=seconds * (config.steps - step))
    if left > YEAR:
        log.warning(
            f"length   {seconds:.3g} s per step: trainer.steps={config.steps} take {left / YEAR:,.1f} years more on "
            "this machine; fewer of them, a smaller network (model.base_channels), smaller images or another "
            "trainer.device take less"
        )
    else:
        beside = "" if config.eval_every == 0 else ", evaluations aside"
        log.info(
            f"length   {seconds:.3g} s per step: {duration_text(left.total_seconds())} left{beside}, done about "
            f"{_when(datetime.now(), left)}; {_disk(disk)}"
        )


def _when(now: datetime, left: timedelta) -> str:
    end = now + left
    return f"{end:%H:%M}" if end.date() == now.date() else f"{end:%Y-%m-%d %H:%M}"


def _disk(disk: Disk) -> str:
    one, all_of_them = _size(disk.checkpoint), _size(disk.kept * disk.checkpoint)
    said = f"its checkpoint takes {one}" if disk.kept == 1 else f"{disk.kept} checkpoints of {one} take {all_of_them}"
    return said if disk.averages == 0 else f"{said}, averages {_size(disk.averages)}"


def _size(count: float) -> str:
    """Bytes, as people say them."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:,.3g} TB"
