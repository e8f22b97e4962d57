"""What can be seen of a run while it goes: progress bar, log lines, metrics.jsonl, loggers, preview pictures."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli.evaluation.timestep_bins import mean_by_t
from ddpm_cli.io.event_files import Appended
from ddpm_cli.io.images import as_png, grid, on_checks, save_png
from ddpm_cli.io.metrics_file import EPOCH, IMAGES, LOSS, TIME
from ddpm_cli.io.run_dir import step_name
from ddpm_cli.loggers.logger import PREVIEW, Ending, State
from ddpm_cli.loggers.of_run import RunLoggers
from ddpm_cli.runtime.exit_codes import Stopped
from ddpm_cli.runtime.logs import log
from ddpm_cli.training.measured import ERROR, Evaluation
from ddpm_cli.training.step_stats import Progress


class Bar(tqdm):
    """How far training is, in a terminal: steps, epochs, speed, time left."""

    def __init__(self, *, batch_size: int, epoch_images: int, **options: Any):
        self.batch_size = batch_size
        self.epoch_images = epoch_images
        super().__init__(
            **options,
            smoothing=0.05,  # of the speed: a preview in between is not to count for much
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, epoch {epochs}, {speed} img/s, {remaining} left"
            "{postfix}",
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        """What `bar_format` has words for."""
        found = dict(super().format_dict)
        rate = found["rate"] or ((self.n - self.initial) / found["elapsed"] if found["elapsed"] > 0 else 0.0)
        epochs = [self.epochs_of(step) for step in (self.n, self.total)]
        found["epochs"] = "/".join(f"{count:,.{1 if epochs[1] < 1000 else 0}f}" for count in epochs)
        found["speed"] = f"{rate * self.batch_size:,.0f}" if rate > 0 else "?"
        return found

    def epochs_of(self, step: int) -> float:
        """How often the stream of batches has gone through its images after a step."""
        return step * self.batch_size / self.epoch_images


class MetricsLogger:
    """Writes to a run's records, to the log, and to its loggers.

    Args:
        metrics, previews: the file (one JSON object per line) and the directory to write to.
        loggers: have begun; are ended with this.
        first_step, steps: where the bar starts and ends.
        batch_size, epoch_images: how many images a step has, and how many different ones there are.
        timesteps: T, to sort losses by noise level.
        device: whose memory to report; only CUDA's is.

    Attributes:
        summary: what loggers are to show of the run once it is done.
    """

    def __init__(
        self,
        *,
        metrics: Path,
        previews: Path,
        loggers: RunLoggers,
        first_step: int,
        steps: int,
        batch_size: int,
        epoch_images: int,
        timesteps: int,
        device: torch.device,
    ):
        self.previews = previews
        self.loggers = loggers
        self.timesteps = timesteps
        self.device = device
        self.summary: dict[str, float] = {}
        self._step = first_step  # of what has been shown last
        self.metrics = Appended(metrics)
        # disable=None: no bar where stderr is no terminal; log lines are printed there instead.
        images = {"batch_size": batch_size, "epoch_images": epoch_images}
        self.bar = Bar(total=steps, initial=first_step, disable=None, **images)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.close()
        with suppress(OSError):  # flushed before every checkpoint: what is in it is no longer in question
            self.metrics.close()
        self.end("finished" if error is None else "stopped" if isinstance(error, Stopped) else "failed")

    def end(self, state: State) -> None:
        """Have loggers show that the run has ended, and how; nothing more will come."""
        self.loggers.end(Ending(state=state, step=self._step, summary=self.summary))

    def flush(self) -> None:
        """Have everything on record: before a checkpoint, as a run that is resumed from it will not do it again."""
        self.loggers.flush()
        self.metrics.flush()

    def progress(self, progress: Progress) -> None:
        """Report the steps since the last report."""
        scalars = {
            LOSS: progress.loss,
            "train/grad_norm": progress.grad_norm,
            "train/learning_rate": progress.learning_rate,
            "train/ema_decay": progress.ema_decay,
            "train/overflows": progress.overflows,
            "time/images_per_second": progress.images_per_second,
            "time/data_fraction": progress.data_fraction,
        }
        if self.device.type == "cuda":
            scalars["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        scalars |= self._loss_by_t(progress)
        self._record(progress.step, scalars)
        self.bar.set_postfix_str(f"loss {progress.loss:.4f}", refresh=False)
        log.info(
            f"step {progress.step}/{self.bar.total}  loss {progress.loss:.4f}  grad norm {progress.grad_norm:.3f}  "
            f"lr {progress.learning_rate:.2e}  {progress.images_per_second:,.0f} img/s  "
            f"data {progress.data_fraction:.1%}",
            extra={"on_bar": True},
        )

    def evaluation(self, found: Evaluation) -> None:
        """Report what has been measured of the EMA. The line of metrics comes last: it says that all is on record."""
        self._record(found.step, found.figures | found.errors | found.by_t)
        said = []
        for key, value in found.figures.items():
            name = key.partition("/")[2]
            error = found.errors.get(f"{ERROR}/{name}", math.nan)
            said.append(f"{name} {value:.4g}{'' if math.isnan(error) else f' +- {error:.2g}'}")
        log.info(f"eval     step {found.step:,}: {', '.join(said)}")

    def _record(self, step: int, scalars: dict[str, float]) -> None:
        self._step = step
        self.loggers.scalars(step, scalars)
        # JSON has no NaN, which is the gradient norm's mean where every step overflowed.
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        images = step * self.bar.batch_size
        place = {"step": step, EPOCH: round(self.bar.epochs_of(step), 4), IMAGES: images, TIME: round(time.time(), 3)}
        self.metrics.write(f"{json.dumps(place | finite)}\n".encode())

    def preview(self, step: int, images: Tensor) -> None:
        """Show uint8 samples `[N, C, H, W]` as a grid, in loggers and as a PNG, which says that it is on record."""
        png = as_png(on_checks(grid(images)))
        for logger in self.loggers.records:
            logger.image(step, PREVIEW, png)
        self.previews.mkdir(exist_ok=True)
        save_png(png, self.previews / f"{step_name(step)}.png")
        for logger in self.loggers.aside:
            logger.image(step, PREVIEW, png)

    def _loss_by_t(self, progress: Progress) -> dict[str, float]:
        """Mean loss in ten equal bins of t, named by their first timestep; empty bins are left out."""
        by_t = mean_by_t(progress.losses, progress.t, self.timesteps)
        return {f"loss_by_t/{first}": loss for first, loss in by_t.items()}
