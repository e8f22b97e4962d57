"""Reads records of runs that may be anybody's, within limits, and never through a link."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ddpm_cli.io import openers, plain_files

MOST_CONFIG = 2**18  # bytes of YAML; ours have a few thousand
MOST_RECORD = 2**22  # bytes of JSON; an evaluation has 50 kB with the terms of a bound
MOST_LOG = 2**16  # bytes at the end of a log
LONGEST_LINE = 2**16  # bytes of a line of metrics; ours have a thousand
MOST_METRICS = 2**25  # bytes of a file of metrics that are read: half of them at its beginning, half at its end

# PyYAML's own parser takes a second for what libyaml's takes in 50 ms.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path, most: int) -> bytes:
    """All of a plain file. Raises ValueError, naming it, if it is none, a link or too large; OSError without it."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link")
    return plain_files.read(path, most)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON. Raises ValueError, naming it, if there is no object in it; OSError without it."""
    return _object(path, json.loads, read(path, MOST_RECORD))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file of YAML. Raises ValueError, naming it, if there is none in it; OSError without it."""
    return _object(path, lambda content: yaml.load(content, _Loader), read(path, MOST_CONFIG))


def _object(path: Path, parse: Any, content: bytes) -> dict[str, Any]:
    try:
        found = parse(content)
    except (ValueError, RecursionError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged, or not written by ddpm-cli")
    return found


def end_of(path: Path, most: int) -> str:
    """The last `most` bytes of a plain file as text. Raises as `read` does."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link")
    size = plain_files.size(path)
    with open(path, "rb", opener=openers.nonblocking) as file:
        file.seek(max(0, size - most))
        return file.read(most).decode("utf-8", errors="replace")


def lines_of_json(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects in a file of a JSON object per line; None for what is none. Of a huge file its two ends.

    Raises:
        ValueError: naming it, if it is not a plain file.
        OSError: if it is not there, or cannot be read.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link")
    size = plain_files.size(path)
    with open(path, "rb", opener=openers.nonblocking) as file:
        if size <= MOST_METRICS:
            yield from _lines(file, size)
            return
        yield from _lines(file, MOST_METRICS // 2)
        yield None
        file.seek(size - MOST_METRICS // 2)
        file.readline(LONGEST_LINE)  # the rest of one
        yield from _lines(file, MOST_METRICS // 2)


def _lines(file: Any, most: int) -> Iterator[dict[str, Any] | None]:
    while most > 0 and (line := file.readline(LONGEST_LINE)):
        most -= len(line)
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if found is None and not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            return  # the last one, which is being written, or was when the run was killed
        yield found if isinstance(found, dict) else None


def number(value: object) -> float | None:
    """A finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(value: object) -> int | None:
    """A whole number from 0 to 2^53, which every language reads exactly; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= 2**53 else None


def text(value: object, most: int = 200) -> str | None:
    """A text, shortened if it is long; None for anything else."""
    if not isinstance(value, str):
        return None
    return value if len(value) <= most else f"{value[:most]}..."


def names_in(directory: Path, most: int) -> list[str]:
    """Names in a directory, if it exists and is no link: at most so many, in any order."""
    if directory.is_symlink():
        return []
    found: list[str] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) >= most:
                    break
    except OSError:
        return []
    return found
