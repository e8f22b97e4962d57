"""What is seen of a run while it goes: the bar of a terminal, and where each line of metrics.jsonl stands."""

import fcntl
import json
import os
import re
import select
import struct
import termios
import time
from pathlib import Path

import numpy as np
from commands import TINY, only, start, train
from test_signals import ON_A_TERMINAL

from ddpm_cli.data.datasets import digits
from ddpm_cli.data.loader import BatchLoader

RUN = [*TINY, "trainer.preview_every=0", "trainer.batch_size=600", "data.image_size=8"]


# Of so short a run nothing would be said otherwise while there is a bar.
AT_ONCE = "from ddpm_cli.training import length; length.MEASURED_SECONDS = 0"


def on_a_terminal(columns: int, *arguments: str, cwd: Path) -> str:
    """What `ddpm-train` writes to a terminal of so many columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = start("train", os.ttyname(theirs), *arguments, code=f"{AT_ONCE}\n{ON_A_TERMINAL}", cwd=cwd)
    said, until = b"", time.monotonic() + 90
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        assert time.monotonic() < until, said
        if select.select([ours], [], [], 0.1)[0]:
            said += os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    assert process.wait(60) == 0, said
    return said.decode()


def test_the_bar_says_epoch_speed_and_time_left_and_fits_eighty_columns(tmp_path: Path):
    said = on_a_terminal(80, *RUN, "trainer.steps=8", "name=x", cwd=tmp_path)
    bars = [line for line in re.split(r"[\r\n]+", said) if "img/s" in line]
    assert re.search(r"^ +0%\|.*\| 0/8, epoch 0\.0/2\.7, \? img/s, \? left", bars[0]), bars[0]
    assert re.search(r"^100%\|█+\| 8/8, epoch 2\.7/2\.7, [\d,]+ img/s, 00:00 left, loss \d\.\d{4}$", bars[-1]), bars[-1]
    assert max(map(len, bars)) <= 80
    assert "step 2/8" not in said, "what the bar shows is not said beside it"
    assert re.search(r"\r +\rlength   [^\r]*\r\n\r", said), "the bar is away while something is said"
    resumed = on_a_terminal(80, *RUN, "trainer.steps=12", "name=x", cwd=tmp_path)
    assert re.search(r"\b67%\|.*\| 8/12, epoch 2\.7/4\.0, ", resumed), resumed


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_line_says_when_and_where_it_stands_also_after_a_resume(tmp_path: Path):
    begun = time.time()
    for steps in (4, 6):
        done = train(*RUN, f"trainer.steps={steps}", "name=x", "data.holdout=597", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    found = lines(only(tmp_path / "outputs" / "x"))
    assert [line["step"] for line in found] == [2, 4, 6]
    assert [line["images"] for line in found] == [1200, 2400, 3600]
    assert [line["epoch"] for line in found] == [1.0, 2.0, 3.0], "of 1,797 - 597 images"
    times = [begun, *(line["time/unix"] for line in found), time.time()]
    assert times == sorted(times)


def test_with_overfit_batches_an_epoch_is_once_through_these():
    loader = BatchLoader(digits(image_size=8), 10, seed=0, repeat=3)
    seen = np.concatenate([loader.indices(step) for step in range(12)])
    assert len(np.unique(seen)) == loader.epoch_images == 30
    assert BatchLoader(digits(image_size=8), 1000, seed=0, repeat=3).epoch_images == 1797
