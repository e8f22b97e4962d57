"""The command line of `ddpm-compare`, what it prints, and its exit status."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ddpm_cli import __version__
from ddpm_cli.comparison.seeds import seeds_lines
from ddpm_cli.comparison.table import compare
from ddpm_cli.comparison.terminal import terminal_table
from ddpm_cli.comparison.write import check_place, write
from ddpm_cli.io.text import printable

PROGRAM = "ddpm-compare"
DEFAULT = "outputs"
WIDTH = 120  # characters, where standard output is no terminal and COLUMNS says nothing
MOST_LINES = 20  # on what was left out

_FAILED, _MISTAKE = 1, 2


def run(arguments: Sequence[str]) -> int:
    """Compare the runs that the arguments name, print and write the result; returns the exit status."""
    given = _parser().parse_args(arguments)
    directories = [Path(name) for name in given.directories or [DEFAULT]]
    out = Path(given.out) if given.out is not None else directories[0] if len(directories) == 1 else Path()
    try:
        check_place(out)
        comparison = compare(directories)
    except (ValueError, OSError) as error:
        return _end(str(error), _MISTAKE)
    if not comparison.runs:
        return _end(f"no runs in {', '.join(map(str, directories))}: a run has a run.json, or config.yaml", _MISTAKE)
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    print(terminal_table(comparison, max(width, 20), str(out / "compare.csv")))
    for line in seeds_lines(comparison, max(width, 20), str(out / "compare.md")):
        print(line)
    for line in [*comparison.notes, *_few([f"left out: {line}" for line in comparison.left_out])]:
        print(line)
    try:
        page = write(comparison, out)
    except (ValueError, OSError) as error:
        return _end(f"cannot write: {error}", _FAILED)
    print(f"compare  {printable(str(page))}")
    return 0


def _few(lines: Sequence[str]) -> list[str]:
    more = [f"left out: {len(lines) - MOST_LINES} more, listed in compare.md"] if len(lines) > MOST_LINES else []
    return [*lines[:MOST_LINES], *more]


def _end(message: str, status: int) -> int:
    print(f"{PROGRAM}: {printable(message)}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_end(f"{message}; --help shows the options", _MISTAKE))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Compare runs and sweeps: what differs between them, with losses, evaluations, speed and time. "
        "Prints a table; writes compare.csv, compare.md and compare.html, one file with curves and previews. "
        "Only figures with the same name and fingerprint are ranked.",
    )
    parser.add_argument(
        "directories", nargs="*", metavar="DIR", help=f"runs, sweeps, or directories of them (default: {DEFAULT})"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where to write (default: DIR if there is only one, else the current directory)"
    )
    parser.add_argument("--version", action="version", version=f"ddpm-cli {__version__}")
    return parser
