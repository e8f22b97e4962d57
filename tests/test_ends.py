"""Whatever ends a run early, what is in memory is saved first; resumed, it is the run that nothing has ended."""

from pathlib import Path

import pytest
from commands import TINY, only, train
from torture.reference import events, logged, previews

from ddpm_cli import checkpoint

STEPS = 6
RUN = [*TINY, f"trainer.steps={STEPS}", "trainer.checkpoint_every=0", "trainer.preview_every=4", "name=x"]
# What goes wrong: where, when, with what. The code is run before the command.
FULL = "OSError(28, 'No space left on device', 'somewhere')"
FAULTS = {
    "preview": ("ddpm_cli.training.metrics.MetricsLogger.preview", "a[1] == 4", FULL, 4),
    "metrics.jsonl": ("ddpm_cli.io.event_files.Appended.write", "b'\"step\": 4' in a[1]", FULL, 4),
    "TensorBoard": ("ddpm_cli.io.event_files.Events.add", "a[2] == 4 and 'ema_decay' in str(a[1])", FULL, 4),
    "last record": ("ddpm_cli.io.event_files.Appended.write", f"b'\"step\": {STEPS}' in a[1]", FULL, STEPS),
    "data": ("ddpm_cli.data.loader.BatchLoader.batch", "a[1] == 3", "RuntimeError('broken')", 3),
    "interrupted": ("ddpm_cli.training.trainer.Trainer._backward", "a[0].step == 5", "KeyboardInterrupt", 5),
}
CODE = """
import importlib
module, owner, name = {place!r}.rsplit(".", 2)
owner = getattr(importlib.import_module(module), owner)
original = getattr(owner, name)
def faulty(*a, **k):
    if {when}: raise {error}
    return original(*a, **k)
setattr(owner, name, faulty)
from ddpm_cli.train import main; main()
"""


def code(place: str, when: str, error: str) -> str:
    return CODE.format(place=place, when=when, error=error)


QUICK = ("preview", "data", "metrics.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    done = train(*RUN, cwd=place)
    assert done.returncode == 0, done.stderr
    return only(place / "outputs" / "x")


def state(directory: Path) -> list[bytes]:
    saved = directory / "checkpoints" / f"step_{STEPS:08d}"
    return [(saved / name).read_bytes() for name in (checkpoint.EMA_FILE, checkpoint.TRAINING_FILE)]


@pytest.mark.parametrize(
    "what", [what if what in QUICK else pytest.param(what, marks=pytest.mark.slow) for what in FAULTS]
)
def test_what_ends_a_run_saves_first_and_takes_nothing_from_its_logs(what: str, undisturbed: Path, tmp_path: Path):
    *fault, step = FAULTS[what]
    ended = train(*RUN, code=code(*fault), cwd=tmp_path)
    assert ended.returncode == (130 if what == "interrupted" else 1), ended.stderr
    directory = only(tmp_path / "outputs" / "x")
    how = f"Saved at step {step}. From step {step} on: ddpm-train resume=outputs/x/{directory.name}"
    assert ended.stderr.startswith(f"ddpm-train: step {step}: ")
    assert ended.stderr.endswith(f"{how}\n")
    assert ended.stderr.count("\n") == 1, "one message"
    log = (directory / "train.log").read_text()
    assert ended.stderr.removeprefix("ddpm-train: ") in log
    assert ("Traceback" in log) == (what == "data"), "which nobody has foreseen"
    resumed = train(*RUN, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert logged(directory) == logged(undisturbed)
    assert previews(directory) == previews(undisturbed)
    assert events(directory) == events(undisturbed)
    if what != "last record":
        assert state(directory) == state(undisturbed)
        return
    finished = train(*RUN, cwd=tmp_path)  # though the state that was saved says that it is not on record
    assert (finished.returncode, finished.stdout.count("has done its 6 steps")) == (0, 1)


def test_what_ends_a_run_in_the_middle_of_a_step_saves_nothing(tmp_path: Path):
    done = train(*RUN, code=code("ddpm_cli.ema.ema.EMA.update", "a[0].updates == 3", "ValueError"), cwd=tmp_path)
    assert done.returncode == 1
    directory = only(tmp_path / "outputs" / "x")
    says = "Not saved in the middle of a step. No checkpoint had been saved in"
    assert f"ddpm-train: step 3: ValueError; the traceback is in the log. {says}" in done.stderr
    assert not (directory / "checkpoints").exists()


def test_what_cannot_be_saved_is_said(tmp_path: Path):
    fault = code("ddpm_cli.training.saving.Checkpoints._write", "True", FULL)
    done = train(*RUN, "trainer.checkpoint_every=2", code=fault, cwd=tmp_path)
    assert done.returncode == 1
    error = "[Errno 28] No space left on device: 'somewhere'"
    says = f"ddpm-train: step 2: {error}; earlier checkpoints are untouched. Not saved: {error}. No checkpoint"
    assert done.stderr.startswith(says)


def test_a_signal_after_the_last_save_changes_nothing(tmp_path: Path):
    wrapped = (
        "import os, signal; from ddpm_cli.training.run import TrainingRun; finish = TrainingRun._finish\n"
        "def and_then(self):\n"
        "    finish(self)\n"
        "    for name in ('TERM', 'TERM', 'HUP', 'INT'): os.kill(os.getpid(), getattr(signal, f'SIG{name}'))\n"
        "TrainingRun._finish = and_then; from ddpm_cli.train import main; main()"
    )
    done = train(*RUN, code=wrapped, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
