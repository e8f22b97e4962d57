"""What can be seen of a run while it goes: progress bar, log lines, metrics.jsonl, TensorBoard, preview pictures."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import summary
from tqdm import tqdm

from ddpm_cli.io.images import grid, save_png
from ddpm_cli.io.run_dir import step_name
from ddpm_cli.runtime.logs import log
from ddpm_cli.training.event_files import Appended, Events
from ddpm_cli.training.step_stats import Progress

T_BINS = 10
LONGEST_LINE = 2**16  # bytes of metrics.jsonl


def recorded_to(metrics: Path) -> int:
    """The step of the last whole line of a metrics.jsonl, 0 if there is none: all records have it."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return int(_last_line(metrics)["step"])
    return 0


def last_loss(metrics: Path) -> float:
    """The loss in the last whole line of a metrics.jsonl, NaN if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return float(_last_line(metrics)["loss/mean"])
    return math.nan


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
            "loss/mean": progress.loss,
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
        # JSON has no NaN, which is the gradient norm's mean where every step overflowed.
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self.metrics.write(f"{json.dumps({'step': progress.step} | finite)}\n".encode())
        self.bar.set_postfix_str(f"loss {progress.loss:.4f}, {progress.images_per_second:,.0f} img/s", refresh=False)
        log.info(
            f"step {progress.step}/{self.bar.total}  loss {progress.loss:.4f}  grad norm {progress.grad_norm:.3f}  "
            f"lr {progress.learning_rate:.2e}  {progress.images_per_second:,.0f} img/s  "
            f"data {progress.data_fraction:.1%}",
            extra={"on_bar": True},
        )

    def preview(self, step: int, images: Tensor) -> None:
        """Show uint8 samples `[N, C, H, W]` as a grid, in TensorBoard and as a PNG."""
        picture = grid(images)
        self.events.add(summary.image("preview", picture.numpy(), dataformats="CHW"), step)
        self.previews.mkdir(exist_ok=True)
        save_png(picture, self.previews / f"{step_name(step)}.png")

    def _loss_by_t(self, progress: Progress) -> dict[str, float]:
        """Mean loss in ten equal bins of t, named by their first timestep; empty bins are left out."""
        bins = progress.t * T_BINS // self.timesteps
        return {
            f"loss_by_t/{-(-self.timesteps * i // T_BINS):04d}": progress.losses[bins == i].mean().item()
            for i in range(T_BINS)
            if (bins == i).any()
        }
