"""The signals that ask a process to stop, and how it stops."""

import atexit
import functools
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ddpm_cli.runtime.exit_codes import RESUME_LATER, Stopped

GRACE_SECONDS = 10.0  # to clean up in, where there is nothing to save
# Preemption, Ctrl-C, Slurm's warning, a terminal that is gone, the end of a job's CPU time. Windows has two of them.
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGXCPU")
# A person, or a scheduler that will not wait, who sends one of these again means it. The others come again by
# themselves, SIGHUP from the shell and from the kernel, SIGXCPU every second; and so does another one: systemd sends
# SIGHUP after SIGTERM, Slurm SIGTERM after its warning.
_MEANT_AGAIN = ("SIGTERM", "SIGINT", "SIGUSR1")
# Set by launchers that send a signal to processes that may have had one from the terminal or the scheduler already, and
# by themselves kill those that do not end.
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR")


class Stop:
    """Whether a signal has asked this process to stop.

    As long as there is nothing to lose the first signal raises `Stopped` where the program is. Once `defer` has been
    called it only sets `requested`, for the training loop to look at. The same signal again ends the process at once,
    as it would any other program. After `finish` nothing is changed by any.

    Pickled into another process, it is that process's own.

    Attributes:
        pass_on: asks the processes that work for this one to stop, or, told that it is to be at once, ends them;
            whether there are any. If so, this one only waits for them.
        keep: is called with what is said at a signal, to put it on record; between any two instructions of the program.
        lost: says what is lost if the process ends at once.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.pass_on: Callable[[bool], bool] | None = None
        self.keep: Callable[[str], None] | None = None
        self.lost: Callable[[], str] | None = None
        self._deferred: str | None = None  # what is done first
        self._finished: int | None = None  # the exit status
        self._times: Counter[str] = Counter()
        self._in_worker = False
        self._answered: list[int] = []
        self._last_resort: threading.Timer | None = None

    def __reduce__(self) -> tuple:
        return _of_this_process, ()

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def listen(self, *more: str) -> None:
        """From now on handle the signals, and `more` of them. Only a process's main thread may call this.

        One that the process was started to ignore, as SIGHUP under nohup, is still ignored.
        """
        if not self._answered:
            atexit.register(self._ignore)
        for number in (getattr(signal, name) for name in (*SIGNALS, *more) if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._answer)
                self._answered.append(number)

    def begin(self) -> None:
        """Some work starts, with nothing to lose yet. Raises `Stopped` if it must not."""
        self._deferred = self._finished = self.keep = self.lost = None
        self._raise_if_nothing_to_lose()

    @contextmanager
    def installed_for_job(self, *more: str) -> Iterator[None]:
        """Inside, as after `listen`; afterwards only record signals: for a process that gets one job after another.

        Raises `Stopped` at once for a job that is given after a signal.
        """
        self._in_worker = True
        self.begin()
        self.listen(*more)
        try:
            yield
        finally:
            self._deferred = "stopping"
            if self._last_resort is not None:
                self._last_resort.cancel()

    def defer(self, until: str) -> None:
        """There is something to lose now: only record a signal. Raises `Stopped` if there was one already.

        Args:
            until: what will be done first, to be said when a signal comes.
        """
        self._raise_if_nothing_to_lose()
        self._deferred = until

    def finish(self, status: int = 0) -> None:
        """The work is done, or has failed for good: a signal no longer changes anything, nor the exit status."""
        self._finished = status

    @contextmanager
    def unmistaken(self) -> Iterator[None]:
        """Inside, `Stopped` stays `Stopped`: raised during an import, say, it might turn into another error."""
        try:
            yield
        except Exception:
            self._raise_if_nothing_to_lose()
            raise

    def _raise_if_nothing_to_lose(self) -> None:
        if self.requested and self._deferred is None and self._finished is None:
            raise Stopped(f"{self.signal}: stopped before the first step")

    def _answer(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._times[name] += 1
        if self._finished is not None:
            self.signal = self.signal or name
            if name == "SIGINT" and self._times[name] > 1:
                os._exit(self._finished)  # a person does not want to wait for what is being torn down
            return
        if self._ends_at_once(name):
            self._end_at_once(number)
        if self.requested:
            return
        self.signal = name
        if self.pass_on is not None and self.pass_on(False):
            self._deferred = "waiting for the runs"
            return
        if self._deferred is None:
            # Python drops an exception that is raised in a destructor. Whatever became of it, the process ends.
            self._last_resort = threading.Timer(GRACE_SECONDS, os._exit, [RESUME_LATER])
            self._last_resort.daemon = True
            self._last_resort.start()
        self._raise_if_nothing_to_lose()
        again = " (again: ends at once)" if name in _MEANT_AGAIN and not self._launched else ""
        self._say(f"{name}: {self._deferred}{again}")

    @property
    def _launched(self) -> bool:
        return self._in_worker or any(name in os.environ for name in _LAUNCHERS)

    def _ends_at_once(self, name: str) -> bool:
        """Whether this signal, after an earlier one, ends the process at once."""
        if self._launched:
            return name == "SIGINT" and self._times[name] > 2  # one Ctrl-C may be two: the terminal's, the launcher's
        return name in _MEANT_AGAIN and self._times[name] > 1

    def _end_at_once(self, number: int) -> None:
        signal.signal(number, signal.SIG_DFL)  # first: what is said now may have to wait for a terminal or a disk
        lost = "" if self.lost is None else f"; {self.lost()}"
        self._say(f"{signal.Signals(number).name} again: ends at once{lost}")
        if self.pass_on is not None:
            self.pass_on(True)
        os.kill(os.getpid(), number)

    def _say(self, message: str) -> None:
        if int(os.environ.get("RANK", "0")) == 0:
            with suppress(OSError):
                os.write(2, f"\n{message}\n".encode())  # not print: the signal may have come in the middle of one
        if self.keep is not None:
            self.keep(message)

    def _ignore(self) -> None:
        """Ignore signals: the interpreter is about to remove our handlers, and one would change the exit status."""
        for number in self._answered:
            signal.signal(number, signal.SIG_IGN)


@functools.cache
def _of_this_process() -> Stop:
    return Stop()
