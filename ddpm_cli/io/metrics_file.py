"""metrics.jsonl, a JSON object per line, which may be anybody's: read up to the first line that is none of ours.

Beside the figures of a step each line says when and where that was:

    step                 how many had been done
    epoch, images        how often training had gone through its images, and how many that were: in the stream of
                         batches of this size, whatever another run saw that this one was forked from
    time/unix            seconds since the beginning of 1970, by the clock of the machine: where a run was resumed, the
                         time that it stood still is part of it
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
    """The lines of a metrics.jsonl, which may be anybody's, up to the first that is none of ours.

    Each has a whole number `step`.
    """
    with suppress(OSError, ValueError, RecursionError), metrics.open("rb") as file:
        for text in iter(lambda: file.readline(LONGEST_LINE), b""):
            line = json.loads(text)
            if not text.endswith(b"\n") or not isinstance(line, dict) or not isinstance(line.get("step"), int):
                return
            yield line


def recorded_to(metrics: Path) -> int:
    """The step of the last whole line of a metrics.jsonl, 0 if there is none: all records have it."""
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
