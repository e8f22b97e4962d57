"""Work spread over processes that end with the process that started them, however that one ends.

Not `ProcessPoolExecutor`: its processes share queues and hold both ends of them. One that is killed at the wrong moment
takes a lock along that the others wait for, and all of them wait for ever once their parent has been killed. Here each
process shares a pipe with its parent and nobody else: when either of the two dies, the other one reads the end of it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from ddpm_cli.runtime import console
from ddpm_cli.runtime.cgroup import cpus
from ddpm_cli.runtime.signals import SIGNALS

Result = TypeVar("Result")

# They may reach the whole group, and are the parent's to answer.
PARENTS_SIGNALS = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


class WorkerDiedError(ChildProcessError):
    """A process came to an end of its own, or to none: how. `task` is what it was at, or was to begin with."""

    def __init__(self, how: str, task: tuple):
        super().__init__(how)
        self.task = task


class WorkerPool(Generic[Result]):
    """At most `workers` processes that call `function`, kept from one lot of tasks to the next until `close`.

    They are spawned when there is work for them, not forked: in a process in which torch has started threads that can
    deadlock. None outlives the process that began it. With no `workers` it is this process that calls `function`.
    """

    def __init__(self, function: Callable[..., Result], workers: int):
        self._function = function
        self._workers = workers
        self._idle: list[tuple[Connection, SpawnProcess]] = []
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "WorkerPool[Result]":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def map(self, tasks: Sequence[tuple]) -> Generator[tuple[tuple, Result], None, None]:
        """Each task with its `function(*task)`, in the order in which they are finished. One lot at a time.

        Raises WorkerDiedError if a process dies or cannot be started, and whatever `function` raises. After that, and
        if the generator is closed early, the processes are gone, whatever they were at; another lot begins with new
        ones.
        """
        if self._workers == 0:
            for task in tasks:
                yield task, self._function(*task)
            return
        waiting = deque(tasks)
        at_work: dict[Any, tuple[SpawnProcess, tuple]] = {}  # by connection
        try:
            for _ in range(min(self._workers, len(tasks))):
                task = waiting.popleft()
                connection, process = self._idle.pop() if self._idle else _start(self._function, task, self._cleanup)
                at_work[connection] = process, task
                _send(connection, process, task)
            while at_work:
                ready: list[Any] = wait(list(at_work))
                for connection in ready:
                    process, task = at_work.pop(connection)
                    result = _receive(connection, process, task)
                    if waiting:
                        following = waiting.popleft()
                        at_work[connection] = process, following
                        _send(connection, process, following)
                    else:
                        self._idle.append((connection, process))
                    yield task, result
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes, whatever they are at."""
        self._idle.clear()
        self._cleanup.close()


def share_of_cpus(workers: int) -> int:
    """The number of processes that `workers` stands for: -1 is this rank's share of the CPUs, at least one."""
    return max(1, cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if workers == -1 else workers


def _start(function: Callable, task: tuple, cleanup: contextlib.ExitStack) -> tuple[Connection, SpawnProcess]:
    """A process that waits for tasks, and our end of its pipe; `cleanup` ends both."""
    spawn = multiprocessing.get_context("spawn")
    try:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, function), daemon=True)
        cleanup.callback(_end, process, ours)  # before there is anything to clean up: a signal may come at any moment
        with theirs, _signals_blocked():
            process.start()
    except OSError as error:
        raise WorkerDiedError(f"could not be started ({error.strerror or error})", task) from error
    return ours, process


def _end(process: SpawnProcess, connection: Connection) -> None:
    connection.close()
    if process.pid is not None:
        process.kill()
        process.join()


@contextlib.contextmanager
def _signals_blocked() -> Generator[None, None, None]:
    """A process born in this block is deaf to PARENTS_SIGNALS until it has learnt to ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has no groups of processes to signal either
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        # multiprocessing's own helper. It must be deaf too; and when `start` starts it, that unblocks the signals.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(connection: Connection, process: SpawnProcess, task: tuple) -> None:
    try:
        connection.send(task)
    except OSError as error:
        raise _died(process, task) from error


def _receive(connection: Connection, process: SpawnProcess, task: tuple):
    """The result of `task`. Raises what the function raised, or WorkerDiedError."""
    try:
        result = connection.recv()
    except (EOFError, OSError) as error:
        raise _died(process, task) from error
    if isinstance(result, Exception):
        raise result
    return result


def _died(process: SpawnProcess, task: tuple) -> WorkerDiedError:
    process.join()
    code = process.exitcode or 0
    return WorkerDiedError(f"died ({signal.strsignal(-code)})" if code < 0 else f"ended (exit status {code})", task)


def _serve(connection: Connection, function: Callable) -> None:
    """What a process does: a task, its result, the next task, until the parent closes the pipe or is gone."""
    console.install()
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                result = function(*task)
            except Exception as error:
                error.add_note(traceback.format_exc())  # the traceback itself does not travel
                result = error
            connection.send(result)


def _end_with_parent() -> None:
    """The pipe tells when the next task is asked for; this, in the middle of a long one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
