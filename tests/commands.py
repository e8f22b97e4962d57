"""The commands as a user runs them, in processes of their own, on a network of a second.

A new interpreter takes seconds to import torch, and there are hundreds of commands here. So they are forked, by
a server (`forkserver.py`) that all pytest processes share: a process with one thread that imports what the commands
import and then waits; for each command it forks a process, which takes on the directory, environment, arguments,
`sys.path` and outputs of a new interpreter, in a session of its own, and then runs the command's module as `__main__`,
as `python -m` does. What ends it - an exit status, an exception, a signal - is told as subprocess tells it.
Not the same as in a new interpreter are import times and the order of imports, the seed of hashes, the environment that
libraries read when they are imported, and how an interpreter is torn down; for these, and for launchers, there is
`fresh=True`, and subprocess.
"""

import atexit
import concurrent.futures
import functools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TINY = [
    "model.base_channels=8",
    "model.norm_groups=4",
    "model.channel_mults=[1,2]",
    "trainer.batch_size=8",
    "trainer.log_every=2",
    "trainer.preview_images=4",
    "sampler.steps=3",
    "schedule.timesteps=20",
    "trainer.warmup_steps=0",
    "trainer.lr_decay=constant",  # the shape of a decay depends on trainer.steps, which resuming changes here
]
TINY_RUN = [*TINY, "trainer.steps=4", "trainer.preview_every=2", "trainer.checkpoint_every=2"]

# Beginnings of the variables that are read before a command comes to read any.
READ_AT_START = ("LANG", "LC_", "LD_", "MKL_", "OMP_", "PYTHON", "TORCH")
SERVER = "COMMANDS_SERVER"  # the variable that says where the server listens
FORKED_TOO = ("PYTHONPATH", "PYTHONUNBUFFERED")


class Forked:
    """A forked command, with what is used of `subprocess.Popen`. Its outputs are read as text; it leads its group."""

    def __init__(self, server: socket.socket, args: list[str], request: dict):
        self.args = args
        self.returncode: int | None = None
        (out, out_there), (err, err_there), (told, told_there) = (os.pipe() for _ in range(3))
        there = (out_there, err_there, told_there)
        content = json.dumps(request).encode()
        socket.send_fds(server, [len(content).to_bytes(4, "big")], there)
        server.sendall(content)
        for descriptor in there:
            os.close(descriptor)
        self.stdout, self.stderr, self._told = os.fdopen(out), os.fdopen(err), os.fdopen(told)
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        ready, _, _ = select.select([self._told], [], [], 0)
        return self.wait() if ready else self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ready, _, _ = select.select([self._told], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._told.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has yet to say, and its errors, when it has ended; its group is killed where that takes longer."""
        until = None if timeout is None else time.monotonic() + timeout
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            said = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            if concurrent.futures.wait(said, timeout).not_done:
                os.killpg(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if until is None else max(0, until - time.monotonic()))
        out, err = (future.result() for future in said)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen[str]


def wait_for(condition: Callable[[], object], process: Process) -> None:
    """Return once something is so, which a command brings about; it has to be at work until then."""
    until = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def begin_server() -> None:
    """Begin the server, for this process and those that it starts from now on. It ends with this process."""
    place = tempfile.mkdtemp(prefix="commands-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    # Neither OpenMP nor pyarrow's allocator, which pandas brings where it is installed, is to begin a thread.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    path = environment.pop("PYTHONPATH", "")
    life, theirs = socket.socketpair()
    os.environ[SERVER] = str(Path(place, "socket"))
    with theirs, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ[SERVER])
        listener.listen()
        descriptors = (listener.fileno(), theirs.fileno())
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forkserver.py")), *map(str, descriptors), path],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )
    atexit.register(life.close)  # and this holds it until then


@functools.cache
def _server() -> socket.socket:
    """A connection to the server, at which commands are asked for; those that were ends with it."""
    if SERVER not in os.environ:
        begin_server()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SERVER])
    return connection


def start(
    program: str, *arguments: str, cwd: Path, code: str | None = None, fresh: bool = False, **environment: str
) -> Process:
    """Begin `ddpm-train` or `ddpm-sample` (`program`: train, sample) in `cwd`, with `environment` added to this one.

    Args:
        code: what is run in the place of the program, as by `python -c`: most often it puts something else in the
            place of a function and then calls the program's `main`.
        fresh: in a new interpreter.
    """
    what = ["-m", f"ddpm_cli.{program}"] if code is None else ["-c", code]
    command = [sys.executable, *what, *arguments]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    if fresh:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=surroundings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    too_late = [name for name in environment if name.startswith(READ_AT_START) and name not in FORKED_TOO]
    assert not too_late, f"{too_late} have an effect only with fresh=True"
    request = {"module": f"ddpm_cli.{program}", "code": code, "arguments": arguments}
    return Forked(_server(), command, request | {"cwd": str(cwd), "environment": dict(surroundings)})


def run(program: str, *arguments: str, cwd: Path, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    """How a command ends and what it says. `options` as for `start`."""
    process = start(program, *arguments, cwd=cwd, **options)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_ranks(program: str, *arguments: str, cwd: Path, own: Sequence[object] = ("", ""), **options) -> list[Process]:
    """Begin one command in several processes, as torchrun would, which ends none of them when another has ended.

    Args:
        own: of each process, what RANK in an argument stands for.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(len(own))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [
        start(
            program,
            *(argument.replace("RANK", str(its)) for argument in arguments),
            cwd=cwd,
            **shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | options,
        )
        for rank, its in enumerate(own)
    ]


def run_ranks(
    program: str, *arguments: str, cwd: Path, timeout: float = 120, **options
) -> subprocess.CompletedProcess[str]:
    """How they end and what they say, one after another; the status is that of the first that fails."""
    processes = start_ranks(program, *arguments, cwd=cwd, **options)
    try:
        said = [process.communicate(timeout) for process in processes]
    except BaseException:
        for process in processes:
            process.kill()
        raise
    out, err = ("".join(texts) for texts in zip(*said, strict=True))
    status = next((process.returncode for process in processes if process.returncode != 0), 0)
    return subprocess.CompletedProcess(processes[0].args, status, out, err)


def train(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    return run("train", *arguments, cwd=cwd, **options)


def sample(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    return run("sample", *arguments, cwd=cwd, **options)


def only(directory: Path) -> Path:
    """The one entry of a directory, hidden ones aside."""
    (found,) = (path for path in directory.iterdir() if not path.name.startswith("."))
    return found


def assert_one_message(done: subprocess.CompletedProcess, program: str, says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^ddpm-{program}: .*{says}", done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert done.stdout == ""
