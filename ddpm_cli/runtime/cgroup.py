"""The share of the machine that this process may use: containers and cluster jobs have less (Linux's cgroups).

A limit of a group holds for the groups in it: of this process's own and all above it the lowest counts. Both versions
of cgroups are read, where they are mounted. `root` is where the system's files lie, for tests.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")


def processors() -> int:
    """The number of CPUs on which this process may run; all of them if the system does not tell (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpus(root: Path = ROOT) -> int:
    """The number of CPUs whose full time this process may use, at least one; part of a CPU counts as one."""
    return max(1, math.ceil(min(processors(), _lowest(root, "cpu", _cpus_v2, _cpus_v1))))


def memory(root: Path = ROOT) -> float:
    """Bytes that the limits of this process's groups still allow; infinite without limits."""
    return max(0.0, _lowest(root, "memory", _memory_v2, _memory_v1))


def _cpus_v2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text().split()
    return math.inf if quota == "max" else int(quota) / int(period)


def _cpus_v1(group: Path) -> float:
    quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    return math.inf if quota < 0 else quota / period


def _memory_v2(group: Path) -> float:
    limits = [(group / f"memory.{name}").read_text().strip() for name in ("max", "high")]
    limit = min(math.inf if text == "max" else int(text) for text in limits)
    return limit - int((group / "memory.current").read_text()) + _file_cache(group, "inactive_file")


def _memory_v1(group: Path) -> float:  # without a limit it is one of 2**63 bytes
    limit, used = (int((group / f"memory.{name}_in_bytes").read_text()) for name in ("limit", "usage"))
    return limit - used + _file_cache(group, "total_inactive_file")


def _file_cache(group: Path, name: str) -> int:
    """Bytes that count as used, but are freed when needed."""
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return next((int(value) for key, value in lines if key == name), 0)


def _lowest(root: Path, controller: str, v2: Callable[[Path], float], v1: Callable[[Path], float]) -> float:
    found = math.inf
    for kind, read in (("", v2), (controller, v1)):
        for group in _groups(root, kind):
            with suppress(OSError, ValueError):  # the topmost group, and one without the controller, have no such files
                found = min(found, read(group))
    return found


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of this process's groups, from its own upwards, as far as they are mounted here.

    Args:
        controller: of version 1; empty: of version 2.
    """
    try:
        own = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in own:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            for place, top in _mounted(mounts, controller):
                # In a container the top may be a group below the machine's, and paths count from either.
                inside = os.path.relpath(path, top) if path.startswith(top) else path.lstrip("/")
                group = root / place.lstrip("/")
                below = [group.joinpath(*parts) for parts in _prefixes(inside)]
                yield from (directory for directory in (*below, group) if directory.is_dir())


def _mounted(mounts: list[str], controller: str) -> Iterator[tuple[str, str]]:
    """The mount point of a hierarchy, and its top group there (proc(5), mountinfo)."""
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind == ("cgroup" if controller else "cgroup2") and (not controller or controller in options.split(",")):
            _, _, _, top, place, *_ = fields.split(" ")
            yield place, top


def _prefixes(path: str) -> Iterator[list[str]]:
    """A path and all its parents, the longest first; empty for a path that leads out."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." not in parts:
        yield from (parts[:length] for length in range(len(parts), 0, -1))
