"""What can be seen of a run while it goes: progress bar, log lines, metrics.jsonl, TensorBoard, preview pictures."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import summary
from tqdm import tqdm

from ddpm_cli.evaluation.timestep_bins import mean_by_t
from ddpm_cli.io.event_files import Appended, Events
from ddpm_cli.io.images import grid, save_png
from ddpm_cli.io.run_dir import step_name
from ddpm_cli.runtime.logs import log
from ddpm_cli.training.measured import ERROR, Evaluation
from ddpm_cli.training.step_stats import Progress

LONGEST_LINE = 2**16  # bytes of metrics.jsonl
LOSS = "loss/mean"


def recorded_to(metrics: Path) -> int:
    """The step of the last whole line of a metrics.jsonl, 0 if there is none: all records have it."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return int(_last_line(metrics)["step"])
    return 0


def last_loss(metrics: Path) -> float:
    """The last loss in a metrics.jsonl, NaN if there is none."""
    losses = [line[LOSS] for line in lines_of(metrics) if isinstance(line.get(LOSS), int | float)]
    return float(losses[-1]) if losses else math.nan


def lines_of(metrics: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl, which may be anybody's, up to the first that is none of ours.

    Each has a whole number `step`.
    """
    with suppress(OSError, ValueError, RecursionError), metrics.open("rb") as file:
        for text in iter(lambda: file.readline(LONGEST_LINE), b""):
            line = json.loads(text)
            if not text.endswith(b"\n") or not isinstance(line, dict) or not isinstance(line.get("step"), int):
                return
            yield line


def _last_line(metrics: Path) -> dict:
    with metrics.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE))
        return json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])


class MetricsLogger:
    """Writes to a run's records, and to the log.

    Args:
        metrics, tensorboard, previews: the file (one JSON object per line) and the directories to write to.
        first_step, steps: where the bar starts and ends.
        timesteps: T, to sort losses by noise level.
        device: whose memory to report; only CUDA's is.
    """

    def __init__(
        self,
        *,
        metrics: Path,
        tensorboard: Path,
        previews: Path,
        first_step: int,
        steps: int,
        timesteps: int,
        device: torch.device,
    ):
        self.previews = previews
        self.timesteps = timesteps
        self.device = device
        self.events = Events(tensorboard)
        self.metrics = Appended(metrics)
        # disable=None: no bar where stderr is no terminal; log lines are printed there instead.
        self.bar = tqdm(total=steps, initial=first_step, unit="step", desc="training", disable=None, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.close()
        for file in (self.events.file, self.metrics):
            with suppress(OSError):  # flushed before every checkpoint: what is in it is no longer in question
                file.close()

    def flush(self) -> None:
        """Have everything on record: before a checkpoint, as a run that is resumed from it will not do it again."""
        self.events.file.flush()
        self.metrics.flush()

    def config(self, text: str) -> None:
        """Show the resolved configuration (YAML) among TensorBoard's texts."""
        self.events.add(summary.text("config", f"```yaml\n{text}\n```"), 0)

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
        for name, value in scalars.items():
            self.events.add(summary.scalar(name, value), progress.step)
        self._write_line(progress.step, scalars)
        self.bar.set_postfix_str(f"loss {progress.loss:.4f}, {progress.images_per_second:,.0f} img/s", refresh=False)
        log.info(
            f"step {progress.step}/{self.bar.total}  loss {progress.loss:.4f}  grad norm {progress.grad_norm:.3f}  "
            f"lr {progress.learning_rate:.2e}  {progress.images_per_second:,.0f} img/s  "
            f"data {progress.data_fraction:.1%}",
            extra={"on_bar": True},
        )

    def evaluation(self, found: Evaluation) -> None:
        """Report what has been measured of the EMA. The line of metrics comes last: it says that all is on record."""
        for name, value in (found.figures | found.by_t).items():
            self.events.add(summary.scalar(name, value), found.step)
        scalars = found.figures | found.errors | found.by_t
        self._write_line(found.step, scalars)
        said = []
        for key, value in found.figures.items():
            name = key.partition("/")[2]
            error = found.errors.get(f"{ERROR}/{name}", math.nan)
            said.append(f"{name} {value:.4g}{'' if math.isnan(error) else f' +- {error:.2g}'}")
        log.info(f"eval     step {found.step:,}: {', '.join(said)}")

    def _write_line(self, step: int, scalars: dict[str, float]) -> None:
        # JSON has no NaN, which is the gradient norm's mean where every step overflowed.
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self.metrics.write(f"{json.dumps({'step': step} | finite)}\n".encode())

    def preview(self, step: int, images: Tensor) -> None:
        """Show uint8 samples `[N, C, H, W]` as a grid, in TensorBoard and as a PNG."""
        picture = grid(images)
        self.events.add(summary.image("preview", picture.numpy(), dataformats="CHW"), step)
        self.previews.mkdir(exist_ok=True)
        save_png(picture, self.previews / f"{step_name(step)}.png")

    def _loss_by_t(self, progress: Progress) -> dict[str, float]:
        """Mean loss in ten equal bins of t, named by their first timestep; empty bins are left out."""
        by_t = mean_by_t(progress.losses, progress.t, self.timesteps)
        return {f"loss_by_t/{first}": loss for first, loss in by_t.items()}
