"""The output at the end of a sweep: its comparison, and its sessions in TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ddpm_cli.comparison.hparams import write_hparams
from ddpm_cli.comparison.seeds import seeds_lines
from ddpm_cli.comparison.table import compare
from ddpm_cli.comparison.write import write


class SweepCompared(NamedTuple):
    """What a sweep says of its comparison."""

    page: Path
    lines: list[str]  # of what its runs come to over their seeds; empty where none differ in that alone


def compare_sweep(home: Path, directories: Sequence[Path], width: int = 120) -> SweepCompared | None:
    """Write the comparison of a sweep's runs into its directory; None if no two of them have anything to compare.

    Args:
        width: of the lines, in characters.

    Raises:
        ValueError: for something in its way that is not ours.
        OSError: if something cannot be read or written.
    """
    comparison = compare([directory for directory in directories if directory.is_dir()])
    if sum(run.has_something for run in comparison.runs) < 2:
        return None
    write_hparams(comparison.runs)
    page = write(comparison, home)
    return SweepCompared(page, seeds_lines(comparison, width, str(home / "compare.md")))
