"""Two processes train as one: the same stream, the same numbers, one run directory, one answer to a signal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import TINY, TINY_RUN, only, train
from safetensors.torch import load_file

from ddpm_cli.data.batches import Batches
from ddpm_cli.data.sources import digits

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "ddpm_cli.train"]


def begin(*arguments: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*TORCHRUN, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def test_two_ranks_do_what_one_does(tmp_path: Path):
    """Up to the order in which float32 sums are made: losses, gradient norms and weights agree."""
    options = [
        *TINY_RUN,
        "trainer.accumulate=2",
        "data.num_classes=10",
        "variance=learned_range",
        "loss=hybrid",
        "prediction=v",
        "ema.posthoc=[0.1]",
        "timesteps=loss_aware",
        "timesteps.history=1",
        "schedule.timesteps=6",  # each is seen in the first two steps, and losses decide what the last two draw
    ]
    together = begin(*options, "name=two", cwd=tmp_path)
    out, error = together.communicate(timeout=120)
    assert together.returncode == 0, error
    assert out.count("device   cpu, fp32, 2 processes") == 1, "one of them speaks"
    alone = train(*options, "name=one", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    one, two = (only(tmp_path / "outputs" / name) for name in ("one", "two"))
    for line, other in zip(*([*map(json.loads, (run / "metrics.jsonl").open())] for run in (one, two)), strict=True):
        assert line["loss/mean"] == pytest.approx(other["loss/mean"], rel=1e-5)
        assert line["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-4)
    for kept in ("checkpoints/step_00000004/ema", "checkpoints/step_00000004/training", "averages/step_00000004"):
        tensors, others = (load_file(run / f"{kept}.safetensors") for run in (one, two))
        assert tensors.keys() == others.keys()
        for name, value in tensors.items():
            torch.testing.assert_close(
                others[name], value, rtol=1e-3, atol=1e-5, msg=lambda says, name=name: f"{name}: {says}"
            )
    first = load_file(one / "checkpoints" / "step_00000002" / "training.safetensors")
    assert (first["timesteps.seen"] > 0).all(), "from here on t is not uniform"
    # What two have saved one can go on with, and the other way round.
    resumed = train(f"resume={two}", "trainer.steps=6", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert begin(f"resume={one}", "trainer.steps=6", cwd=tmp_path).wait(timeout=120) == 0


def test_a_signal_to_one_rank_stops_both_saved(tmp_path: Path):
    process = begin(*TINY, "trainer.steps=100000", "trainer.checkpoint_every=0", "name=x", cwd=tmp_path)
    assert process.stdout is not None
    assert any("step 4/" in line for line in process.stdout)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {int(Path(f"/proc/{pid}/environ").read_text().split("\0RANK=")[1][0]): int(pid) for pid in children}
    os.kill(ranks[1], signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert "a signal to another process: stopped at step" in error
    assert "exitcode  : 75" in error.replace("exitcode:", "exitcode  :")
    checkpoint = only(only(tmp_path / "outputs" / "x") / "checkpoints")
    assert f"ddpm-train resume={checkpoint.parents[1].relative_to(tmp_path)}" in error


def test_a_batch_that_does_not_divide_is_refused_in_one_message(tmp_path: Path):
    process = begin(*TINY_RUN, "trainer.batch_size=9", cwd=tmp_path)
    _, error = process.communicate(timeout=120)
    says = "ddpm-train: trainer: batch_size 9 cannot be divided among 2 processes with accumulate 1"
    assert error.count(says) == 1
    assert not (tmp_path / "outputs").exists()


def test_the_parts_of_the_ranks_make_up_the_batch():
    images = digits(flip=True)
    whole = Batches(images, 12, seed=3)
    parts = [Batches(images, 12, seed=3, rank=rank, ranks=3) for rank in range(3)]
    for step in (0, 149, 150):
        assert torch.equal(torch.cat([part.load(step) for part in parts]), whole.load(step))
    streams = [part.prefetch(7) for part in (whole, *parts)]
    (pixels, flips, _), *others = (next(stream) for stream in streams)
    assert torch.equal(torch.cat([other[0] for other in others]), pixels)
    assert torch.equal(torch.cat([other[1] for other in others]), flips)
    with pytest.raises(ValueError, match="batch_size 10 cannot be divided among 3 processes"):
        Batches(images, 10, seed=0, ranks=3)
