"""Runs a logger in its own process, for which training never waits: its library may hang, raise or crash."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.text import printable
from ddpm_cli.loggers.logger import Ending, RunInfo
from ddpm_cli.loggers.process import POLL_SECONDS
from ddpm_cli.runtime.logs import log

HURRIED_SECONDS = 10.0  # to send what is left, where the run was asked to stop: who asked will not wait long
QUIET_SECONDS = 2.0  # of that wait, before it is spoken of
LISTEN_SECONDS = 0.02
MOST_WAITING = 2**26  # bytes that the process has not taken yet


@dataclass
class Aside:
    """One logger's process, which gets what to log and sends messages back. After its first failure it is not used.

    Nothing here raises on its account. It is not reached by the signals that ask this process to stop, and logs what it
    has got also when this process is gone.

    Args:
        name: of the logger, as messages call it.
        node: the configuration that builds it.
        recorded: the last step that is on record already.
    """

    name: str
    node: dict[str, Any]
    recorded: int
    run: RunInfo
    _process: subprocess.Popen | None = field(default=None, init=False)
    _waiting: bytearray = field(default_factory=bytearray, init=False)  # still to be written
    _heard: bytes = field(default=b"", init=False)  # of a line that is not whole yet

    @property
    def _log_file(self) -> Path:
        """What its library prints."""
        return self.run.directory / run_dir.LOGGERS / f"{self.name}.log"

    def begin(self) -> None:
        """Start the process."""
        log_file = self._log_file
        try:
            log_file.parent.mkdir(exist_ok=True)
            durable.unshare(log_file)
            with log_file.open("ab") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ddpm_cli.loggers.process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    stderr=said,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(_path())},
                    start_new_session=True,
                )
        except OSError as error:
            self._fail(f"cannot be started: {error}")
            return
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(_of(pipe), False)
        described = asdict(self.run) | {"directory": str(self.run.directory.absolute())}
        del described["earlier"]
        self._send({"name": self.name, "logger": self.node, "run": described, "recorded": self.recorded})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._send({"scalars": [step, values]})

    def image(self, step: int, name: str, png: bytes) -> None:
        self._send({"image": [step, name, base64.b64encode(png).decode()]})

    def end(self, ending: Ending) -> None:
        """Tell it that the run is ending; `wait` waits for it."""
        self._send({"end": asdict(ending)})

    def wait(self, seconds: float, *, hurried: Callable[[], bool]) -> None:
        """Wait until it has logged everything, has failed, or the time is up; then end it.

        Args:
            hurried: whether this process has been asked to end meanwhile: HURRIED_SECONDS are all that is left then.
        """
        begun, asked, spoken = time.monotonic(), None, False
        until = begun + seconds
        while self._process is not None:
            now = time.monotonic()
            if asked is None and hurried():
                asked, until = now, min(until, now + HURRIED_SECONDS)
            if now > until:
                self._fail(f"has not sent everything within {now - begun:.0f} s")
                return
            if not spoken and now - begun > QUIET_SECONDS:
                spoken = True
                log.info(f"{self.name:8} sending the rest, for up to {until - begun:.0f} s")
            self._write()
            if self._process is not None and not self._waiting and self._process.stdin is not None:
                self._process.stdin.close()
            self._hear(POLL_SECONDS, ending=True)

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is None:
            return
        self._waiting += f"{json.dumps(message)}\n".encode()
        self._write()
        self._hear(0.0)
        if len(self._waiting) > MOST_WAITING:
            self._fail("does not keep up")

    def _write(self) -> None:
        """Send as much as the process takes without waiting."""
        try:
            while self._process is not None and self._waiting:
                del self._waiting[: os.write(_of(self._process.stdin), self._waiting[: 2**16])]
        except BlockingIOError:
            pass
        except OSError:  # it is gone; what it has said last is still to be heard
            self._waiting.clear()

    def _hear(self, seconds: float, *, ending: bool = False) -> None:
        """Receive its messages, within some seconds; `ending`: it may end now."""
        until = time.monotonic() + seconds
        while self._process is not None:
            try:
                piece = os.read(_of(self._process.stdout), 2**16)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return
                time.sleep(LISTEN_SECONDS)
                continue
            if not piece:
                self._ended(ending=ending)
                return
            *lines, self._heard = (self._heard + piece).split(b"\n")
            for line in lines:
                self._take_up(json.loads(line))

    def _take_up(self, message: dict[str, str]) -> None:
        match message:
            case {"says": text}:
                log.info(f"{self.name:8} {printable(text)}")
            case {"warns": text}:
                log.warning(f"{self.name:8} {printable(text)}")
            case {"failed": text}:
                self._fail(f"has failed: {text}")

    def _ended(self, *, ending: bool) -> None:
        assert self._process is not None
        try:
            status = self._process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            status = 0
        if ending and status == 0:
            self._close()
        else:
            self._fail(f"has ended with status {status}" if status >= 0 else f"was killed by signal {-status}")

    def _fail(self, why: str) -> None:
        """Log its failure, and stop using it."""
        more = f"it catches up if the run is resumed; see {self._log_file}"
        log.warning(f"{self.name:8} {why}. The run continues without it; {more}")
        self._close()

    def _close(self) -> None:
        process, self._process = self._process, None
        self._waiting.clear()
        if process is None:
            return
        if process.poll() is None:
            kill = os.killpg if hasattr(os, "killpg") else os.kill
            kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()
        for pipe in (process.stdin, process.stdout):
            _of_pipe(pipe).close()


def _path() -> list[str]:
    """The import path of the process: that of this one."""
    path, ours = [os.path.abspath(entry) for entry in sys.path], str(Path(__file__).parents[2])
    return path if ours in path else [ours, *path]


def _of_pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _of(pipe: IO[bytes] | None) -> int:
    return _of_pipe(pipe).fileno()
