"""Two processes train as one: the same stream, the same numbers, one run directory, one answer to a signal."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, TINY_RUN, only, run_ranks, start_ranks, train
from PIL import Image
from safetensors.torch import load_file

from ddpm_cli.data.datasets import digits
from ddpm_cli.data.loader import BatchLoader

FEW_SHAPES = ["model.channel_mults=[1]", "model.attention_resolutions=[16]"]  # torch plans the sharding of each shape
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def train_on_two(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    return run_ranks("train", *arguments, cwd=cwd, **options)


@pytest.mark.parametrize("shard", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_two_ranks_do_what_one_does(shard: str, tmp_path: Path):
    """Up to the order in which float32 sums are made: losses, gradient norms, weights and previews agree."""
    options = [
        *TINY_RUN,
        "trainer.accumulate=2",
        "trainer.preview_images=5",  # of which one process draws 3 and the other 2
        "data.num_classes=10",
        "variance=learned_range",
        "loss=hybrid",
        "prediction=v",
        "ema.decays=[0.99,0.5]",
        "ema.posthoc=[0.1]",
        "timestep_sampler=loss_second_moment",
        "timestep_sampler.history=1",
        "schedule.timesteps=6",  # each is seen in the first two steps, and losses decide what the last two draw
    ]
    if shard == "true":
        options += FEW_SHAPES
    together = train_on_two(*options, "name=two", f"trainer.fsdp={shard}", cwd=tmp_path)
    assert together.returncode == 0, together.stderr
    sharded = ", sharded" if shard == "true" else ""
    assert together.stdout.count(f"device   cpu, fp32, 2 processes{sharded}\n") == 1, "one of them speaks"
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
    previews = [Image.open(run / "previews" / "step_00000004.png").convert("L") for run in (one, two)]
    ours, theirs = (np.asarray(preview).astype(int) for preview in previews)
    assert np.abs(ours - theirs).max() <= 1
    first = load_file(one / "checkpoints" / "step_00000002" / "training.safetensors")
    assert (first["timesteps.seen"] > 0).all(), "from here on t is not uniform"
    # What two have saved one can go on with, and the other way round.
    resumed = train(f"resume={two}", "trainer.steps=6", "trainer.fsdp=false", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    other_way = train_on_two(f"resume={one}", "trainer.steps=6", f"trainer.fsdp={shard}", cwd=tmp_path)
    assert other_way.returncode == 0, other_way.stderr
    ours, theirs = (load_file(run / "checkpoints" / "step_00000006" / "ema.safetensors") for run in (one, two))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("shard", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_ranks_that_look_late_go_back_to_the_step_that_was_not_finite(shard: str, tmp_path: Path):
    """As on GPUs: one rank's gradient is not finite in a step, which all of them let pass, and find out steps later."""
    code = (
        "import os, sys\n"
        "from ddpm_cli.training.trainer import Trainer\n"
        "make = Trainer.__init__\n"
        "def faulty(self, *args, **options):\n"
        "    make(self, *args, **options)\n"
        "    self.defers_finite_check = 'LATE' in os.environ\n"
        "    ill = lambda: self.world.rank == 1 and self.step == 2\n"
        "    spoil = lambda gradient: gradient * (float('inf') if ill() else 1.0)\n"
        "    self.ddpm.model.register_forward_hook(lambda model, x, out: out.register_hook(spoil) and None)\n"
        "Trainer.__init__ = faulty\n"
        "from ddpm_cli.train import main; sys.exit(main())"
    )
    options = [*TINY, "trainer.steps=6", "trainer.preview_every=0", "trainer.log_every=6", f"trainer.fsdp={shard}"]
    messages, kept = [], []
    for name, environment in (("at_once", {}), ("late", {"LATE": "1"})):
        done = train_on_two(*options, f"name={name}", cwd=tmp_path, code=code, **environment)
        assert done.returncode != 0
        (message,) = (line for line in done.stderr.splitlines() if "is not finite" in line)
        messages.append(message.partition(": ddpm-train resume=")[0])
        run = only(tmp_path / "outputs" / name)
        kept.append(load_file(run / "checkpoints" / "step_00000002" / "training.safetensors"))
    assert messages[0] == messages[1]
    assert "the gradient at step 2 is not finite" in messages[1]
    assert "resuming replays exactly this step" in messages[1]
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


