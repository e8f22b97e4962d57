"""The best checkpoint by a figure of the evaluations, which is kept for good, and named in RUN/best.json.

The file follows the records: metrics.jsonl has the figures of every checkpoint, and is cut back with the run. So the
best checkpoint is found again whenever the run is resumed, also if it was killed before the file was written.
"""

import json
import math
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from ddpm_cli.config.figures import Name
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.metrics_file import lines_of
from ddpm_cli.training.measured import figure


class Best(NamedTuple):
    """The figure of the best checkpoint, and its step."""

    figure: Name
    value: float
    step: int

    def beaten_by(self, value: float) -> bool:
        return value < self.value


def best_on_record(metrics: Path, name: Name, saved: Container[int]) -> Best | None:
    """The best of the existing checkpoints by their figures in a metrics.jsonl; the first of equals.

    Args:
        saved: the steps of these checkpoints.
    """
    best = None
    for line in lines_of(metrics):
        value, step = figure(line, name), line["step"]
        if math.isfinite(value) and step in saved and (best is None or best.beaten_by(value)):
            best = Best(name, value, step)
    return best


def write_best(run_directory: Path, best: Best | None) -> None:
    """Write best.json, durably; None: remove it."""
    file = run_directory / run_dir.BEST_FILE
    if best is not None:
        said = best._asdict() | {"checkpoint": run_dir.step_name(best.step)}
        durable.replace(file, f"{json.dumps(said, indent=2)}\n".encode())
    elif file.exists():
        file.unlink()
        durable.sync(run_directory)
