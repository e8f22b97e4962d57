"""What a container leaves a process of its machine, and what torch's threads are told of it."""

import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from commands import start

from ddpm_cli.data import worker_pool
from ddpm_cli.runtime import cgroup, openmp
from ddpm_cli.runtime.device import Compute
from ddpm_cli.training import batch_size_finder

GIB = 2**30
V2 = "30 23 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
V1 = "".join(
    f"3{number} 23 0:3{number} {{top}} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
    for number, name in enumerate(["cpu,cpuacct", "memory"])
)


def machine(root: Path, own: str, mounts: str, files: dict[str, str]) -> Path:
    """A tree of the system's files; `files` are those of groups."""
    for name, content in {"proc/self/cgroup": own, "proc/self/mountinfo": mounts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def v2(place: str, *, cpu: str = "max 100000", memory: tuple = ("max", "max"), used: int = 0, cache: int = 0) -> dict:
    group = f"sys/fs/cgroup{place}"
    contents = {
        "cpu.max": cpu,
        "memory.max": memory[0],
        "memory.high": memory[1],
        "memory.current": used,
        "memory.stat": f"anon 5\ninactive_file {cache}\nactive_file 7",
    }
    return {f"{group}/{name}": f"{content}\n" for name, content in contents.items()}


def v1(place: str, *, quota: int = -1, memory: int = 2**63 - 4096, used: int = 0, cache: int = 0) -> dict:
    contents = {
        "cpu,cpuacct": {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": 100_000},
        "memory": {
            "memory.limit_in_bytes": memory,
            "memory.usage_in_bytes": used,
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {cache}",
        },
    }
    return {
        f"sys/fs/cgroup/{controllers}{place}/{name}": f"{content}\n"
        for controllers, files in contents.items()
        for name, content in files.items()
    }


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch) -> None:
    monkeypatch.setattr(cgroup, "processors", lambda: 8)


@pytest.mark.parametrize(
    ("own", "mounts", "files", "cpus", "memory"),
    [
        ("0::/\n", V2, {}, 8, math.inf),  # the topmost group has no limits
        ("0::/a/b\n", V2, v2("/a") | v2("/a/b"), 8, math.inf),
        ("0::/a/b\n", V2, v2("/a") | v2("/a/b", cpu="150000 100000", memory=(4 * GIB, "max")), 2, 4 * GIB),
        # Of all groups it is in the lowest limit counts, less what is used and cannot be given up.
        (
            "0::/a/b\n",
            V2,
            v2("/a", cpu="50000 100000", memory=(8 * GIB, 3 * GIB), used=2 * GIB, cache=GIB)
            | v2("/a/b", cpu="400000 100000", memory=(4 * GIB, "max"), used=GIB),
            1,
            2 * GIB,
        ),
        ("0::/a\n", V2, v2("/a", memory=(GIB, "max"), used=2 * GIB), 8, 0),
        ("0::/\n", V2, v2("", cpu="200000 100000", memory=(GIB, "max")), 2, GIB),  # inside a container
        ("0::/../../x\n", V2, v2("", cpu="200000 100000"), 2, math.inf),  # a group outside what is mounted
        (
            "4:memory:/a\n2:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/\n",
            V1.format(top="/"),
            v1("/a", quota=300_000, memory=GIB, used=GIB // 2, cache=GIB // 4) | v1("/a/b"),
            3,
            3 * GIB // 4,
        ),
        # A container whose paths count from the machine's top, and whose mounts do not.
        (
            "4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n",
            V1.format(top="/docker/1"),
            v1("", quota=250_000, memory=GIB),
            3,
            GIB,
        ),
        ("", "", {}, 8, math.inf),
        ("0::/a\n", V2, {"sys/fs/cgroup/a/cpu.max": "nonsense"}, 8, math.inf),
    ],
)
def test_the_lowest_limit_counts(own: str, mounts: str, files: dict, cpus: int, memory: float, tmp_path: Path):
    root = machine(tmp_path, own, mounts, files)
    assert cgroup.cpus(root) == cpus
    found = cgroup.memory(root)
    assert found == memory or found > 2**62, "without a limit version 1 has one that no machine reaches"


def test_a_machine_without_cgroups_has_no_limits(tmp_path: Path):
    assert (cgroup.cpus(tmp_path), cgroup.memory(tmp_path)) == (8, math.inf)


@pytest.fixture
def limited(tmp_path: Path, monkeypatch) -> None:
    """In a container with a CPU and a half, and half a GiB that is left."""
    root = machine(tmp_path, "0::/\n", V2, v2("", cpu="150000 100000", memory=(GIB, "max"), used=GIB // 2))
    monkeypatch.setattr(cgroup, "memory", partial(cgroup.memory, root))
    for user in (worker_pool, openmp):
        monkeypatch.setattr(user, "cpus", partial(cgroup.cpus, root))
    monkeypatch.setattr(openmp, "processors", lambda: 8)


def test_decoding_processes_are_those_of_the_container(limited):
    assert worker_pool.share_of_cpus(-1) == 2


def test_micro_batches_are_cut_to_the_memory_of_the_container(limited, monkeypatch):
    """Each image is made to take a hundredth of a GiB for the backward pass: 40 fit into 0.8 of a half."""
    monkeypatch.setattr(batch_size_finder, "_bytes_kept", lambda *_: GIB // 100)
    monkeypatch.setattr(batch_size_finder, "_fits", lambda *_: True)
    compute = Compute(torch.device("cpu"), "fp32")
    assert batch_size_finder.smallest_accumulate(None, compute, (1, 8, 8), 80) == 2
    assert batch_size_finder.smallest_accumulate(None, compute, (1, 8, 8), 82) == 41


@pytest.mark.parametrize(
    ("users", "passively", "told"),
    [
        ({}, False, {"GOMP_SPINCOUNT": str(openmp.SPIN_COUNT), "OMP_NUM_THREADS": "2"}),
        ({}, True, {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}),
        ({"OMP_WAIT_POLICY": "active"}, False, {"OMP_NUM_THREADS": "2"}),
        ({"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"}, True, {}),
    ],
)
def test_openmp_is_told_what_the_user_has_not(users: dict, passively: bool, told: dict, limited):
    with mock.patch.dict(os.environ, users, clear=True):
        openmp.prepare(wait_passively=passively)
        assert dict(os.environ) == users | told


def test_on_a_machine_of_its_own_torch_counts_the_threads(monkeypatch):
    monkeypatch.setattr(openmp, "cpus", lambda: 8)
    monkeypatch.setattr(openmp, "processors", lambda: 8)
    with mock.patch.dict(os.environ, clear=True):
        openmp.prepare()
        assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
def test_the_commands_tell_openmp_before_torch_is_there(tmp_path: Path):
    """OpenMP itself says what it has read when it was loaded."""
    process = start("sample", "ckpt=nowhere", cwd=tmp_path, fresh=True, OMP_DISPLAY_ENV="VERBOSE")
    _, said = process.communicate(120)
    assert "ckpt: nowhere does not exist" in said
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said) == [str(openmp.SPIN_COUNT)]


@pytest.mark.slow
def test_a_real_group_of_processes_has_the_cpus_of_its_limit():
    """Made in version 1's hierarchy, as root, of a group that may be divided."""
    parent = Path("/sys/fs/cgroup/cpu")
    group = parent / f"ddpm-cli-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made here: {error}")
    try:
        (group / "cpu.cfs_quota_us").write_text("100000")
        code = (
            f"from pathlib import Path; import os; Path({str(group / 'cgroup.procs')!r}).write_text(str(os.getpid()))\n"
            "from ddpm_cli.runtime import cgroup; print(cgroup.cpus())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"
    finally:
        group.rmdir()
