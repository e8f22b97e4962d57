"""What can be seen of a run while it goes: the progress bar, log lines, TensorBoard, preview pictures."""

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ddpm_cli.images import grid, save_png
from ddpm_cli.logs import log
from ddpm_cli.training.trainer import Progress

T_BINS = 10


class Monitor:
    """Writes below a run directory: `tensorboard/`, `previews/`, and the log.

    Args:
        run_directory: where to.
        first_step, steps: where the bar starts and ends.
        timesteps: T, to sort losses by noise level.
        device: whose memory to report; only CUDA's is.
    """

    def __init__(self, run_directory: Path, *, first_step: int, steps: int, timesteps: int, device: torch.device):
        self.previews = run_directory / "previews"
        self.timesteps = timesteps
        self.device = device
        self.writer = SummaryWriter(run_directory / "tensorboard")
        # disable=None: no bar where stderr is no terminal; log lines are printed there instead.
        self.bar = tqdm(total=steps, initial=first_step, unit="step", desc="training", disable=None, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.close()
        self.writer.close()

    def config(self, text: str) -> None:
        """Show the resolved configuration (YAML) among TensorBoard's texts."""
        self.writer.add_text("config", f"```yaml\n{text}\n```")

    def progress(self, progress: Progress) -> None:
        """Report the steps since the last report."""
        loss = progress.losses.mean().item()
        scalars = {
            "loss/mean": loss,
            "train/grad_norm": progress.grad_norm,
            "train/learning_rate": progress.learning_rate,
            "train/ema_decay": progress.ema_decay,
            "train/overflows": progress.overflows,
            "time/images_per_second": progress.images_per_second,
            "time/data_fraction": progress.data_fraction,
        }
        if self.device.type == "cuda":
            scalars["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        for name, value in (scalars | self._loss_by_t(progress)).items():
            self.writer.add_scalar(name, value, progress.step)
        self.bar.set_postfix_str(f"loss {loss:.4f}, {progress.images_per_second:,.0f} img/s", refresh=False)
        log.info(
            f"step {progress.step}/{self.bar.total}  loss {loss:.4f}  grad norm {progress.grad_norm:.3f}  "
            f"lr {progress.learning_rate:.2e}  {progress.images_per_second:,.0f} img/s  "
            f"data {progress.data_fraction:.1%}",
            extra={"on_bar": True},
        )

    def preview(self, step: int, images: Tensor) -> None:
        """Show uint8 samples `[N, C, H, W]` as a grid, in TensorBoard and as a PNG."""
        picture = grid(images)
        self.writer.add_image("preview", picture, step)
        self.previews.mkdir(exist_ok=True)
        save_png(picture, self.previews / f"step_{step:08d}.png")

    def _loss_by_t(self, progress: Progress) -> dict[str, float]:
        """Mean loss in ten equal bins of t, named by their first timestep; empty bins are left out."""
        bins = progress.t * T_BINS // self.timesteps
        return {
            f"loss_by_t/{-(-self.timesteps * i // T_BINS):04d}": progress.losses[bins == i].mean().item()
            for i in range(T_BINS)
            if (bins == i).any()
        }
