"""A run in its directory: stopped, killed, gone on with, refused; what it has on record stays true."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from commands import TINY, TINY_RUN, Process, assert_one_message, only, start, train
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

LONG = [*TINY, "trainer.steps=100000", "trainer.checkpoint_every=0", "trainer.preview_every=0"]


def begin(*arguments: str, says: str, **options) -> Process:
    """A command in its own process group that has come to the point where it says something."""
    process = start("train", *arguments, **options)
    assert process.stdout is not None
    for line in process.stdout:
        if says in line:
            return process
    raise AssertionError(process.communicate())


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGUSR1", "SIGXCPU"))]
)
def test_a_signal_ends_the_run_saved_and_the_same_command_goes_on(name: str, tmp_path: Path):
    process = begin(*LONG, "name=x", cwd=tmp_path, says="step 6/")
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    directory = only(tmp_path / "outputs" / "x")
    checkpoint = only(directory / "checkpoints")
    step = int(checkpoint.name.removeprefix("step_"))
    assert f"{name}: saving after this step" in error
    assert f"ddpm-train: {name}: stopped at step {step:,} and saved. From step {step:,} on: ddpm-train resume=" in error
    assert "Traceback" not in error
    log = (directory / "train.log").read_text()
    assert re.search(
        rf"WARNING {name}: saving after this step.*\n(.*\n)*.* WARNING {name}: stopped at step {step:,} ", log
    )
    again = train(*LONG, "name=x", f"trainer.steps={step + 2}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"resumed  at step {step:,}" in again.stdout
    assert only(tmp_path / "outputs" / "x") == directory
    done = train(*LONG, "name=x", f"trainer.steps={step + 2}", cwd=tmp_path)
    assert done.returncode == 0
    assert "has done its" in done.stdout


def test_a_signal_before_the_first_step_ends_the_command(tmp_path: Path):
    """In the middle of importing torch, say: there is nothing to save, and the same command can be given again."""
    code = "import ddpm_cli.train as t; print('ready', flush=True); t.main()"
    process = begin(*LONG, cwd=tmp_path, says="ready", code=code, fresh=True)
    time.sleep(0.5)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert error == "ddpm-train: SIGTERM: stopped before the first step\n"


def test_a_stop_that_python_drops_ends_the_command_all_the_same(tmp_path: Path):
    """An exception that a signal's handler raises inside a destructor is lost."""
    code = (
        "import os, signal, time; from ddpm_cli.runtime import signals; signals.GRACE_SECONDS = 0.5\n"
        "class Dropped:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0)\n"
        "stop = signals.Stop(); stop.listen(); print('ready', flush=True)\n"
        "Dropped(); print('dropped', flush=True); time.sleep(60)"
    )
    process = begin(cwd=tmp_path, says="dropped", code=code)
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path):
    """Sent while the step that the first has to wait for is made endless."""
    code = (
        "import time; from ddpm_cli.training.trainer import Trainer; step = Trainer.train_step\n"
        "def slow(self, *arguments):\n"
        "    if self.step == 6: print('sleeping', flush=True); time.sleep(600)\n"
        "    return step(self, *arguments)\n"
        "Trainer.train_step = slow; from ddpm_cli.train import main; main()"
    )
    process = begin(*LONG, cwd=tmp_path, says="sleeping", code=code)
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    says = "SIGTERM again: ends at once; lost: steps 1 to 6\n"
    assert error.endswith(says)
    assert (only(tmp_path / "outputs" / "digits") / "train.log").read_text().endswith(says)


@pytest.mark.slow
def test_a_signal_in_a_preview_does_not_wait_for_it(tmp_path: Path):
    endless = [*LONG, "trainer.preview_every=3", "trainer.preview_images=2048", "schedule.timesteps=200"]
    process = begin(*endless, "sampler.steps=200", cwd=tmp_path, says="step 2/")
    time.sleep(1.5)
    process.terminate()
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert time.monotonic() - began < 20
    directory = only(tmp_path / "outputs" / "digits")
    assert only(directory / "checkpoints").name == "step_00000003"
    assert not list(directory.glob("previews/*"))
    resume = [f"resume={directory}", "trainer.steps=4", "trainer.preview_images=1"]
    assert train(*resume, cwd=tmp_path).returncode == 0
    assert (directory / "previews" / "step_00000003.png").exists(), "made up for"


