"""Loggers: what a run shows elsewhere, that it is shown once, and that nothing of it ends or delays a run."""

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, Process, assert_one_message, only, run_ranks, start, train, wait_for
from safetensors.numpy import load_file

from ddpm_cli.io.metrics_file import PLACE

STEPS = 6
RUN = [*TINY, f"trainer.steps={STEPS}", "trainer.checkpoint_every=2", "trainer.preview_every=4", "name=x"]

# A logger of somebody's own, which writes down how it is called, and does what it is told to at one of its calls.
MINE = """
import json, os, pathlib, time
from ddpm_cli.loggers.logger import Begun

class Mine:
    place = "there"

    def __init__(self, *, file: str, at: str = "", does: str = ""):
        self.file, self.at, self.does = pathlib.Path(file), at, does
        if does == "refuse":
            raise ValueError("cannot be")

    def _call(self, name, *given):
        with self.file.open("a") as file:
            print(json.dumps([name, *given]), file=file)
        print("not for the pipe")
        if self.at == name:
            if self.does == "raise":
                raise RuntimeError("quota is gone\\nand more")
            if self.does == "crash":
                os.abort()
            if self.does == "hang":
                time.sleep(600)
            if self.does == "slow":
                time.sleep(0.5)

    def begin(self, run):
        self._call("begin", run.id, run.name, run.group, run.earlier, run.config["trainer"]["steps"])
        return Begun("mine-7", "on the wall")

    def scalars(self, step, values):
        self._call("scalars", step, values)

    def image(self, step, name, png):
        self._call("image", step, name, len(png), png[:4].decode("latin-1"))

    def end(self, ending):
        self._call("end", ending.state, ending.step, ending.summary)
"""
YAML = "# @package logger.mine\n_target_: mine.Mine\nfile: calls.jsonl\nat: ''\ndoes: ''\n"
CHOSEN = ["--config-dir", "conf", "logger=[tensorboard,mine]"]
SHORT = "import ddpm_cli.loggers.of_run as o, ddpm_cli.loggers.aside as a\no.END_SECONDS = a.HURRIED_SECONDS = 2.0\n"
CODE = SHORT + "from ddpm_cli.train import main; main()"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    (tmp_path / "conf" / "logger" / "mine.yaml").write_text(YAML)
    return tmp_path


def path_to(place: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(place)}


def calls(place: Path, name: str) -> list[list]:
    lines = (place / "calls.jsonl").read_text().splitlines() if (place / "calls.jsonl").exists() else []
    return [given for called, *given in map(json.loads, lines) if called == name]


def scalars(place: Path) -> dict[str, list[int]]:
    """The steps at which a logger of one's own was told each figure."""
    found: dict[str, list[int]] = {}
    for step, values in calls(place, "scalars"):
        for figure in values:
            found.setdefault(figure, []).append(step)
    return found


def warnings(log: str) -> list[str]:
    return [line for line in log.splitlines() if " WARNING " in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    done = train(*RUN, cwd=place)
    assert done.returncode == 0, done.stderr
    return only(place / "outputs" / "x")


def assert_same_state(directory: Path, other: Path) -> None:
    for file in ("ema.safetensors", "training.safetensors"):
        ours, theirs = (load_file(d / "checkpoints" / f"step_{STEPS:08d}" / file) for d in (directory, other))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours), file


def test_a_logger_of_ones_own_is_told_everything_once(place: Path, undisturbed: Path):
    evaluated = ["trainer.eval_every=3", "data.holdout=64", "trainer.eval_images=0", "objective=heldout"]
    done = train(*RUN, *evaluated, *CHOSEN, cwd=place, **path_to(place))
    assert done.returncode == 0, done.stderr
    directory = only(place / "outputs" / "x")
    assert "mine     on the wall" in done.stdout
    ((run_id, name, group, earlier, steps),) = calls(place, "begin")
    assert run_id == json.loads((directory / "run.json").read_text())["id"]
    assert (name, group, earlier, steps) == (f"x/{directory.name}", None, None, STEPS)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    recorded = {
        (line["step"], key): value
        for line in lines
        for key, value in line.items()
        if key not in ("step", *PLACE) and value is not None
    }
    told = {(step, key): value for step, values in calls(place, "scalars") for key, value in values.items()}
    assert told == recorded
    assert any(key == "eval/heldout" for _, key in told)
    assert all(steps == sorted(set(steps)) for steps in scalars(place).values())
    assert [(step, kind) for step, kind, *_ in calls(place, "image")] == [(4, "preview"), (6, "preview")]
    (ending,) = calls(place, "end")
    state, step, summary = ending
    last = [line for line in lines if "eval/heldout" in line][-1]
    assert (state, step) == ("finished", STEPS)
    assert summary["objective"] == summary["final/heldout"] == last["eval/heldout"]
    assert summary["final/loss"] == [line for line in lines if "loss/mean" in line][-1]["loss/mean"]
    assert "not for the pipe" in (directory / "loggers" / "mine.log").read_text()


