"""The commands as a user runs them, in processes of their own, on a network of a second.

They are forked from one that has imported torch (`forkserver`), unless the environment asks for what only a fresh
interpreter can do. A command that prints much while nobody reads would wait for ever: `communicate` reads all the time.
"""

import atexit
import functools
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from forkserver import Forked, ForkServer, heeds, read_while

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


@functools.cache
def _server() -> ForkServer:
    """One for each process that runs tests."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def start(program: str, *arguments: str, cwd: Path, **environment: str) -> Forked | subprocess.Popen[str]:
    """`ddpm-train` or `ddpm-sample` (`program`: train, sample) with its output in pipes, in a session of its own."""
    whole = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    if heeds(environment):
        return _server().start(f"ddpm_cli.{program}", arguments, cwd=cwd, environment=whole)
    return subprocess.Popen(
        [sys.executable, "-m", f"ddpm_cli.{program}", *arguments],
        cwd=cwd,
        env=whole,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Ranks:
    """Processes that work together as torchrun starts them, their output in two pipes."""

    def __init__(self, program: str, *arguments: str, cwd: Path, size: int = 2, **environment: str):
        """`program` as for `start`, or a file that ends in .py; the launcher's own processes are left out."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        sizes = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "none"}
        whole = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | address | sizes | environment
        module = program if program.endswith(".py") else f"ddpm_cli.{program}"
        (out, out_end), (error, error_end) = os.pipe(), os.pipe()
        self.stdout, self.stderr = os.fdopen(out, encoding="utf-8"), os.fdopen(error, encoding="utf-8")
        self.processes = [
            _server().start(
                module,
                arguments,
                cwd=cwd,
                environment=whole | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                outputs=(out_end, error_end),
            )
            for rank in range(size)
        ]
        os.close(out_end)
        os.close(error_end)

    @property
    def returncodes(self) -> list[int | None]:
        """The exit status of each."""
        return [process.poll() for process in self.processes]

    def wait(self, timeout: float) -> list[int | None]:
        """The exit status of each, once all have ended; after `timeout` seconds the others are killed."""
        try:
            for process in self.processes:
                process.wait(timeout)
        finally:
            for process in self.processes:
                process.kill()
        return self.returncodes

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What they say until all have ended."""
        return read_while(lambda: self.wait(timeout), self.stdout, self.stderr)


def run(
    program: str, *arguments: str, cwd: Path, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess:
    """As `start`, waited for: what it said and how it ended."""
    process = start(program, *arguments, cwd=cwd, **environment)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return run("train", *arguments, cwd=cwd, **environment)


def sample(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return run("sample", *arguments, cwd=cwd)


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
