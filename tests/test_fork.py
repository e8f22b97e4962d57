"""No run is a dead end: resumed from an earlier checkpoint, taken further, begun anew from another's state."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import TINY, TINY_RUN, assert_one_message, only, start, train
from safetensors.torch import load_file

LAST = "checkpoints/step_00000004"


def state(run: Path, step: int, file: str = "training.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / file)


def forked(home: Path, name: str = "f") -> Path:
    return only(home / "outputs" / name)


def test_a_checkpoint_that_is_named_is_resumed_and_newer_ones_are_set_aside(home: Path, trained):
    directory, _ = trained
    before = state(directory, 4)
    done = train(f"resume={directory / 'checkpoints' / 'step_00000002'}", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "step_00000004 is newer than step_00000002; set aside as newer_step_00000004" in done.stdout
    assert "resumed  at step 2" in done.stdout
    after = state(directory, 4)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (directory / "checkpoints" / "newer_step_00000004").is_dir()
    lines = [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert lines == [2, 4]


def test_a_checkpoint_that_is_named_must_be_whole(home: Path, trained):
    directory, _ = trained
    checkpoint = directory / "checkpoints" / "step_00000002"
    (checkpoint / "ema.safetensors").write_bytes(b"")
    assert_one_message(train(f"resume={checkpoint}", cwd=home), "train", "ema.safetensors is damaged")
    assert (directory / LAST).is_dir()


def test_a_fork_begins_with_everything_and_other_settings(home: Path, trained):
    directory, _ = trained
    changes = ["optimizer.lr=0.5", "trainer.steps=6", "trainer.batch_size=4", "trainer.grad_clip=null", "seed=7"]
    done = train(f"fork={directory}", *changes, "optimizer.weight_decay=0.01", "name=f", cwd=home)
    assert done.returncode == 0, done.stderr
    new = forked(home)
    assert f"forked from {directory / LAST}" in done.stdout
    assert re.search(r"optimizer\.lr: was 0\.\d+, now 0\.5", done.stdout)
    text = (new / "config.yaml").read_text()
    assert text.startswith(
        f"# forked from {(directory / LAST).absolute()}\n#   name: was None, now 'f'\n#   optimizer.lr"
    )
    config = yaml.safe_load(text)
    assert (config["optimizer"]["lr"], config["seed"], config["trainer"]["batch_size"]) == (0.5, 7, 4)
    assert [path.name for path in sorted((new / "checkpoints").iterdir())] == ["step_00000006"]
    assert {json.loads(line)["step"] for line in (new / "metrics.jsonl").read_text().splitlines()} == {6}
    old = state(directory, 4)
    assert state(new, 6)["counter.step"] == 6
    assert state(new, 6)["counter.ema_updates"] == old["counter.ema_updates"] + 2
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["step_00000002", "step_00000004"]


def test_a_fork_that_changes_nothing_ends_where_the_run_ends(home: Path, trained):
    """Another route to the same numbers."""
    directory, _ = trained
    done = train(f"fork={directory}/checkpoints/step_00000002", "name=f", cwd=home)
    assert done.returncode == 0, done.stderr
    for file in ("training.safetensors", "ema.safetensors"):
        old, new = state(directory, 4, file), state(forked(home), 4, file)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_fork_of_that_name_is_resumed_by_the_same_command(home: Path, trained):
    directory, _ = trained
    command = [f"fork={directory}", "optimizer.lr=0.01", "name=f", "trainer.checkpoint_every=0"]
    process = start("train", *command, "trainer.steps=100000", cwd=home)
    assert process.stdout is not None
    next(line for line in process.stdout if "step 10/" in line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    step = int(only(forked(home) / "checkpoints").name.removeprefix("step_"))
    again = train(*command, f"trainer.steps={step + 2}", cwd=home)
    assert again.returncode == 0, again.stderr
    assert f"resumed  at step {step}" in again.stdout
    other = shutil.copytree(directory, home / "other")
    (other / "run.json").unlink()
    assert_one_message(train(f"fork={other}", *command[1:], cwd=home), "train", "name: .* was not forked from")


def test_another_optimizer_begins_its_moments_anew(home: Path, trained):
    directory, _ = trained
    done = train(f"fork={directory}", "optimizer=adam", "trainer.steps=6", "name=f", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "optimizer: was 'adamw', now 'adam'" in done.stdout
    moments = {name: value for name, value in state(forked(home), 6).items() if name.startswith("optimizer.")}
    steps = {value.item() for name, value in moments.items() if name.endswith(".step")}
    assert steps == {2}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trainer.stps=6"], r"trainer.stps: no such option \(did you mean 'steps'\?\)"),
        (["nothing.x=6"], "nothing.x: no such option"),
        (["model.base_channels=16", "trainer.steps=6"], "fork: .*"),
        ([], "has done 4 steps; add trainer.steps=N for more"),
        (["resume=outputs"], "leave out either"),
        (["trainer.steps=6", "optimizer.lr=abc"], "optimizer.lr: expected a number"),
    ],
)
def test_a_fork_that_cannot_be_is_one_message(arguments: list[str], says: str, home: Path, trained):
    directory, _ = trained
    before = sorted(home.rglob("*"))
    assert_one_message(train(f"fork={directory}", *arguments, "name=f", cwd=home), "train", says)
    assert sorted(home.rglob("*")) == before, "nothing was begun"


def test_what_is_refused_names_the_way_on(home: Path, trained):
    directory, _ = trained
    refused = train(f"resume={directory}", "optimizer.lr=0.5", "trainer.steps=6", cwd=home)
    assert_one_message(refused, "train", "fork= instead of resume=")


def test_a_step_that_is_not_finite_names_the_way_on(tmp_path: Path):
    done = train(*TINY, "trainer.steps=9", "optimizer.lr=1e18", "trainer.grad_clip=null", "name=x", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    said = re.search(r"ddpm-train (fork=\S+) KEY=VALUE", done.stderr)
    assert said is not None, done.stderr
    again = train(said[1], "optimizer.lr=1e-4", "name=y", cwd=tmp_path)
    # The weights that the large steps have left may be beyond repair; but the run has begun with another rate.
    assert "optimizer.lr: was 1e+18, now 0.0001" in again.stdout, again.stderr


def test_going_further_does_not_raise_the_rate_without_a_word(tmp_path: Path):
    cosine = [*TINY, "trainer.lr_decay=cosine", "trainer.preview_every=0", "name=x", "optimizer.lr=1e-3"]
    assert train(*cosine, "trainer.steps=4", cwd=tmp_path).returncode == 0
    (run,) = (tmp_path / "outputs" / "x").glob("2*")
    refused = train(f"resume={run}", "trainer.steps=6", cwd=tmp_path)
    assert refused.returncode == 2
    assert "come down to 0.00015 at step 4 and would jump to 0.0005" in refused.stderr
    choices = re.findall(r"^  (\S.*?) (?:takes|stays|starts)", refused.stderr, re.MULTILINE)
    assert len(choices) == 3, refused.stderr
    for command in (f"{choices[2]} name=y", f"resume={run} trainer.steps=5 {choices[1]}"):  # as they are said
        done = train(*command.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_two_first_starts_under_one_name_make_one_run(tmp_path: Path):
    code = (
        "import time, ddpm_cli.train as t; from ddpm_cli.training import start; build = start.build_training\n"
        "def late(*arguments): built = build(*arguments); print('built', flush=True); time.sleep(1.5); return built\n"
        "start.build_training = late; t.main()"
    )
    both = [start("train", *TINY_RUN, "name=x", cwd=tmp_path, code=code) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    (refused,) = (error for process, (_, error) in zip(both, said, strict=True) if process.returncode == 2)
    assert "another process" in refused
    only(tmp_path / "outputs" / "x")


@pytest.mark.parametrize("moved", [True, False])
def test_a_run_that_is_moved_or_removed_stops_and_scatters_nothing(moved: bool, tmp_path: Path):
    long = [*TINY, "trainer.steps=100000", "trainer.checkpoint_every=50", "trainer.preview_every=0", "name=x"]
    process = start("train", *long, cwd=tmp_path)
    assert process.stdout is not None
    next(line for line in process.stdout if "step 10/" in line)
    run = only(tmp_path / "outputs" / "x")
    there = tmp_path / "archive"
    os.rename(run, there)
    if not moved:
        while there.exists():
            shutil.rmtree(there, ignore_errors=True)
            time.sleep(0.01)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    assert not run.exists()
    if not moved:
        assert "was removed while the run was training" in error
        assert not there.exists()
        return
    assert f"was moved to {there} while the run was training" in error
    (resume,) = re.findall(r"ddpm-train (resume=\S+)", error)
    step = int(only(there / "checkpoints").name.removeprefix("step_"))
    again = train(resume, f"trainer.steps={step + 2}", cwd=tmp_path)
    assert f"resumed  at step {step:,}" in again.stdout, again.stderr
