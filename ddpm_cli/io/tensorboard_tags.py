"""What TensorBoard calls the figures of a run: it puts groups in alphabetical order, and a loss is what is read first.

loss/mean, loss/heldout      of training, and on images that were held out
loss_by_t/, loss_by_t_heldout/
memory/
quality/                     fd and kd of samples
time/, train/
"""

from pathlib import Path

from ddpm_cli.io.metrics_file import EPOCH, lines_of
from ddpm_cli.io.run_dir import METRICS_FILE

_HELDOUT = ("eval/heldout", "loss/heldout")
_GROUPS = {"eval": "quality", "heldout_by_t": "loss_by_t_heldout"}


def tag(name: str) -> str:
    """What is shown there of a figure that metrics.jsonl calls `name`."""
    if name == _HELDOUT[0]:
        return _HELDOUT[1]
    group, slash, figure = name.partition("/")
    return f"{_GROUPS.get(group, group)}{slash}{figure}"


def has_tags(run_directory: Path) -> bool:
    """Whether a run is shown under these names. One begun by a version that had others goes on with those.

    It is known by its first line of metrics, in which there was no epoch then.
    """
    first = next(lines_of(run_directory / METRICS_FILE), None)
    return first is None or EPOCH in first
