"""Figures as TensorBoard shows them, in a directory of their own: training that is resumed cuts back its own alone."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import summary

from ddpm_cli.evaluation.record import Figure
from ddpm_cli.io.event_files import Events


def add(directory: Path, figures: Sequence[Figure], step: int) -> None:
    """Record figures of all images at a checkpoint's step, as eval/NAME."""
    events = Events(directory)
    try:
        for figure in figures:
            if figure.of_class is None:
                events.add(summary.scalar(f"eval/{figure.name}", figure.value), step)
        events.file.flush()
    finally:
        events.file.close()
