"""debug=...: each is values of real keys; what it shows is there to be seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import TINY, assert_one_message, only, train

from ddpm_cli import load
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.data.datasets import digits
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.io.images import from_uint8
from ddpm_cli.training.trainer_config import PROFILE_FROM

SMALL = [*TINY[:4], "schedule.timesteps=20"]


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("repeat", [1, 3])
def test_batches_that_are_repeated_hold_the_same_images(repeat: int):
    images = digits(image_size=16)
    loader, whole = BatchLoader(images, 8, seed=4, repeat=repeat), BatchLoader(images, 8, seed=4)
    for step in range(7):
        assert np.array_equal(loader.indices(step), whole.indices(step % repeat))
    parts = [BatchLoader(images, 8, seed=4, repeat=repeat, rank=rank, world_size=2).batch(6).indices for rank in (0, 1)]
    assert np.array_equal(torch.cat(parts), loader.indices(6))


@pytest.mark.slow
def test_overfit_learns_one_batch_by_heart(tmp_path: Path):
    """It is far better on these images than on others; a run that goes on to others is not."""
    command = [
        *SMALL,
        "trainer.steps=250",
        "trainer.log_every=50",
        "trainer.preview_every=0",
        "trainer.lr_decay=constant",
    ]
    ratio = {}
    for name, options in (("debug", ["debug=overfit"]), ("plain", ["name=plain"])):
        done = train(*command, *options, "optimizer.lr=3e-3", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("overfit  one batch again and again, of 1,797 images" in done.stdout) is (name == "debug")
        ratio[name] = loss_on_the_batch_over_others(only(tmp_path / "outputs" / name))
    assert ratio["debug"] < 0.8 * ratio["plain"], ratio


def loss_on_the_batch_over_others(run: Path) -> float:
    """How the loss on the first batch's images compares with that on as many of others, at the same t and noise."""
    ddpm, *_ = load(run, weights="model")
    pixels = torch.from_numpy(np.asarray(digits(image_size=16).pixels))
    loader = BatchLoader(digits(image_size=16), 8, seed=0)
    source = torch.Generator().manual_seed(1)
    t = torch.randint(20, (400,), generator=source)
    noise = torch.randn((400, 1, 16, 16), generator=source)
    seen, others = (
        np.tile(np.concatenate([loader.indices(n) for n in steps]), 400)[:400] for steps in ([0], range(90, 140))
    )
    with torch.no_grad():
        on_seen, on_others = (ddpm.losses(from_uint8(pixels[indices]), t, noise).mean() for indices in (seen, others))
    return float(on_seen / on_others)


@pytest.mark.slow
def test_limit_does_everything_once_and_is_begun_anew_each_time(tmp_path: Path):
    for count in (1, 2):
        done = train(*SMALL, "debug=limit", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        runs = sorted(path for path in (tmp_path / "outputs" / "debug").iterdir() if not path.name.startswith("."))
        assert len(runs) == count
    made = {path.relative_to(runs[-1]).as_posix() for path in runs[-1].rglob("*")}
    assert made > {
        "best.json", "checkpoints/step_00000002", "checkpoints/step_00000004", "data.png", "previews/step_00000004.png",
    }  # fmt: skip
    assert any("eval/fd_pixels" in line for line in lines(runs[-1]))


def test_the_profiler_leaves_a_trace_of_the_steps_that_were_asked_for(tmp_path: Path):
    done = train(*SMALL, "debug=profiler", "trainer.profile_steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("profiler") == 0, "nothing of the profiler's own"
    run = only(tmp_path / "outputs" / "debug")
    assert f"profile  {(run / 'profile' / 'trace.json').relative_to(tmp_path)}, for chrome://tracing" in done.stdout
    events = json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{PROFILE_FROM + step}" for step in range(2)}
    assert {"aten::convolution", "aten::group_norm", "Optimizer.step#AdamW.step"} <= set(names)
    convolutions = names.count("aten::convolution")
    assert convolutions > 0
    assert convolutions % 2 == 0, "both steps do the same"
    assert "aten::convolution_backward" in (run / "profile" / "operations.txt").read_text()


def test_what_is_profiled_is_trained_as_it_would_be(tmp_path: Path):
    command = [*SMALL, "debug=default", "trainer.steps=13"]
    for options in ([], ["trainer.profile_steps=2"]):
        assert train(*command, *options, cwd=tmp_path).returncode == 0
    one, other = (
        [line["loss/mean"] for line in lines(run)]
        for run in (tmp_path / "outputs" / "debug").iterdir()
        if not run.name.startswith(".")
    )
    assert len(one) == 13
    assert one == other


@pytest.mark.slow
def test_a_run_may_be_profiled_when_it_is_resumed(home: Path, trained):
    directory, _ = trained
    done = train(f"resume={directory}", "trainer.steps=16", "trainer.profile_steps=1", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (directory / "profile" / "trace.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["debug=nothing"], "debug=nothing: no such option; choose from default, limit, overfit, profiler"),
        (["trainer.profile_steps=-1"], "trainer: profile_steps must not be negative, got -1"),
        (["trainer.overfit_batches=-1"], "trainer: overfit_batches must not be negative, got -1"),
        (["trainer.profile_steps=5"], "trainer: profile_steps 5 follow the first 10 steps; steps is 4"),
    ],
)
def test_what_cannot_be_is_one_message(arguments: list[str], says: str, tmp_path: Path):
    assert_one_message(train(*TINY, "trainer.steps=4", *arguments, cwd=tmp_path), "train", says)
    assert list(tmp_path.iterdir()) == []


def test_each_is_values_of_keys_that_are_there():
    trainer = yaml.safe_load((configs_directory() / "trainer" / "default.yaml").read_text())
    for file in (configs_directory() / "debug").glob("*.yaml"):
        found = yaml.safe_load(file.read_text())
        assert found["trainer"].keys() <= trainer.keys()
        assert (found["name"], found["resume"]) == ("debug", None), "never a run that is there"
