"""Several processes draw one set of images: the same bytes as one process draws, whoever dies and whoever goes on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from commands import Process, assert_one_message, run_ranks, sample, start, start_ranks

MANY = ["n=405", "batch_size=10", "save=npz", "save_trajectory=true", "sampler=ddpm", "sampler.steps=8"]


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "ddpm_cli.sample", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=180)


def two_ranks(*arguments: str, cwd: Path, own: Sequence[object] = ("", "")) -> list[Process]:
    return start_ranks("sample", *arguments, cwd=cwd, own=own, PYTHONUNBUFFERED="1")


def done(out: Path) -> bytes:
    """A byte for each batch."""
    try:
        return (out / ".unfinished" / "done").read_bytes()
    except FileNotFoundError:
        return b""


def wait_for(out: Path, *, of_rank: int) -> None:
    until = time.monotonic() + 90
    while not any(done(out)[of_rank::2]):
        assert time.monotonic() < until
        time.sleep(0.01)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def whole(labelled: Path, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes."""
    place = tmp_path_factory.mktemp("whole")
    alone = sample(f"ckpt={labelled}", *MANY, "out=out", cwd=place)
    assert alone.returncode == 0, alone.stderr
    return contents(place / "out")


BY_TORCHRUN = pytest.param(torchrun, marks=pytest.mark.slow)


@pytest.mark.parametrize("launch", [partial(run_ranks, "sample"), BY_TORCHRUN], ids=["forked", "torchrun"])
def test_two_processes_draw_what_one_does(launch: Callable, labelled: Path, whole, tmp_path: Path):
    together = launch(f"ckpt={labelled}", *MANY, "out=out", cwd=tmp_path)
    assert together.returncode == 0, together.stderr
    assert together.stdout.splitlines() == [
        f"{labelled}: step 4, ema weights, on cpu, fp32, 2 processes",
        *(f"out/{name}" for name in ("samples.png", "samples.npz", "steps.png", "steps.gif")),
    ]
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_one_that_dies_does_not_keep_the_other_and_one_goes_on_alone(labelled: Path, whole, tmp_path: Path):
    main, other = two_ranks(f"ckpt={labelled}", *MANY, "out=out", cwd=tmp_path)
    wait_for(tmp_path / "out", of_rank=1)
    other.kill()
    other.communicate()
    began = time.monotonic()
    _, error = main.communicate(timeout=90)
    assert main.returncode == 1, error
    assert time.monotonic() - began < 60, "it has its own half to finish"
    says = r"another process of this run has ended or does not respond.*\. (\d+) of 405 images are there\. To resume: "
    says += rf"torchrun --nproc_per_node=2 -m ddpm_cli.sample ckpt={labelled} .* out=out$"
    found = re.search(says, error, re.DOTALL)
    assert found is not None, error
    assert all(done(tmp_path / "out")[0::2]), "which it did"
    assert not all(done(tmp_path / "out")[1::2])
    alone = sample(f"ckpt={labelled}", *MANY, "out=out", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert f"resumes: {found[1]} of 405 images are there" in alone.stdout
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_two_go_on_with_what_one_began_and_both_end_at_a_signal(labelled: Path, whole, tmp_path: Path):
    arguments = [f"ckpt={labelled}", *MANY, "out=out"]
    alone = start("sample", *arguments, cwd=tmp_path)
    wait_for(tmp_path / "out", of_rank=0)
    alone.send_signal(signal.SIGTERM)
    alone.communicate(timeout=60)
    assert alone.returncode == 75
    before = sum(done(tmp_path / "out"))
    ranks = two_ranks(*arguments, cwd=tmp_path)
    until = time.monotonic() + 90
    while sum(done(tmp_path / "out")) < before + 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    for process in ranks:
        process.send_signal(signal.SIGINT)
    (_, error), (_, silent) = (process.communicate(timeout=60) for process in ranks)
    assert [process.returncode for process in ranks] == [75, 75]
    assert "ddpm-sample: SIGINT: stopped. " in error
    assert "ddpm-sample" not in silent, "one of them speaks"
    together = run_ranks("sample", *arguments, cwd=tmp_path)
    assert together.returncode == 0, together.stderr
    assert contents(tmp_path / "out") == whole


def test_what_cannot_be_is_said_once(labelled: Path, tmp_path: Path):
    main, other = two_ranks(f"ckpt={labelled}", "sampler.steps=99", "out=out", cwd=tmp_path)
    assert_one_message(finished(main), "sample", "sampler: steps must be between 1 and the schedule's 20")
    silent = finished(other)
    assert (silent.returncode, silent.stdout, "ddpm-sample" in silent.stderr) == (2, "", False)
    assert not (tmp_path / "out").exists()


def test_what_one_process_alone_would_draw_is_said_too(labelled: Path, tmp_path: Path):
    main, other = two_ranks(f"ckpt={labelled}", "seed=RANK", "out=out", cwd=tmp_path, own=[3, 4])
    assert_one_message(finished(main), "sample", "not every process would draw what the first does: seed: was 3, now 4")
    assert finished(other).returncode == 2


def test_all_draw_from_the_checkpoint_that_the_first_has_read(labelled: Path, tmp_path: Path):
    """As if a newer one had been saved meanwhile: here the second's own lacks the newest."""
    own = [labelled, tmp_path / "copy"]
    shutil.copytree(labelled, own[1])
    shutil.rmtree(own[1] / "checkpoints" / "step_00000004")
    main, other = two_ranks("ckpt=RANK", "n=4", "batch_size=2", "out=out", cwd=tmp_path, own=own)
    done = finished(main)
    assert done.returncode == finished(other).returncode == 0, done.stderr
    alone = sample(f"ckpt={labelled}", "n=4", "batch_size=2", "out=alone", cwd=tmp_path)
    assert "step 4" in done.stdout, alone.stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_sweep_is_refused(labelled: Path, tmp_path: Path):
    main, other = two_ranks(f"ckpt={labelled}", "-m", "sampler=ddim,ddpm", "out=out", cwd=tmp_path)
    says = "-m: torchrun has started 2 processes (WORLD_SIZE), which work on one run together; start the sweep without"
    assert says in finished(main).stderr
    finished(other)
    assert not (tmp_path / "out").exists()


def finished(process: Process) -> subprocess.CompletedProcess:
    said, error = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, said, error)
