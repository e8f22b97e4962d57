"""Which signals stop a command, which end it at once, and which change nothing: sent by the process to itself."""

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from commands import TINY, only, run, start

LONG = [*TINY, "trainer.steps=100000", "trainer.checkpoint_every=0", "trainer.preview_every=0"]
SEND = """
import os, signal, sys
from ddpm_cli.runtime.signals import Stop
stop = Stop()
if "ignored" in sys.argv: signal.signal(signal.SIGHUP, signal.SIG_IGN)
stop.listen()
stop.lost = lambda: "lost: all"
stop.finish(7) if "finished" in sys.argv else stop.defer("saving")
for name in sys.argv[1].split():
    os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
print(stop.signal)
"""


@pytest.mark.parametrize(
    ("names", "status"),
    [
        ("HUP HUP", 0),  # from the shell and from the kernel
        ("XCPU XCPU XCPU", 0),  # every second
        ("TERM HUP", 0),  # systemd
        ("USR1 TERM", 0),  # Slurm
        ("HUP INT", 0),
        ("TERM TERM", -signal.SIGTERM),
        ("USR1 TERM TERM", -signal.SIGTERM),
        ("HUP INT INT", -signal.SIGINT),
    ],
)
def test_a_signal_again_ends_at_once_only_where_somebody_means_it(names: str, status: int, tmp_path: Path):
    done = run("train", names, code=SEND, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    first, *_, last = (f"SIG{name}" for name in names.split())
    assert done.stderr.startswith(f"\n{first}: saving")
    assert (f"\n{last} again: ends at once; lost: all\n" in done.stderr) == (status != 0)
    assert done.stdout == ("" if status else f"{first}\n")


@pytest.mark.parametrize(("names", "status"), [("TERM TERM TERM", 0), ("INT INT", 0), ("INT INT INT", -signal.SIGINT)])
def test_a_launcher_may_send_again_what_has_come_already(names: str, status: int, tmp_path: Path):
    assert run("train", names, code=SEND, cwd=tmp_path, SUBMITIT_EXECUTOR="x").returncode == status


def test_what_nohup_ignores_is_ignored(tmp_path: Path):
    done = run("train", "HUP", "ignored", code=SEND, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


def test_a_finished_command_is_not_to_be_disturbed(tmp_path: Path):
    done = run("train", "TERM TERM HUP INT", "finished", code=SEND, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM\n", "")
    impatient = run("train", "INT INT", "finished", code=SEND, cwd=tmp_path)
    assert (impatient.returncode, impatient.stderr) == (7, ""), "ends at once, with the status it was to have"


def test_a_signal_at_the_very_end_does_not_change_the_exit_status(tmp_path: Path):
    """Python takes our answers away before it has torn everything down; what is registered first comes last."""
    late = "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))"
    assert run("train", "HUP", "finished", code=f"{late}\n{SEND}", cwd=tmp_path).returncode == 0


ON_A_TERMINAL = """
import fcntl, os, sys, termios
terminal = os.open(sys.argv.pop(1), os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for number in (0, 1, 2): os.dup2(terminal, number)
from ddpm_cli.train import main; main()
"""


def test_a_terminal_that_is_gone_ends_the_run_saved(tmp_path: Path):
    """A dropped connection: SIGHUP, and no more a place to say anything."""
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start("train", os.ttyname(theirs), *LONG, "name=x", code=ON_A_TERMINAL, cwd=tmp_path)
    said = b""
    while b" left, loss " not in said:
        assert select.select([ours], [], [], 60)[0], said
        said += os.read(ours, 1000)
    os.close(theirs)
    os.close(ours)
    assert process.wait(60) == 75
    directory = only(tmp_path / "outputs" / "x")
    step = int(only(directory / "checkpoints").name.removeprefix("step_"))
    log = (directory / "train.log").read_text()
    assert "SIGHUP: saving after this step\n" in log
    assert f"SIGHUP: stopped at step {step:,} and saved." in log
    assert "Traceback" not in log


def _wait_for_step(name: Path) -> None:
    until = time.monotonic() + 60
    while not list(name.glob("*/metrics.jsonl")) or not (only(name) / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_under_nohup_the_run_goes_on(tmp_path: Path):
    command = ["nohup", sys.executable, "-m", "ddpm_cli.train", *LONG, "name=x"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True)
    try:
        _wait_for_step(tmp_path / "outputs" / "x")
        process.send_signal(signal.SIGHUP)
        time.sleep(2)
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 75
    finally:
        process.kill()
    assert "SIGHUP" not in (tmp_path / "said").read_text()


@pytest.mark.slow
def test_torchrun_hands_on_what_becomes_of_a_terminal(tmp_path: Path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "ddpm_cli.train", *LONG, "name=x"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, env=environment, process_group=0)
    try:
        _wait_for_step(tmp_path / "outputs" / "x")
        os.killpg(process.pid, signal.SIGHUP)  # as from a shell
        process.send_signal(signal.SIGHUP)
        process.wait(60)
    finally:
        process.kill()
    directory = only(tmp_path / "outputs" / "x")
    assert only(directory / "checkpoints")
    assert "and saved" in (directory / "train.log").read_text()