def logged(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def shown(directory: Path, tag: str = "loss/mean") -> list[int]:
    """The steps of a tag in the order in which TensorBoard reads them."""
    return [
        event.step
        for file in sorted((directory / "tensorboard").iterdir())
        for event in LegacyEventFileLoader(os.fspath(file)).Load()
        for value in event.summary.value
        if value.tag == tag
    ]


def test_what_was_recorded_after_the_checkpoint_is_recorded_once(home: Path, trained):
    """As after a kill: the newest checkpoint has done two steps of the four that are on record."""
    directory, _ = trained
    before = logged(directory)
    (directory / "checkpoints" / "step_00000004").rename(home / "away")
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss/me')
    done = train(f"resume={directory}", "trainer.steps=6", cwd=home)
    assert done.returncode == 0, done.stderr
    after = logged(directory)
    assert [line["step"] for line in after] == [2, 4, 6]
    for ours, theirs in zip(after, before, strict=False):
        clock = {key for key in ours if key.startswith("time/")}
        assert {k: v for k, v in ours.items() if k not in clock} == {k: v for k, v in theirs.items() if k not in clock}
    assert shown(directory) == [2, 4, 6]
    assert shown(directory, "config/text_summary") == [0]
    assert shown(directory, "preview") == [2, 4, 6]
    again = train(f"resume={directory}", "trainer.steps=8", cwd=home)
    assert again.returncode == 0, again.stderr
    assert shown(directory) == [2, 4, 6, 8]
    assert sorted(path.name for path in (directory / "previews").iterdir()) == [
        f"step_{i:08d}.png" for i in (2, 4, 6, 8)
    ]


def test_an_entry_of_the_log_that_a_stop_has_cut_is_the_same_afterwards(tmp_path: Path):
    """Stopped at step 6 of a log that has an entry every 4: the entry of step 8 is still that of steps 5 to 8."""
    options = [*TINY, "trainer.log_every=4", "trainer.preview_every=0", "trainer.steps=8"]
    assert train(*options, "trainer.checkpoint_every=0", "name=straight", cwd=tmp_path).returncode == 0
    assert train(*options, "trainer.checkpoint_every=6", "name=stopped", cwd=tmp_path).returncode == 0
    straight, stopped = (only(tmp_path / "outputs" / name) for name in ("straight", "stopped"))
    (stopped / "checkpoints" / "step_00000008").rename(tmp_path / "away")
    done = train(*options, "trainer.checkpoint_every=6", "name=stopped", cwd=tmp_path)
    assert "resumed  at step 6" in done.stdout
    assert [line["loss/mean"] for line in logged(stopped)] == [line["loss/mean"] for line in logged(straight)]
    assert [line["train/grad_norm"] for line in logged(stopped)] == [
        line["train/grad_norm"] for line in logged(straight)
    ]


def test_a_damaged_checkpoint_is_named_set_aside_and_gone_back_behind(home: Path, trained):
    directory, _ = trained
    file = directory / "checkpoints" / "step_00000004" / "training.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    done = train(f"resume={directory}", "trainer.steps=6", cwd=home)
    assert done.returncode == 0, done.stderr
    damaged = r"damaged  .*step_00000004/training.safetensors is damaged: \d+ bytes, manifest.json says \d+"
    assert re.search(damaged, done.stdout)
    assert "set aside as damaged_step_00000004" in done.stdout
    assert re.search(r"resuming from the newest complete checkpoint, .*step_00000002", done.stdout)
    assert "resumed  at step 2" in done.stdout
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == [
        "damaged_step_00000004", "step_00000002", "step_00000004", "step_00000006",
    ]  # fmt: skip
    for path in directory.glob("checkpoints/step_*/manifest.json"):
        path.unlink()
    none_whole = train(f"resume={directory}", "trainer.steps=8", cwd=home)
    assert none_whole.returncode == 2
    assert "no checkpoint in" in none_whole.stderr
    assert none_whole.stderr.count("manifest.json is missing") == 3


def test_a_named_run_with_another_configuration_is_refused_field_by_field(tmp_path: Path):
    assert train(*TINY_RUN, "name=x", cwd=tmp_path).returncode == 0
    changes = ["schedule=linear", "schedule.timesteps=20", "model.channel_mults=[1,1]", "trainer.log_every=1"]
    refused = train(*TINY_RUN, "name=x", "optimizer.lr=3", *changes, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stdout == ""
    lines = refused.stderr.splitlines()
    assert re.match(r"ddpm-train: name: outputs/x/.* was trained with another configuration:", lines[0])
    assert lines[1:] == [
        "  model.channel_mults: was [1, 2], now [1, 1]",
        "  optimizer.lr: was 0.001, now 3",
        "  schedule: was 'cosine', now 'linear'",
        "  choose another name, or resume=null to start another run of this name",
        f"  fork={only(tmp_path / 'outputs' / 'x').relative_to(tmp_path)} name=ANOTHER KEY=VALUE starts a new run from "
        "this run's state",
    ]
    another = train(*TINY_RUN, "name=x", "optimizer.lr=3", "resume=null", cwd=tmp_path)
    assert another.returncode == 0, another.stderr
    assert len(list((tmp_path / "outputs" / "x").glob("*/config.yaml"))) == 2


def test_a_named_run_that_has_saved_nothing_begins_again_in_its_directory(tmp_path: Path):
    process = begin(*LONG, "name=x", cwd=tmp_path, says="step 4/")
    process.kill()
    process.communicate()
    directory = only(tmp_path / "outputs" / "x")
    assert logged(directory)[-1]["step"] >= 4
    done = train(*TINY_RUN, "name=x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert only(tmp_path / "outputs" / "x") == directory
    assert [line["step"] for line in logged(directory)] == shown(directory) == [2, 4]


def test_a_second_trainer_is_refused(tmp_path: Path):
    process = begin(*LONG, "name=x", "trainer.checkpoint_every=2", cwd=tmp_path, says="step 4/")
    try:
        for arguments in ([*LONG, "name=x"], [f"resume={only(tmp_path / 'outputs' / 'x')}", "trainer.steps=9"]):
            done = train(*arguments, cwd=tmp_path)
            assert_one_message(done, "train", "resume: outputs/x/.*: another process is training there|resume: /")
    finally:
        process.kill()
        process.communicate()


def test_a_link_in_a_run_directory_is_not_written_through(home: Path, trained):
    directory, _ = trained
    (home / "victim").write_text("untouched")
    (directory / "train.log").unlink()
    (directory / "train.log").symlink_to(home / "victim")
    done = train(f"resume={directory}", "trainer.steps=6", cwd=home)
    assert_one_message(done, "train", "train.log is a link")
    assert (home / "victim").read_text() == "untouched"


def test_out_of_memory_says_what_takes_less_and_leaves_the_checkpoint(tmp_path: Path):
    """An allocation that no machine can make stands for a batch that is too large."""
    code = (
        "import torch; from ddpm_cli.training import trainer; augment = trainer.augment\n"
        "steps = iter(range(100))\n"
        "def greedy(*arguments):\n"
        "    if next(steps) == 3: torch.empty(2**48)\n"
        "    return augment(*arguments)\n"
        "trainer.augment = greedy; from ddpm_cli.train import main; main()"
    )
    done = train(*TINY_RUN, "trainer.accumulate=2", cwd=tmp_path, code=code)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for says in (
        "ddpm-train: step 3: out of memory with batch_size 8 on cpu, fp32",
        "trainer.accumulate=4 or auto (now 4 images at a time), trainer.activation_checkpointing=true",
        "Saved at step 3. From step 3 on: ddpm-train resume=outputs/digits/",
    ):
        assert says in done.stderr
    directory = only(tmp_path / "outputs" / "digits")
    resume = [f"resume={directory}", "trainer.accumulate=4", "trainer.activation_checkpointing=true"]
    resumed = train(*resume, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize("option", ["trainer.activation_checkpointing=true", "trainer.deterministic=true"])
def test_memory_and_determinism_change_no_bit_on_a_cpu(option: str, finished, tmp_path: Path):
    done = train(*TINY_RUN, option, "model.dropout=0.3", cwd=tmp_path)
    plain = train(*TINY_RUN, "name=plain", "model.dropout=0.3", cwd=tmp_path)
    assert (done.returncode, plain.returncode) == (0, 0), done.stderr
    files = [only(tmp_path / "outputs" / name) for name in ("digits", "plain")]
    ours, theirs = (load_file(file / "checkpoints" / "step_00000004" / "training.safetensors") for file in files)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_some_checkpoints_are_kept_for_good(tmp_path: Path):
    options = [*TINY, "trainer.steps=9", "trainer.preview_every=0", "trainer.checkpoint_every=1"]
    done = train(*options, "trainer.keep_last=2", "trainer.keep_every=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = (only(tmp_path / "outputs" / "digits") / "checkpoints").iterdir()
    assert sorted(path.name[-1] for path in kept) == ["4", "8", "9"]
