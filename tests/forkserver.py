"""A process that has imported what the commands import and forks them; `commands` starts it and says what it is for.

    python forkserver.py LISTENER LIFE PYTHONPATH

LISTENER is a Unix socket to which clients connect; the server ends when the other end of LIFE is closed. A request is
the length of a JSON object in four bytes, with which come three descriptors - standard output, standard error, and
where to tell - and the object: `module` or `code`, `arguments`, `cwd`, `environment`. Told are two lines: the process's
id at once, and in the end its exit status as subprocess has it.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import tempfile
import types
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from PIL import Image

LIBRARIES = (  # what is imported inside functions, or by functions of torch
    "sklearn.datasets",
    "tensorboard.compat.proto.event_pb2",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "torchvision.datasets",
)
# Each is to be `__main__`, hence not imported before.
COMMANDS = tuple(f"ddpm_cli.{name}" for name in ("train", "sample", "eval", "compare", "import_model", "export_model"))
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
THREADS = Path("/proc/self/task")  # where there is one
POLL_SECONDS = 0.005


def preload() -> None:
    """Import what the commands import, and nothing that begins a thread: threads do not survive a fork."""
    for name in (*LIBRARIES, "ddpm_cli"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(sys.modules["ddpm_cli"].__path__, "ddpm_cli."):
        if module.name not in COMMANDS:
            importlib.import_module(module.name)
    Image.init()  # imports its formats
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):  # imports plug-ins; its parsers learn the grammar
        compose("train", ["trainer.steps=1", "sampler.steps=[1,2]", "schedule=linear"])
    resolvers = sys.modules["ddpm_cli.cli.resolvers"]
    for program in ("train", "sample", "eval", "import", "export"):  # what a process reads once of our own YAML files
        resolvers.help_on_groups(program)
        resolvers.help_on_values(program)
    for targets in sys.modules["ddpm_cli.config.shipped"].shipped_targets().values():
        for target in targets:
            sys.modules["ddpm_cli.config.signatures"].signature(target)
    gc.collect()
    gc.set_threshold(50_000)  # most of what a command makes is there to stay: looking through it finds little
    for what in gc.get_objects():
        if type(what) is weakref.finalize:
            what.atexit = False  # what this process has made is not for a forked one to take down
    gc.freeze()  # a forked process looks through nothing that is here already, and so need not copy it
    assert not THREADS.exists() or len(list(THREADS.iterdir())) == 1


@dataclass
class Child:
    """A process, the client that has asked for it, and the descriptor to which its end is told."""

    client: socket.socket
    told: int


def serve(listener: socket.socket, life: socket.socket) -> dict[str, Any]:
    """Fork a process for each request, and return in it, with what it is to do. Ends with the one who has begun it."""
    clients: list[socket.socket] = []
    forked: dict[int, Child] = {}  # by id
    while True:
        ready, _, _ = select.select([listener, life, *clients], [], [], POLL_SECONDS if forked else None)
        if life in ready:
            _kill(list(forked))
            os._exit(0)
        if listener in ready:
            clients.append(listener.accept()[0])
        for client in set(ready).intersection(clients):
            size, descriptors, _, _ = socket.recv_fds(client, 4, 3)
            if not size:
                _kill([pid for pid, process in forked.items() if process.client is client])
                clients.remove(client)
                client.close()
                continue
            request = json.loads(_receive(client, int.from_bytes(size, "big")))
            out, err, told = descriptors
            pid = os.fork()
            if pid == 0:
                os.setsid()
                os.dup2(out, 1)
                os.dup2(err, 2)
                _tell(told, os.getpid())
                sockets = (one.detach() for one in (listener, life, *clients))
                for descriptor in (*sockets, *descriptors, *(process.told for process in forked.values())):
                    os.close(descriptor)
                return request
            os.close(out)
            os.close(err)
            forked[pid] = Child(client, told)
        for pid in list(forked):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                told = forked.pop(pid).told
                _tell(told, os.waitstatus_to_exitcode(status))
                os.close(told)


def _kill(forked: list[int]) -> None:
    """Kill processes with all that they have started."""
    for pid in forked:
        with contextlib.suppress(ProcessLookupError):  # it may not lead a group yet
            os.killpg(pid, signal.SIGKILL)


def _tell(descriptor: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody may want to know any more
        os.write(descriptor, f"{number}\n".encode())


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        received += connection.recv(size - len(received))
    return bytes(received)


class Leaving:
    """Ends this process before anything is torn down, which takes longer than most commands."""

    status = 1

    def __call__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.status)


def become(request: dict[str, Any], installed: list[str], leaving: Leaving) -> None:
    """Run a module or code as if this were a new interpreter with these arguments, directory and environment.

    Args:
        installed: what follows PYTHONPATH in `sys.path`.
        leaving: is told the exit status.
    """
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    path = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.getcwd() if request["code"] is None else "", *map(os.path.abspath, path), *installed]
    tempfile.tempdir = None  # has been looked up in another environment
    importlib.import_module("numpy").random.seed()  # nobody's seed: another one in every process
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        if request["code"] is None:
            sys.argv[1:] = request["arguments"]
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = ["-c", *request["arguments"]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(request["code"], "<string>", "exec"), vars(main))
        leaving.status = 0
    except SystemExit as ended:
        leaving.status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise


def main() -> None:
    leaving = Leaving()
    atexit.register(leaving)  # the first to be registered is the last to be called
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell has put the tests into the background
    listener, life, path = sys.argv[1:]
    installed = sys.path[1:]
    sys.path[:] = [*filter(None, path.split(os.pathsep)), *installed]
    preload()
    become(serve(*(socket.socket(fileno=int(descriptor)) for descriptor in (listener, life))), installed, leaving)


if __name__ == "__main__":
    main()
