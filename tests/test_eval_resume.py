"""An evaluation that is stopped in every way, and ends with the same figures."""

import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Process, assert_one_message, run, run_ranks, start, wait_for

MANY = ["n=400", "batch_size=10", "sampler.steps=4", "features=pixels", "metrics=[kd]", "out=out"]


# Each batch is on the disk at once, and there is time to do something before the next: 40 of them take a second.
SLOWLY = """
import time
from ddpm_cli.sampling import batch_store
batch_store.FLUSH_SECONDS = 0
keep = batch_store.BatchStore.keep
def keep_and_wait(*arguments):
    keep(*arguments)
    time.sleep(0.025)
batch_store.BatchStore.keep = keep_and_wait
from ddpm_cli.eval import main
main()
"""


def begin(*arguments: str, cwd: Path) -> Process:
    return start("eval", *arguments, cwd=cwd, code=SLOWLY, PYTHONUNBUFFERED="1")


def batches_done(out: Path) -> int:
    return sum(sum(path.read_bytes()) for path in out.glob(".*/done"))


def record(out: Path) -> dict:
    """What decides and what came out, of the one record in a directory that holds nothing hidden any more."""
    assert not list(out.glob(".*")), "nothing is left of what was unfinished"
    (path,) = out.glob("*.json")
    found = json.loads(path.read_text())
    return {"name": path.name, "metrics": found["metrics"], "samples": found["samples"]}


@pytest.fixture(scope="module")
def whole(labelled: Path, tmp_path_factory) -> dict:
    """What an evaluation finds that nobody stops."""
    place = tmp_path_factory.mktemp("whole")
    done = run("eval", f"ckpt={labelled}", *MANY, cwd=place)
    assert done.returncode == 0, done.stderr
    return record(place / "out")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_figures(labelled: Path, whole: dict, tmp_path: Path):
    chance, out = random.Random(0), tmp_path / "out"
    for _ in range(2):
        process, before = begin(f"ckpt={labelled}", *MANY, cwd=tmp_path), batches_done(out)
        wait_for(lambda before=before: batches_done(out) > before, process)
        time.sleep(0.3 * chance.random())
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    done = run("eval", f"ckpt={labelled}", *MANY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^resumes: \d+ of 400 images are there$", done.stdout, re.MULTILINE)
    assert record(out) == whole


def test_asked_to_stop_it_says_what_is_there_and_the_command_that_goes_on(labelled: Path, whole: dict, tmp_path: Path):
    process = begin(f"ckpt={labelled}", *MANY, cwd=tmp_path)
    wait_for(lambda: batches_done(tmp_path / "out") > 0, process)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    says = r"ddpm-eval: SIGTERM: stopped. (\d+) of 400 images are there. To resume: (ddpm-eval .*)"
    found = re.fullmatch(says, error.strip().splitlines()[-1])
    assert found is not None, error
    assert 10 * batches_done(tmp_path / "out") == int(found[1])
    # Other figures of the same features take up what is there.
    other = [argument for argument in shlex.split(found[2])[1:] if not argument.startswith("metrics=")]
    also = run("eval", *other, "metrics=[precision_recall]", cwd=tmp_path)
    assert also.returncode == 0, also.stderr
    assert f"resumes: {found[1]} of 400 images are there" in also.stdout
    done = run("eval", *shlex.split(found[2])[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    paths = list((tmp_path / "out").glob("*.json"))
    assert len(paths) == 2
    (same,) = (json.loads(path.read_text()) for path in paths if path.name == whole["name"])
    assert same["metrics"] == whole["metrics"]


def test_a_signal_before_anything_is_drawn_leaves_nothing(labelled: Path, tmp_path: Path):
    process = begin(f"ckpt={labelled}", *MANY, "batch_size=400", cwd=tmp_path)
    assert process.stdout is not None
    assert "step 4, ema weights" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert error.splitlines()[-1] == "ddpm-eval: SIGINT: stopped. Nothing had been drawn yet"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_do_not_make_one_evaluation(labelled: Path, whole: dict, tmp_path: Path):
    process = begin(f"ckpt={labelled}", *MANY, cwd=tmp_path)
    wait_for(lambda: batches_done(tmp_path / "out") > 0, process)
    process.send_signal(signal.SIGSTOP)
    refused = run("eval", f"ckpt={labelled}", *MANY, cwd=tmp_path)
    assert_one_message(refused, "eval", "out: out: another process is making this evaluation")
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) == 0
    process.communicate()
    assert record(tmp_path / "out") == whole


@pytest.mark.slow
def test_two_ranks_share_the_work_and_find_the_same(labelled: Path, whole: dict, tmp_path: Path):
    done = run_ranks("eval", f"ckpt={labelled}", *MANY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kd400_pixels") == 1, "one of them speaks"
    assert "2 processes" in done.stdout
    assert record(tmp_path / "out") == whole


def test_what_one_rank_refuses_all_do(labelled: Path, tmp_path: Path):
    refused = run_ranks("eval", f"ckpt={labelled}", *MANY[:-2], "sampler.steps=99", "out=out", cwd=tmp_path)
    assert_one_message(refused, "eval", "sampler: steps must be between 1 and the schedule's 20")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_at_any_moment_of_any_kind(labelled: Path, whole: dict, tmp_path: Path):
    """Also while figures are made and the record is written; by ranks in turn with a process alone."""
    chance, out = random.Random(1), tmp_path / "out"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "ddpm_cli.eval"]
    for attempt in range(30):
        if attempt % 3 == 2:
            launched = [*launcher, f"ckpt={labelled}", *MANY]
            process = subprocess.Popen(launched, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(8 + 4 * chance.random())
            process.kill()
            process.wait()
            time.sleep(1)  # torchrun's own children end
        else:
            process = begin(f"ckpt={labelled}", *MANY, cwd=tmp_path)
            time.sleep(3 * chance.random())
            process.kill()
            process.communicate()
        if list(out.glob("*.json")):
            break
    done = run("eval", f"ckpt={labelled}", *MANY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert record(out) == whole
