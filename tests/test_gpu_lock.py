"""A GPU for each job: with GPUs that are only named, and real processes that want them at the same time."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from ddpm_cli.cli.gpu_lock import visible_gpus

# Prints the GPU that it has, from when, until when: what has been seen of a process while it held its lock.
HOLDER = """
import os, sys, time
from ddpm_cli.cli import gpu_lock as pinning
pinning.POLL_SECONDS = 0.05
gpu = pinning.pin()
assert pinning.pin() == gpu, "a process keeps its GPU"
began = time.monotonic()
time.sleep(float(sys.argv[1]))
print(gpu, os.environ.get("CUDA_VISIBLE_DEVICES"), began, time.monotonic(), flush=True)
os._exit(0)  # whatever way it ends: nobody tidies up
"""


def start(seconds: float, tmp_path: Path, **environment: str) -> subprocess.Popen:
    surroundings = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(seconds)],
        env=surroundings | {"TMPDIR": str(tmp_path)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> tuple[str, str, float, float]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    gpu, visible, began, until = out.split()
    return gpu, visible, float(began), float(until)


def test_no_two_processes_have_a_gpu_at_once_and_none_is_idle(tmp_path: Path):
    holders = [start(0.5, tmp_path, CUDA_VISIBLE_DEVICES="0,1") for _ in range(6)]
    held = [ended(holder) for holder in holders]
    assert {gpu for gpu, *_ in held} == {"0", "1"}
    assert all(visible == gpu for gpu, visible, *_ in held)
    for (gpu, _, began, until), (other, _, other_began, other_until) in combinations(held, 2):
        assert gpu != other or until <= other_began or other_until <= began
    assert any(
        began < other_until and other_began < until
        for (_, _, began, until), (_, _, other_began, other_until) in combinations(held, 2)
    )


def test_a_gpu_is_the_same_one_however_it_is_named(tmp_path: Path):
    """Where the driver tells the UUIDs, as here a stand-in for nvidia-smi does."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    listed = "".join(f"GPU {i}: NVIDIA H100 (UUID: GPU-{i}{i}-ab)\\n" for i in range(2))
    tool.write_text(f"#!/bin/sh\nprintf '{listed}'\n")
    tool.chmod(0o755)
    path = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    first = start(2, tmp_path, CUDA_VISIBLE_DEVICES="GPU-11-ab,GPU-00-ab", **path)
    assert first.stdout is not None
    while not list(tmp_path.glob("ddpm-cli-gpus-*/*.lock")):
        assert first.poll() is None
    second = ended(start(0, tmp_path, **path))
    assert second[:2] == ("0", "0")
    assert ended(first)[0] == "GPU-11-ab"


def test_a_process_that_waits_says_so(tmp_path: Path):
    holders = [start(1, tmp_path, CUDA_VISIBLE_DEVICES="0,1") for _ in range(3)]
    said = [holder.communicate(timeout=60)[1] for holder in holders]
    assert sorted(said) == ["", "", "waiting for a GPU: 0, 1 are in use by other jobs\n"]


@pytest.mark.parametrize(("named", "gpus"), [("0,1", ["0", "1"]), ("", []), ("-1", []), ("2,-1,3", ["2"])])
def test_visible_gpus_are_those_that_cuda_would_show(named: str, gpus: list[str], monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus


def test_where_there_is_no_choice_nothing_is_changed(tmp_path: Path):
    for named in ("0", ""):
        out, err = start(0, tmp_path, CUDA_VISIBLE_DEVICES=named).communicate(timeout=60)
        assert out.startswith(f"None {named}"), err
    assert not list(tmp_path.glob("ddpm-cli-gpus-*"))


def test_locks_are_not_kept_where_a_link_leads(tmp_path: Path):
    (tmp_path / f"ddpm-cli-gpus-{os.getuid()}").symlink_to(tmp_path)
    process = start(0, tmp_path, CUDA_VISIBLE_DEVICES="0,1")
    assert "no directory of this user's own" in process.communicate(timeout=60)[1]
    assert not list(tmp_path.glob("*.lock"))
