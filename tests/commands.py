"""The commands as a user runs them, in subprocesses, on a network of a second."""

import os
import re
import subprocess
import sys
from pathlib import Path

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


def run(
    program: str, *arguments: str, cwd: Path, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"ddpm_cli.{program}", *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


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
