"""Writes the files of a comparison, all or nothing, and never over other files."""

from collections.abc import Callable
from pathlib import Path

from ddpm_cli.comparison.page import BEGINS, page
from ddpm_cli.comparison.table import Comparison
from ddpm_cli.comparison.tables import CSV_BEGINS, MARKDOWN_BEGINS, csv_text, markdown
from ddpm_cli.io import durable

PAGE = "compare.html"

# Of each file how it begins, by which an earlier one of ours is known, and what makes it.
_FILES: dict[str, tuple[str, Callable[[Comparison], str]]] = {
    "compare.csv": (CSV_BEGINS, csv_text),
    "compare.md": (MARKDOWN_BEGINS, markdown),
    PAGE: (BEGINS, page),
}


def check_place(directory: Path) -> None:
    """Raise ValueError, naming it, for a file at the place of a comparison that is not one of ours."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is not a directory")
    for name, (begins, _) in _FILES.items():
        file = directory / name
        if not file.is_symlink() and not file.exists():
            continue
        if file.is_symlink() or not file.is_file() or not _begins(file, begins.encode()):
            raise ValueError(f"{file} was not written by ddpm-compare, and is kept: move it, or give another --out")


def _begins(file: Path, begins: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(begins)) == begins


def write(comparison: Comparison, directory: Path) -> Path:
    """Write compare.csv, compare.md and compare.html to a directory, created if missing; returns the last.

    Raises:
        ValueError: for a file in their way that is not ours: then none is written.
        OSError: if one cannot be written.
    """
    check_place(directory)
    contents = {name: make(comparison) for name, (_, make) in _FILES.items()}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        durable.replace(directory / name, content.encode("utf-8", errors="replace"))
    return directory / PAGE
