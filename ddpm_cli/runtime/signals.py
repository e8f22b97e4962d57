"""The signals that ask a process to stop, and what becomes of it then."""

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ddpm_cli.runtime.exit_codes import RESUME_LATER, Stopped

GRACE_SECONDS = 10.0  # to clean up in, where there is nothing to save
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # preemption, Ctrl-C, Slurm's warning; Windows has no SIGUSR1
# Set by launchers that send a signal to processes that may have had one from the scheduler already, and by themselves
# kill those that do not end.
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR")


class Stop:
    """Whether a signal has asked this process to stop.

    As long as there is nothing to lose the first signal raises `Stopped` where the program is. Once `defer` has been
    called it only sets `requested`, for the training loop to look at. A second signal ends the process at once, as it
    would any other program.

    Pickled into another process, it is that process's own.

    Attributes:
        pass_on: asks the processes that work for this one to stop; whether there are any. If so, this one only waits
            for them.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.pass_on: Callable[[], bool] | None = None
        self._deferred = False
        self._last_resort: threading.Timer | None = None

    def __reduce__(self) -> tuple:
        return _of_this_process, ()

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def listen(self, *more: str) -> None:
        """From now on answer the signals, and `more` of them. Only a process's main thread may call this."""
        for name in (*SIGNALS, *more):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._answer)

    @contextmanager
    def installed_for_job(self, *more: str) -> Iterator[None]:
        """Inside, as after `listen`; afterwards only take note: for a process that is given one job after another.

        Raises `Stopped` at once for a job that is given after a signal.
        """
        self._deferred = False
        self._raise_if_nothing_to_lose()
        self.listen(*more)
        try:
            yield
        finally:
            self._deferred = True
            if self._last_resort is not None:
                self._last_resort.cancel()

    def defer(self) -> None:
        """There is something to lose now: only take note of a signal. Raises `Stopped` if there was one already."""
        self._raise_if_nothing_to_lose()
        self._deferred = True

    @contextmanager
    def unmistaken(self) -> Iterator[None]:
        """Inside, `Stopped` stays `Stopped`: raised in the middle of an import, say, it may come out as an error."""
        try:
            yield
        except Exception:
            self._raise_if_nothing_to_lose()
            raise

    def _raise_if_nothing_to_lose(self) -> None:
        if self.requested and not self._deferred:
            raise Stopped(f"{self.signal}: stopped before the first step")

    def _answer(self, number: int, frame: FrameType | None) -> None:
        passed_on = self.pass_on is not None and self.pass_on()
        if self.requested:
            if not any(name in os.environ for name in _LAUNCHERS):
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.signal = signal.Signals(number).name
        if passed_on:
            self._deferred = True
            return
        if not self._deferred:
            # Python drops an exception that is raised in a destructor. Whatever became of it, the process ends.
            self._last_resort = threading.Timer(GRACE_SECONDS, os._exit, [RESUME_LATER])
            self._last_resort.daemon = True
            self._last_resort.start()
        self._raise_if_nothing_to_lose()
        if int(os.environ.get("RANK", "0")) == 0:  # not print: the signal may have come in the middle of one
            os.write(2, f"\n{self.signal}: saving after this step (once more: ends at once)\n".encode())


@functools.cache
def _of_this_process() -> Stop:
    return Stop()