@pytest.mark.parametrize(
    ("at", "does", "says"),
    [
        ("begin", "raise", "has failed: RuntimeError: quota is gone"),
        ("scalars", "crash", "was killed by signal 6"),
        ("end", "hang", r"has not sent everything within \d s"),
        pytest.param("scalars", "raise", "has failed: RuntimeError: quota is gone", marks=pytest.mark.slow),
        pytest.param("begin", "hang", r"has not sent everything within \d s", marks=pytest.mark.slow),
        pytest.param("scalars", "hang", r"has not sent everything within \d s", marks=pytest.mark.slow),
        pytest.param("end", "raise", "has failed: RuntimeError: quota is gone", marks=pytest.mark.slow),
        pytest.param("begin", "crash", "was killed by signal 6", marks=pytest.mark.slow),
    ],
)
def test_one_that_fails_warns_once_and_the_run_is_the_same(at, does, says, place: Path, undisturbed: Path):

    failing = [f"logger.mine.at={at}", f"logger.mine.does={does}"]
    done = train(*RUN, *CHOSEN, *failing, cwd=place, code=CODE, **path_to(place))
    assert done.returncode == 0, done.stderr
    directory = only(place / "outputs" / "x")
    (warned,) = warnings((directory / "train.log").read_text())
    assert re.search(rf"mine     {says}\. The run continues without it", warned), warned
    assert_same_state(directory, undisturbed)


@pytest.mark.slow
def test_training_does_not_wait_for_a_slow_one(place: Path):
    begun = time.monotonic()
    slow = ["logger.mine.at=scalars", "logger.mine.does=slow", "trainer.log_every=1", "trainer.steps=10"]
    process = start("train", *RUN, *CHOSEN, *slow, cwd=place, **path_to(place))
    saved = only_run(place, process) / "checkpoints" / "step_00000010"
    wait_for(saved.is_dir, process)
    assert len(calls(place, "scalars")) < 9, f"{time.monotonic() - begun:.0f} s: it was waited for"
    process.communicate(120)
    assert process.returncode == 0
    assert scalars(place)["loss/mean"] == list(range(1, 11)), "and all of it is logged in the end"


def only_run(place: Path, process: Process) -> Path:
    wait_for(lambda: list(place.glob("outputs/x/*/metrics.jsonl")), process)
    return only(place / "outputs" / "x")


def test_a_run_killed_with_its_logger_shows_no_step_twice(place: Path):
    """The process of the logger is killed too, at a moment of its own."""
    long = [*TINY, "trainer.steps=60", "trainer.checkpoint_every=5", "trainer.log_every=1", "name=x"]
    process = start("train", *long, *CHOSEN, cwd=place, **path_to(place))
    directory = only_run(place, process)
    wait_for(lambda: scalars(place).get("loss/mean", [0])[-1] >= 12, process)
    logging = int((directory / "loggers" / "mine.lock").read_text().splitlines()[0])
    os.kill(logging, signal.SIGKILL)
    process.kill()
    process.communicate(60)
    done = train(*long, *CHOSEN, cwd=place, **path_to(place))
    assert done.returncode == 0, done.stderr
    assert "resumed  at step" in done.stdout
    shown = scalars(place)["loss/mean"]
    assert shown == sorted(set(shown))
    assert set(range(1, 61)) - set(shown) <= {shown[i] + 1 for i in range(len(shown) - 1)}, "at most one is missing"
    assert len(shown) >= 59
    assert [earlier for *_, earlier, _ in calls(place, "begin")] == [None, "mine-7"]


def test_the_first_of_several_processes_logs(place: Path):
    done = run_ranks("train", *RUN, *CHOSEN, cwd=place, **path_to(place))
    assert done.returncode == 0, done.stderr
    assert len(calls(place, "begin")) == len(calls(place, "end")) == 1
    assert scalars(place)["loss/mean"] == [2, 4, 6]


def test_bad_loggers_of_ones_own_are_one_message(place: Path):
    for says, options in {
        "logger.mine: cannot be": ["logger.mine.does=refuse"],
        "logger.mine.at: expected text, got": ["logger.mine.at=[a]"],
        "logger.mine.when: no such option": ["+logger.mine.when=1"],
    }.items():
        assert_one_message(train(*RUN, *CHOSEN, *options, cwd=place, **path_to(place)), "train", says)
    (place / "conf" / "logger" / "mine.yaml").write_text(YAML.partition("\n")[2])
    done = train(*RUN, *CHOSEN, cwd=place, **path_to(place))
    assert_one_message(done, "train", "'# @package logger.NAME' must be the first line")
    assert not (place / "outputs").exists()


def test_the_page_on_loggers_holds_a_logger_that_works(tmp_path: Path):
    text = (Path(__file__).parents[1] / "docs" / "how-to" / "loggers.md").read_text(encoding="utf-8")
    (module,), (option,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "yaml"))
    (tmp_path / "losses.py").write_text(module)
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    (tmp_path / "conf" / "logger" / "printed.yaml").write_text(option.partition("\n")[2])
    done = train(*RUN, "--config-dir", "conf", "logger=printed", cwd=tmp_path, **path_to(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in (tmp_path / "losses.txt").read_text().splitlines()] == ["2", "4", "6"]
