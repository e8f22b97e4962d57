"""Disks that cannot do all that others can: no flush, no locks, names that are late, files that several runs share."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from commands import TINY_RUN, assert_one_message, only, run_ranks, sample, train

from ddpm_cli.io import durable, lock, run_dir
from ddpm_cli.sampling import image_store
from ddpm_cli.sampling.image_store import ImageStore

# To be put before a command: fsync of what `which` names, or flock, fails with an error.
NO_FSYNC = """
import errno, os, stat, sys
really, code, which = os.fsync, int(sys.argv.pop(1)), sys.argv.pop(1)
def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode) or which == "all":
        raise OSError(code, os.strerror(code))
    really(descriptor)
os.fsync = fsync
"""
NO_FLOCK = """
import fcntl, os, sys
code = int(sys.argv.pop(1))
def flock(descriptor, operation):
    raise OSError(code, os.strerror(code))
fcntl.flock = flock
"""
MAIN = "from ddpm_cli.{} import main; main()"

# Takes a lock and says so; ends, without tidying up, when its input does.
HOLDER = """
import os, sys
from pathlib import Path
{before}
from ddpm_cli.io import lock
try:
    release = lock.acquire(Path(sys.argv[1]))
except BlockingIOError as error:
    print(error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
os._exit(0)
"""


def hold(path: Path, before: str = "", *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER.format(before=before), *arguments, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ends(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=60)


@pytest.mark.parametrize(("code", "which"), [("EBADF", "directories"), ("ENOTSUP", "all")])
def test_a_run_goes_on_where_nothing_is_flushed_and_says_so_once(code: str, which: str, tmp_path: Path):
    number = str(getattr(errno, code))
    done = train(number, which, *TINY_RUN, cwd=tmp_path, code=NO_FSYNC + MAIN.format("train"))
    assert done.returncode == 0, done.stderr
    run = only(tmp_path / "outputs" / "digits")
    log = (run / run_dir.LOG_FILE).read_text(encoding="utf-8")
    for kind, count in (("directories", 1), ("files", int(which == "all"))):
        says = rf"^.*WARNING disk     .*: this file system does not flush {kind} \({os.strerror(int(number))}\)"
        assert len(re.findall(says, log, re.MULTILINE)) == count
        assert (done.stdout + done.stderr).count(f"does not flush {kind}") == count


def test_drawing_goes_on_where_nothing_is_flushed(trained: tuple, tmp_path: Path):
    arguments = [f"ckpt={trained[0]}", "n=2", "out=out"]
    code = NO_FSYNC + MAIN.format("sample")
    done = sample(str(errno.EINVAL), "all", *arguments, cwd=tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    assert [line.split(" (")[0] for line in done.stderr.splitlines() if "this file system" in line] == [
        "disk     .: this file system does not flush directories",
        "disk     out/.unfinished/pixels: this file system does not flush files",
    ]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_an_error_as_ever(code: int, tmp_path: Path, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    for call in (lambda: durable.sync(tmp_path), lambda: durable.replace(tmp_path / "file", b"")):
        with pytest.raises(OSError, match=os.strerror(code)) as raised:
            call()
        assert str(raised.value.filename).startswith(str(tmp_path))


# Locks ---------------------------------------------------------------------------------------------------------------


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path):
    file = tmp_path / ".lock"
    (tmp_path / "beside").touch()
    first = hold(file)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    says = f"{file} is held by process {first.pid} on {socket.gethostname()}; if it no longer runs, remove the file"
    with pytest.raises(BlockingIOError, match=re.escape(says)):
        lock.acquire(file)
    first.kill()
    first.wait()
    lock.acquire(file)()
    assert file.exists()
    (tmp_path / "beside").unlink()
    lock.acquire(file)()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "ENOTSUP"])
def test_without_flock_a_file_is_the_lock(code: str, tmp_path: Path):
    file, marker, number = tmp_path / ".lock", tmp_path / ".lock.held", str(getattr(errno, code))
    first = hold(file, NO_FLOCK, number)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    assert [path.name for path in tmp_path.iterdir()] == [marker.name]
    out, err = ends(hold(file, NO_FLOCK, number))
    assert out == f"{marker} is held by process {first.pid} on {socket.gethostname()}; if it no longer runs, " + (
        "remove the file\n"
    )
    assert err.count("\n") == 1
    assert f"this file system has no locks ({os.strerror(int(number))}): .lock.held keeps other processes out" in err
    first.kill()
    first.wait()
    assert ends(hold(file, NO_FLOCK, number))[0] == "held\n", "its dead holder is of this machine"
    marker.write_text("123\nanother-machine\n", encoding="utf-8")
    assert "is held by process 123 on another-machine; if" in ends(hold(file, NO_FLOCK, number))[0]


def test_a_command_without_flock_refuses_beside_a_lock_of_another_machine(trained: tuple, home: Path):
    run = trained[0]
    (run / ".lock.held").write_text("123\nnode-7\n", encoding="utf-8")
    arguments = [str(errno.ENOLCK), f"resume={run}", "trainer.steps=6"]
    done = train(*arguments, cwd=home, code=NO_FLOCK + MAIN.format("train"))
    assert done.returncode == 2
    says = "another process is training there: .*lock.held is held by process 123 on node-7; if it no longer "
    assert re.search(says, done.stderr), done.stderr
    (run / ".lock.held").unlink()
    done = train(*arguments, cwd=home, code=NO_FLOCK + MAIN.format("train"))
    assert done.returncode == 0, done.stderr
    assert not (run / ".lock.held").exists()
    assert "WARNING disk" in (run / run_dir.LOG_FILE).read_text(encoding="utf-8")


def test_who_is_refused_leaves_no_empty_directory(finished: tuple, tmp_path: Path):
    failing = NO_FLOCK + MAIN
    number = str(errno.EIO)
    done = train(number, *TINY_RUN, "output_dir=a/b", cwd=tmp_path, code=failing.format("train"))
    assert_one_message(done, "train", "output_dir: a/b/digits/.*lock: Input/output error")
    run = only(finished[0] / "outputs" / "digits")
    for out in ([], ["out=a/b"]):
        done = sample(number, f"ckpt={run}", *out, cwd=tmp_path, code=failing.format("sample"))
        assert_one_message(done, "sample", "out: .*lock: Input/output error")
    assert list(tmp_path.iterdir()) == []
    assert not (run / run_dir.SAMPLES).exists()


# Files that are late, and files that are shared ----------------------------------------------------------------------


def test_files_that_another_machine_has_made_are_waited_for(tmp_path: Path, monkeypatch):
    file = tmp_path / "later" / "file"
    made = threading.Timer(0.3, lambda: (file.parent.mkdir(), file.touch()))
    made.start()
    durable.wait_for(tmp_path, file)
    assert file.exists()
    made.join()
    monkeypatch.setattr(durable, "SHOWS_SECONDS", 0.0)
    durable.wait_for(tmp_path / "never")


@pytest.mark.slow
def test_every_other_process_waits_for_what_the_first_has_made(trained: tuple, home: Path):
    said = "import os; from ddpm_cli.io import durable\n" + (
        "durable.wait_for = lambda *paths: print(f'waits {os.environ[\"RANK\"]} ' + ' '.join(p.name for p in paths))\n"
    )
    arguments = [f"ckpt={trained[0]}", "n=4", "out=out", "batch_size=2", "save_trajectory=true"]
    done = run_ranks("sample", *arguments, cwd=home, code=said + MAIN.format("sample"))
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("waits")) == [
        "waits 0 trajectory_000000.npy trajectory_000002.npy",
        "waits 1 ema.safetensors",
        "waits 1 pixels done",
        "waits 1 step_00000004",
    ]
    done = run_ranks("train", f"resume={trained[0]}", "trainer.steps=5", cwd=home, code=said + MAIN.format("train"))
    assert done.returncode == 0, done.stderr
    (waits,) = (line for line in done.stdout.splitlines() if line.startswith("waits"))
    assert waits.startswith("waits 1 ")
    assert {"ema.safetensors", "training.safetensors"} <= set(waits.split())


def linked(directory: Path, target: Path) -> Path:
    """As `cp -al` copies a directory."""
    return shutil.copytree(directory, target, copy_function=os.link)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_linked_copy_of_a_run_is_a_run_of_its_own(trained: tuple, home: Path):
    run = trained[0]
    copy = linked(run, run.with_name("copy"))
    before = contents(run)
    done = train(f"resume={copy}", "trainer.steps=6", cwd=home)
    assert done.returncode == 0, done.stderr
    assert contents(run) == before
    lines = (copy / run_dir.METRICS_FILE).read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["step"] == 6
    assert len(lines) == len(before[run_dir.METRICS_FILE].splitlines()) + 1


def test_a_linked_copy_of_unfinished_images_is_drawn_on_its_own(tmp_path: Path):
    layout = {"batch_size": 2, "shape": (4, 1, 1, 1)}
    begun = tmp_path / "begun"
    begun.mkdir()
    with image_store.locked(begun):
        image_store.begin(begun, {}, **layout)
        with ImageStore(begun, **layout) as store:
            store.keep(range(2), torch.ones(2, 1, 1, 1, dtype=torch.uint8))
    copy = linked(begun, tmp_path / "copy")
    before = contents(begun)
    with image_store.locked(copy):
        image_store.begin(copy, {}, **layout)
        with ImageStore(copy, **layout) as store:
            store.keep(range(2, 4), torch.ones(2, 1, 1, 1, dtype=torch.uint8))
            store.flush()
            assert store.missing == []
    assert contents(begun) == before
    with ImageStore(begun, **layout) as store:
        assert store.missing == [range(2, 4)]


def test_a_linked_lock_is_of_one_directory(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "beside").touch()
    first = hold(run / ".lock")
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    copy, third = linked(run, tmp_path / "copy"), linked(run, tmp_path / "third")
    with pytest.raises(BlockingIOError, match="is held by process"):
        lock.acquire(run / ".lock")
    release = lock.acquire(copy / ".lock")
    with pytest.raises(BlockingIOError, match=f"is held by process {os.getpid()} on"):
        lock.acquire(copy / ".lock")
    release()
    first.kill()
    first.wait()
    release = lock.acquire(third / ".lock")
    lock.acquire(run / ".lock")()
    release()
