"""Reads metrics.jsonl, a JSON object per line, which may be anybody's: up to the first line that is not ours.

Beside its figures each line says when they were measured:

    step                 optimizer steps done
    epoch, images        passes through the training images, and images seen: counted by this run's batch size, without
                         those that the run it was forked from saw
    time/unix            seconds since 1970 by the machine's clock; the pause before a run was resumed is part of it
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST_LINE = 2**16  # bytes
LOSS = "loss/mean"
EPOCH, IMAGES, TIME = "epoch", "images", "time/unix"
PLACE = (EPOCH, IMAGES, TIME)  # what is no figure


def lines_of(metrics: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl, which may be anybody's, up to the first that is not ours.

    Each has a whole number `step`.
    """
    with suppress(OSError, ValueError, RecursionError), metrics.open("rb") as file:
        for text in iter(lambda: file.readline(LONGEST_LINE), b""):
            line = json.loads(text)
            if not text.endswith(b"\n") or not isinstance(line, dict) or not isinstance(line.get("step"), int):
                return
            yield line


def recorded_to(metrics: Path) -> int:
    """The step of the last complete line of a metrics.jsonl, 0 if there is none: all records have it."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return int(_last_line(metrics)["step"])
    return 0


def last_loss(metrics: Path) -> float:
    """The last loss in a metrics.jsonl, NaN if there is none."""
    losses = [line[LOSS] for line in lines_of(metrics) if isinstance(line.get(LOSS), int | float)]
    return float(losses[-1]) if losses else math.nan


def _last_line(metrics: Path) -> dict:
    with metrics.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE))
        return json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
