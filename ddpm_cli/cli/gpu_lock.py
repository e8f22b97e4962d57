"""Gives each job its own GPU in a sweep that runs several jobs at once on one machine.

What is visible to a process is decided by CUDA_VISIBLE_DEVICES, which CUDA reads when it is first used there: a process
keeps its GPU as long as it lives, and with it a lock that the system takes back however the process ends.
"""

import functools
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ddpm_cli.io import lock

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 1.0

_held: list[Callable[[], None]] = []  # what would let go of a lock; one that nobody refers to may be let go of


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show to this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get(VISIBLE)
    if named is None:
        return [str(index) for index in range(len(_uuids()))]
    found = []
    for gpu in named.split(","):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", gpu.strip()):
            break  # as CUDA does: nothing counts from the first that is none
        found.append(gpu.strip())
    return found


@functools.cache
def pin() -> str | None:
    """Set CUDA_VISIBLE_DEVICES to a GPU that no other job of this user has, until this process ends; returns it.

    While all are taken it waits. Where there is no choice, or CUDA has been used in this process, it does nothing and
    returns None.

    Raises:
        OSError: if the locks cannot be kept in the system's temporary directory.
    """
    gpus = visible_gpus()
    torch = sys.modules.get("torch")
    if len(gpus) < 2 or (torch is not None and torch.cuda.is_initialized()):
        return None
    uuids = _uuids()
    # By UUID, so that a GPU is the same one whatever subset of them a process has been given.
    locks = {gpu: _lock_file(uuids[int(gpu)] if gpu.isdecimal() and int(gpu) < len(uuids) else gpu) for gpu in gpus}
    gpu = _first_free(locks)
    if gpu is None:
        print(f"waiting for a GPU: {', '.join(gpus)} are in use by other jobs", file=sys.stderr)
    while gpu is None:
        time.sleep(POLL_SECONDS)
        gpu = _first_free(locks)
    os.environ[VISIBLE] = gpu
    return gpu


def _first_free(locks: dict[str, Path]) -> str | None:
    for gpu, file in locks.items():
        try:
            _held.append(lock.acquire(file))
        except BlockingIOError:
            continue
        return gpu
    return None


def _lock_file(name: str) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows gives every user a directory of their own, owned by 0
    directory = Path(tempfile.gettempdir(), f"ddpm-cli-gpus-{user}")
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    # Anybody may write where it lies: a link there would lead our lock files elsewhere.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user:
        raise PermissionError(f"{directory} is no directory of this user's own")
    return directory / f"{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"


@functools.cache
def _uuids() -> list[str]:
    """The UUIDs of all GPUs that the driver shows, by number; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return re.findall(r"^GPU \d+: .*\(UUID: (GPU-[\w-]+)\)", listed.stdout, re.MULTILINE)
