"""The process in which a logger works for a run: `python -m ddpm_cli.loggers.process`, begun by `aside`.

Standard input brings JSON, a message a line: `begin`, then `scalars` and `image`, then `end`. Standard output takes
back, likewise, what there is to say: `says`, `warns`, `failed`. Where the input ends without an `end`, the process that
trains is gone: what has come is logged, and the run ends there as failed. Whatever the library prints, and its
tracebacks, go to standard error, a file.
"""

import base64
import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.io import lock, run_dir
from ddpm_cli.io.metrics_file import PLACE, lines_of
from ddpm_cli.io.text import printable
from ddpm_cli.loggers.kept import Kept
from ddpm_cli.loggers.logger import PREVIEW, Ending, Logger, RunInfo
from ddpm_cli.runtime.signals import SIGNALS

END_SECONDS = 60.0  # for what is left to be sent once nothing more comes
POLL_SECONDS = 0.2
MOST_WAITING = 20_000  # messages: a library that takes none any more

Message = dict[str, Any]
Tell = Callable[..., None]


def main() -> None:
    for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
        signal.signal(number, signal.SIG_IGN)  # it is for the process that trains to answer them
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**message: str) -> None:
        out.write(f"{json.dumps(message)}\n")
        out.flush()

    messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(messages, tell), daemon=True).start()
    try:
        begin = messages.get()
        if begin is not None:
            _serve(begin, messages, tell)
    except Exception as error:
        traceback.print_exc()
        tell(failed=_first_line(error))
        sys.exit(1)


def _read(messages: "queue.SimpleQueue[Message | None]", tell: Tell) -> None:
    """Put into a queue what comes, None at its end, from when on time is short."""
    pending = b""
    while piece := os.read(0, 2**20):
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            messages.put(json.loads(line))
        if messages.qsize() > MOST_WAITING:
            tell(failed="it does not keep up")
            os._exit(1)
    messages.put(None)
    time.sleep(END_SECONDS)
    os._exit(1)


def _serve(begin: Message, messages: "queue.SimpleQueue[Message | None]", tell: Tell) -> None:
    name, info = begin["name"], begin["run"] | {"directory": Path(begin["run"]["directory"])}
    directory = info["directory"] / run_dir.LOGGERS
    release = _locked(directory / f"{name}.lock")
    logger: Logger = instantiate(begin["logger"], f"logger.{name}")
    kept = Kept(directory / f"{name}.json", logger.place)
    kept.group = info["group"] = info["group"] or kept.group
    begun = logger.begin(RunInfo(**info, earlier=kept.id))
    kept.id = begun.id
    kept.write()
    tell(says=begun.where)
    shown = _Shown(logger, kept, tell)
    shown.catch_up(info["directory"], begin["recorded"])
    ending = Ending(state="failed", step=begin["recorded"])
    while (message := messages.get()) is not None:
        match message:
            case {"scalars": [step, values]}:
                shown.scalars(step, values)
            case {"image": [step, image, png]}:
                shown.image(step, image, base64.b64decode(png))
            case {"end": ending_given}:
                ending = Ending(**ending_given)
    logger.end(ending)
    release()


class _Shown:
    """What a logger shows of a run: every step of every figure once."""

    def __init__(self, logger: Logger, kept: Kept, tell: Tell):
        self._logger = logger
        self._kept = kept
        self._tell = tell
        self._takes_images = True

    def catch_up(self, run: Path, step: int) -> None:
        """Show what the run's own records hold up to a step: it may not have been logged here, or not all of it."""
        for line in lines_of(run / run_dir.METRICS_FILE):
            if line["step"] > step:
                break
            step_done, values = line.pop("step"), {}
            for name, value in line.items():
                if isinstance(value, int | float) and math.isfinite(value) and name not in PLACE:
                    values[name] = float(value)
            self.scalars(step_done, values)
        for drawn, picture in run_dir.by_step(run / run_dir.PREVIEWS, ".png").items():
            if drawn <= step:
                self.image(drawn, PREVIEW, picture.read_bytes())

    def scalars(self, step: int, values: dict[str, float]) -> None:
        new = {name: value for name, value in values.items() if self._kept.is_new(name, step)}
        if new:
            with self._kept.logging(new, step):
                self._logger.scalars(step, new)

    def image(self, step: int, name: str, png: bytes) -> None:
        """One that fails is the last: curves may well go where pictures, which go to a store of their own, cannot."""
        if not self._takes_images or not self._kept.is_new(name, step):
            return
        try:
            with self._kept.logging([name], step):
                self._logger.image(step, name, png)
        except Exception as error:
            traceback.print_exc()
            self._takes_images = False
            self._tell(warns=f"takes no pictures: {_first_line(error)}")


def _locked(path: Path) -> Callable[[], None]:
    """Wait for the process that logged this run before, and is sending what it has left. Raises BlockingIOError."""
    until = time.monotonic() + END_SECONDS
    while True:
        try:
            return lock.acquire(path)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
        time.sleep(POLL_SECONDS)


def _first_line(error: BaseException) -> str:
    first, *_ = str(error).strip().splitlines() or [""]
    return printable(f"{type(error).__name__}: {first}")[:500].rstrip(": ")


if __name__ == "__main__":
    main()