@pytest.mark.slow
def test_shards_resume_bit_for_bit(tmp_path: Path):
    options = [*TINY_RUN, "trainer.fsdp=true", "trainer.preview_every=0", "model.dropout=0.2"]
    options += FEW_SHAPES
    straight = train_on_two(*options, "name=straight", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    directories = [only(tmp_path / "outputs" / "straight"), tmp_path / "stopped"]
    shutil.copytree(*directories)
    shutil.rmtree(directories[1] / "checkpoints" / "step_00000004")
    resumed = train_on_two(f"resume={directories[1]}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed  at step 2" in resumed.stdout
    for kept in ("ema", "training"):
        paths = [directory / "checkpoints" / "step_00000004" / f"{kept}.safetensors" for directory in directories]
        ours, theirs = map(load_file, paths)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_preview_leaves_an_average_in_shards(tmp_path: Path):
    """Also where no checkpoint, for which everything is put together and taken apart, follows it at once."""
    options = [*TINY_RUN, *FEW_SHAPES, "trainer.fsdp=true", "trainer.steps=3", "trainer.preview_every=1"]
    done = train_on_two(*options, "trainer.checkpoint_every=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_shards_are_smaller_than_the_whole(tmp_path: Path):
    """Each of two processes holds about half of parameters, moments and averages; cuDNN is tuned as for a whole one."""
    code = (
        "import torch\n"
        "from ddpm_cli.training.trainer import Trainer\n"
        "from ddpm_cli.distributed.fsdp import local_tensors\n"
        "step = Trainer.train_step\n"
        "def counting(self, batch):\n"
        "    result = step(self, batch)\n"
        "    kept = [*self.ddpm.parameters(), *self.ema.model.parameters()]\n"
        "    kept += [parameter.grad for parameter in self.ddpm.parameters()]\n"
        "    kept += [m for state in self.optimizer.state.values() for n, m in state.items() if n != 'step']\n"
        "    share = sum(part.numel() for part in local_tensors(kept)) / sum(whole.numel() for whole in kept)\n"
        "    print(f'share {share:.3f}', flush=True)\n"
        "    assert torch.backends.cudnn.benchmark\n"
        "    return result\n"
        "Trainer.train_step = counting\n"
        "from ddpm_cli.train import main; main()"
    )
    options = [*TINY_RUN, "trainer.fsdp=true", "trainer.steps=1", "trainer.preview_every=0"]
    done = train_on_two(*options, cwd=tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    shares = [float(line.removeprefix("share ")) for line in done.stdout.splitlines() if line.startswith("share ")]
    assert len(shares) == 2
    assert all(0.45 < share < 0.55 for share in shares)


def test_a_shard_of_one_process_is_refused(tmp_path: Path):
    done = train(*TINY_RUN, "trainer.fsdp=true", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "ddpm-train: trainer: fsdp=true has an effect only with several processes, started by torchrun\n"
    )


def test_a_signal_to_one_rank_stops_both_saved(tmp_path: Path):
    options = [*TINY, "trainer.steps=100000", "trainer.checkpoint_every=0", "name=x"]
    ranks = start_ranks("train", *options, cwd=tmp_path)
    assert ranks[0].stdout is not None
    assert any("step 4/" in line for line in ranks[0].stdout)
    ranks[1].terminate()
    (_, error), _ = (process.communicate(timeout=60) for process in ranks)
    assert [process.returncode for process in ranks] == [75, 75]
    assert "a signal to another process: stopped at step" in error
    checkpoint = only(only(tmp_path / "outputs" / "x") / "checkpoints")
    assert f"ddpm-train resume={checkpoint.parents[1].relative_to(tmp_path)}" in error


def begin_torchrun(*arguments: str, cwd: Path) -> tuple[subprocess.Popen[str], Callable[[], dict[int, int]]]:
    """torchrun of `ddpm-train`, and what finds its processes, by rank."""
    process = subprocess.Popen(
        [*TORCHRUN, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )

    def ranks() -> dict[int, int]:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return {int(Path(f"/proc/{pid}/environ").read_text().split("\0RANK=")[1][0]): int(pid) for pid in children}

    return process, ranks


@pytest.mark.slow
def test_a_signal_to_one_rank_of_torchrun_s_stops_both_saved(tmp_path: Path):
    options = [*TINY, "trainer.steps=100000", "trainer.checkpoint_every=0", "name=x"]
    process, ranks = begin_torchrun("-m", "ddpm_cli.train", *options, cwd=tmp_path)
    assert process.stdout is not None
    assert any("step 4/" in line for line in process.stdout)
    os.kill(ranks()[1], signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert "a signal to another process: stopped at step" in error
    assert "exitcode  : 75" in error.replace("exitcode:", "exitcode  :")
    checkpoint = only(only(tmp_path / "outputs" / "x") / "checkpoints")
    assert f"ddpm-train resume={checkpoint.parents[1].relative_to(tmp_path)}" in error


@pytest.mark.slow
def test_torchrun_starts_a_run_again_of_which_it_has_lost_a_rank(tmp_path: Path):
    """In the directory that hydra.run.dir says, from the newest checkpoint."""
    options = [
        *TINY,
        "trainer.preview_every=0",
        "trainer.steps=120",
        "trainer.checkpoint_every=20",
        "hydra.run.dir=a/b",
    ]
    process, ranks = begin_torchrun("--max-restarts=1", "-m", "ddpm_cli.train", *options, cwd=tmp_path)
    assert process.stdout is not None
    assert any("step 24/" in line for line in process.stdout)
    os.kill(ranks()[1], signal.SIGKILL)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert re.search(r"^resumed  at step (2\d|[3-9]\d|1\d\d)$", out, re.MULTILINE)
    assert (tmp_path / "a" / "b" / "checkpoints" / "step_00000120").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_ranks_of_torchrun_agree_on_a_directory_that_the_time_names(tmp_path: Path):
    options = [*TINY_RUN, "hydra.run.dir='runs/${now:%H-%M-%S-%f}'"]
    process, _ = begin_torchrun("-m", "ddpm_cli.train", *options, cwd=tmp_path)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert (only(tmp_path / "runs") / "checkpoints" / "step_00000004").is_dir()


def test_a_batch_that_does_not_divide_is_refused_in_one_message(tmp_path: Path):
    done = train_on_two(*TINY_RUN, "trainer.batch_size=9", cwd=tmp_path)
    says = "ddpm-train: trainer: batch_size 9 cannot be divided among 2 processes with accumulate 1"
    assert done.stderr.count(says) == 1
    assert not (tmp_path / "outputs").exists()


def test_the_parts_of_the_ranks_make_up_the_batch():
    images = digits(flip="horizontal")
    whole = BatchLoader(images, 12, seed=3)
    parts = [BatchLoader(images, 12, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for step in (0, 149, 150):
        assert torch.equal(torch.cat([part.batch(step).pixels for part in parts]), whole.batch(step).pixels)
    streams = [part.prefetch(7) for part in (whole, *parts)]
    (indices, pixels, flips, _), *others = (next(stream) for stream in streams)
    for i, expected in enumerate((indices, pixels, flips)):
        assert torch.equal(torch.cat([other[i] for other in others]), expected)
    with pytest.raises(ValueError, match="batch_size 10 cannot be divided among 3 processes"):
        BatchLoader(images, 10, seed=0, world_size=3)
