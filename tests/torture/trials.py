"""What all rows share: the setting of the trials, what a row says, and a command run in a forked process."""

import contextlib
import importlib
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from commands import TINY


@dataclass(frozen=True)
class Setting:
    """How much to do, and where."""

    place: Path  # a directory of the row's own, empty
    seed: int
    share: float  # of the full number of trials

    def count(self, full: int) -> int:
        """How many trials to make where a full run makes `full`."""
        return max(1, round(full * self.share))

    @property
    def random(self) -> random.Random:
        return random.Random(self.seed)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was done to it, and what came of it."""

    fault: str
    figure: str
    failures: list[str] = field(default_factory=list)  # one line each; empty: everything held


class Clock:
    """A number that a forked process writes and this one reads, whatever becomes of the other: steps done."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    def set(self, value: int) -> None:
        self.memory[:] = struct.pack("<q", value)

    def get(self) -> int:
        return struct.unpack("<q", self.memory[:])[0]


@dataclass
class Process:
    """A forked process and where what it says goes."""

    pid: int
    log: Path
    status: int | None = None  # as the shell would see it; minus the signal that killed it

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid != 0:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, timeout: float = 60) -> int:
        """Its exit status. Kills it and raises TimeoutError if it does not end in `timeout` seconds."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"did not end in {timeout} s: {self.said()[-500:]}")
            time.sleep(0.002)
        assert self.status is not None
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process and to all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def fork(
    job: Callable[[], object], place: Path, *, prepare: Callable[[], object] | None = None, **environment: str
) -> Process:
    """Call `prepare` and `job` in a forked process, in a process group of its own, in the directory `place`.

    Its standard output and error go to a file beside `place`. The process ends with the status of `SystemExit`, 0 if
    the job returns, 70 with a traceback if it raises.
    """
    place.mkdir(parents=True, exist_ok=True)
    log = place.with_name(f"{place.name}.{time.monotonic_ns()}.log")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid > 0:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # both sides do it: whoever is first
        return Process(pid, log)
    status = 70
    try:
        os.setpgid(0, 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(place)
        os.environ.update(environment)
        if prepare is not None:
            prepare()
        job()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def command(program: str, arguments: list[str], place: Path, **options) -> Process:
    """A program of ours (train, sample or eval) with `arguments`, forked; `options` as for `fork`."""

    def job() -> None:
        sys.argv = [f"ddpm-{program}", *arguments]
        importlib.import_module(f"ddpm_cli.{program}").main()

    return fork(job, place, **options)


def preload() -> None:
    """Import what the commands import, once, and keep torch to one thread: threads do not survive a fork."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("sklearn.datasets", "tensorboard.compat.proto.event_pb2", "torch._dynamo", "torch.utils.tensorboard"):
        importlib.import_module(name)
    # So that a forked command soon answers signals.
    for name in ("ddpm_cli.sample", "ddpm_cli.train", "ddpm_cli.eval", "ddpm_cli.evaluation.one"):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


# A run of a second: every command line of the table starts from this.
RUN = [*TINY, "trainer.log_every=3", "trainer.preview_every=20", "trainer.checkpoint_every=5", "trainer.steps=40"]


def counting(clock: Clock) -> Callable[[], None]:
    """To be called in a forked process: lets `clock` show how many steps the trainer has done."""

    def prepare() -> None:
        from ddpm_cli.training.trainer import Trainer

        step = Trainer.train_step

        def train_step(self: Trainer, *arguments):
            result = step(self, *arguments)
            clock.set(self.step)
            return result

        Trainer.train_step = train_step

    return prepare


def left_of(group: int, *, after: float = 5.0) -> list[int]:
    """The processes of a process group that have not ended by themselves within `after` seconds."""
    until = time.monotonic() + after
    while True:
        found = _processes_of(group)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.01)


def _processes_of(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":  # a zombie has ended
                found.append(int(entry.name))
    return found


def run_directories(place: Path, name: str) -> list[Path]:
    return sorted(path for path in (place / "outputs" / name).glob("*_*") if path.is_dir())


@contextlib.contextmanager
def noting(failures: list[str], what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a line of a row's failures."""
    try:
        yield
    except Exception as error:
        failures.append(f"{what}: {type(error).__name__}: {error}")
