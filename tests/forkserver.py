"""Commands as real processes that need not import torch: forked from one that has.

`ForkServer()` starts a process, single-threaded as forking takes it, that imports what the commands import and then
waits. `start` has it fork a child that takes the caller's descriptors, directory and environment and runs a module as
`python -m` does: another process id, another process group, its own exit status, to be signalled and killed like any
other. What a fork would hide (start-up without torch, what a library reads when it is loaded) is tested with fresh
interpreters instead.
"""

import atexit
import contextlib
import importlib
import io
import os
import pickle
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

# Read when a library is loaded, or by the interpreter itself: a process that was forked could not heed them.
TOO_LATE = ("PYTHON", "OMP_", "GOMP_", "MKL_", "LD_", "LC_", "LANG", "TORCH_", "CUBLAS_")
HEEDED = ("PYTHONPATH", "PYTHONUNBUFFERED")
_GRACE = 0.002  # seconds between two looks for children that have ended


def heeds(environment: dict[str, str]) -> bool:
    """Whether a forked process can do what these variables say, beside those of this process."""
    changed = (name for name, value in environment.items() if os.environ.get(name) != value)
    return not any(name.startswith(TOO_LATE) and name not in HEEDED for name in changed)


def read_while(wait: Callable[[], object], out: IO[str], error: IO[str]) -> tuple[str, str]:
    """What comes out of two pipes until `wait` returns and they end; they are closed."""
    read: dict[int, str] = {}

    def drain(number: int, stream: IO[str]) -> None:
        with stream:
            read[number] = stream.read()

    readers = [threading.Thread(target=drain, args=pair, daemon=True) for pair in enumerate((out, error))]
    for reader in readers:
        reader.start()
    wait()
    for reader in readers:
        reader.join()
    return read[0], read[1]


class Forked:
    """A forked command, in the parts of `subprocess.Popen` that tests use."""

    def __init__(self, server: "ForkServer", pid: int, args: Sequence[str], pipes: "tuple[IO[str], IO[str]] | None"):
        self.server = server
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self.stdout, self.stderr = (None, None) if pipes is None else pipes

    def poll(self) -> int | None:
        """Its exit status, minus the signal that killed it; None while it runs."""
        if self.returncode is None:
            self.returncode = self.server.status(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises TimeoutExpired if it has not ended by then."""
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                assert timeout is not None
                raise subprocess.TimeoutExpired(list(self.args), timeout)
            time.sleep(_GRACE)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that is still to be read of its output, once it has ended."""
        assert self.stdout is not None
        assert self.stderr is not None
        return read_while(lambda: self.wait(timeout), self.stdout, self.stderr)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class ForkServer:
    """The process that is forked, and the way to it."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(theirs.fileno())],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.ended: dict[int, int] = {}

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        environment: dict[str, str],
        outputs: tuple[int, int] | None = None,
    ) -> Forked:
        """Fork a process that runs `module` as `python -m` does, or a file that ends in .py.

        Args:
            environment: all of it.
            outputs: descriptors for its standard output and error; None: pipes, to be read from the result.
        """
        pipes = None
        if outputs is None:
            (out, out_end), (err, err_end) = os.pipe(), os.pipe()
            pipes = os.fdopen(out, encoding="utf-8"), os.fdopen(err, encoding="utf-8")
            outputs = out_end, err_end
        request = pickle.dumps((module, list(arguments), str(cwd), environment))
        socket.send_fds(self.socket, [len(request).to_bytes(8, "little")], list(outputs))
        self.socket.sendall(request)
        if pipes is not None:
            for descriptor in outputs:
                os.close(descriptor)
        while True:
            what, pid = self._receive()
            if what is None:
                return Forked(self, pid, [module, *arguments], pipes)

    def status(self, pid: int) -> int | None:
        """The exit status of a process, if it has ended."""
        while pid not in self.ended and select.select([self.socket], [], [], 0)[0]:
            self._receive()
        return self.ended.get(pid)

    def _receive(self) -> tuple[int | None, int]:
        """The next message: a status and the process that has ended with it, or None and one that was started."""
        what, pid = pickle.loads(_read(self.socket, 64).rstrip(b"\0"))
        if what is not None:
            self.ended[pid] = what
        return what, pid

    def close(self) -> None:
        """End the server; what it has forked goes on."""
        self.socket.close()
        self.process.wait()


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


# In the server -------------------------------------------------------------------------------------------------------


def _serve(connection: socket.socket) -> None:
    children: set[int] = set()

    def say(what: int | None, pid: int) -> None:
        connection.sendall(pickle.dumps((what, pid)).ljust(64, b"\0"))

    while True:
        if select.select([connection], [], [], _GRACE if children else None)[0]:
            header, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
            if not header:
                return
            request = pickle.loads(_read(connection, int.from_bytes(header, "little")))
            pid = os.fork()
            if pid == 0:
                connection.close()
                _become(descriptors, *request)
            for descriptor in descriptors:
                os.close(descriptor)
            children.add(pid)
            say(None, pid)
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended == pid:
                children.remove(pid)
                say(os.waitstatus_to_exitcode(status), pid)


def _become(outputs: list[int], module: str, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Turn this process into one that runs `module`; does not return."""
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, descriptor in enumerate(outputs, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(cwd)
        inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ.clear()
        os.environ.update(environment)
        added = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = [cwd, *added, *(path for path in sys.path[1:] if path not in inherited)]
        importlib.invalidate_caches()
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = _stream(1, "strict", line_buffering=bool(environment.get("PYTHONUNBUFFERED")))
        sys.stderr = _stream(2, "backslashreplace", line_buffering=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [module, *arguments]
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):  # what the interpreter does at its end, but for taking itself down
            threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
            atexit._run_exitfuncs()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _stream(descriptor: int, errors: str, *, line_buffering: bool) -> io.TextIOWrapper:
    file = os.fdopen(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(file, encoding="utf-8", errors=errors, line_buffering=line_buffering)


def _preload() -> None:
    """Import what the commands import, but not themselves."""
    import torch

    import ddpm_cli

    late = ("sklearn.datasets", "tensorboard.compat.proto.event_pb2", "torch._dynamo", "torchvision.datasets")
    own = {module.name for module in pkgutil.walk_packages(ddpm_cli.__path__, "ddpm_cli.")}
    for name in (*late, *sorted(own - {"ddpm_cli.train", "ddpm_cli.sample"})):
        importlib.import_module(name)
    torch.set_num_threads(1)


if __name__ == "__main__":
    _preload()
    _serve(socket.socket(fileno=int(sys.argv[1])))
