"""How long a run takes and what its checkpoints take: said once, early, measured without what distorts it; its end."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import TINY, only, train

from ddpm_cli.io.text import duration_text
from ddpm_cli.runtime.logs import log
from ddpm_cli.training import length
from ddpm_cli.training.checks import Disk, saved_and_kept
from ddpm_cli.training.length import MEASURED_SECONDS, Pace
from ddpm_cli.training.length import _say as say
from ddpm_cli.training.trainer_config import TrainerConfig

# Tiny runs are over before as much has been measured as a true run takes.
AT_ONCE = "from ddpm_cli.training import length; length.MEASURED_SECONDS = 0; from ddpm_cli.train import main; main()"
QUIET = [*TINY, "trainer.preview_every=0"]


class Clock:
    """One that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def steps(pace: Pace, clock: Clock, seconds: Iterator[float] | list[float], *, read_every: int, between: float = 0.0):
    for number, taken in enumerate(seconds, start=1):
        clock.now += taken
        pace.step_ended(read=number % read_every == 0)
        clock.now += between
        pace.step_begins()


def test_neither_slow_first_steps_nor_what_is_done_between_counts():
    clock = Clock()
    pace = Pace(waits=True, clock=clock)
    steps(pace, clock, [120.0, 7.0, 0.5, *[0.5] * 5], read_every=100, between=11.0)
    assert pace.seconds is None, f"{MEASURED_SECONDS} s are still to be measured"
    steps(pace, clock, [0.5, 9.0], read_every=100)
    assert pace.seconds == 0.5, "the first that will do, whatever comes afterwards"


def test_where_steps_do_not_wait_for_the_device_the_moments_count_at_which_the_log_does():
    """The host is through with a step of a GPU before the GPU has begun it; the log then waits for all of them."""
    clock = Clock()
    pace = Pace(waits=False, clock=clock)
    steps(pace, clock, [60.0, *[0.001] * 8, 0.991], read_every=10)  # compiled
    steps(pace, clock, [0.001] * 9, read_every=10)
    assert pace.seconds is None
    steps(pace, clock, [5.0], read_every=1)
    assert pace.seconds == pytest.approx(5.009 / 10)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.4, "0 s"), (99, "99 s"), (125, "2 min"), (3600 * 2 + 300, "2 h 5 min"), (3600 * 75, "3 days 3 h")],
)
def test_spans_of_time_are_said_as_people_do(seconds: float, says: str):
    assert duration_text(seconds) == says


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is logged, with its level."""
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(log, level, lambda text, level=level: lines.append((level, text)))
    return lines


def test_what_takes_more_than_a_year_is_a_warning_with_the_key(said: list[tuple[str, str]]):
    config, disk = TrainerConfig(steps=800_000, batch_size=8), Disk(10**6, 3, 0)
    say(60.0, config, 100, disk)
    say(30.0, config, 100, disk)
    assert said[:1] == [
        (
            "warning",
            "length   60 s per step: trainer.steps=800000 take 1.5 years more on this machine; fewer of them, a "
            "smaller network (model.base_channels), smaller images or another trainer.device take less",
        )
    ]
    level, line = said[1]
    assert level == "info"
    assert line.startswith("length   30 s per step: 277 days 18 h left, done about 2")
    assert re.search(r" \d\d:\d\d; 3 checkpoints of 1 MB take 3 MB$", line)


@pytest.mark.parametrize("main", [True, False])
def test_of_several_ranks_the_first_one_says_it_once(
    main: bool, said: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(length, "MEASURED_SECONDS", 0)
    monkeypatch.setattr(length, "disk_of", lambda trainer: Disk(10**6, 3, 0))
    config, world = TrainerConfig(steps=100, batch_size=8), SimpleNamespace(main=main)
    trainer = SimpleNamespace(step=7, config=config, world=world, defers_finite_check=False)
    of_rank = length.Length(trainer)
    for step in (7, *range(8, 20)):  # it has been resumed, and owes the log an entry first
        trainer.step = step
        of_rank.step_ended(None)
        of_rank.step_begins()
    assert len(said) == main


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"steps": 9, "checkpoint_every": 1, "keep_last": 2, "keep_every": 4}, {4, 8, 9}),
        ({"steps": 7, "checkpoint_every": 2, "keep_last": 2}, {6, 7}),
        ({"steps": 6, "checkpoint_every": 2, "keep_last": 1, "keep_every": 2}, {2, 4, 6}),
        ({"steps": 6, "checkpoint_every": 0}, {6}),
        ({"steps": 6, "checkpoint_every": 50}, {6}),
    ],
)
def test_as_many_checkpoints_are_foreseen_as_are_kept(options: dict, steps: set[int], tmp_path: Path):
    from ddpm_cli.checkpoint import remove_old
    from ddpm_cli.io.run_dir import by_step, step_name

    config = TrainerConfig(batch_size=1, **options)
    saved = [step for step in range(1, config.steps + 1) if config.due(config.checkpoint_every, step)] or [config.steps]
    for step in saved:
        (tmp_path / step_name(step)).mkdir()
        remove_old(tmp_path, keep_last=config.keep_last, keep_every=config.keep_every)
    assert set(by_step(tmp_path)) == steps
    assert saved_and_kept(config) == (len(saved), len(steps))


def test_a_run_says_it_once_and_so_does_one_that_is_resumed(tmp_path: Path):
    """The size is that of what is then on the disk. Two parts of a batch are one step."""
    more = ["trainer.checkpoint_every=20", "trainer.keep_last=2", "trainer.accumulate=2", "name=x"]
    done = train(*QUIET, *more, "trainer.steps=60", cwd=tmp_path, code=AT_ONCE)
    assert done.returncode == 0, done.stderr
    directory = only(tmp_path / "outputs" / "x")
    line = (
        r"^length   \S+ s per step: \d+ \w+ left, done about .*\d\d:\d\d; 2 checkpoints of ([\d.]+) (k|M)B take "
        r"([\d.]+) (k|M)B$"
    )
    ((one, unit, both, of_both),) = re.findall(line, done.stdout, re.MULTILINE)
    bytes_of = {"k": 1e3, "M": 1e6}
    on_disk = [sum(file.stat().st_size for file in step.iterdir()) for step in (directory / "checkpoints").iterdir()]
    assert len(on_disk) == 2
    assert float(one) * bytes_of[unit] == pytest.approx(on_disk[0], rel=0.1)
    assert float(both) * bytes_of[of_both] == pytest.approx(sum(on_disk), rel=0.1)
    lines = done.stdout.splitlines()
    assert lines.index(next(line for line in lines if line.startswith("length"))) < lines.index(
        next(line for line in lines if line.startswith("step 8/60"))
    )
    resumed = train(*QUIET, *more, "trainer.steps=70", cwd=tmp_path, code=AT_ONCE)
    assert resumed.returncode == 0, resumed.stderr
    assert len(re.findall(line, resumed.stdout, re.MULTILINE)) == 1


def test_a_run_that_is_over_first_says_nothing_of_it(trained: tuple):
    assert "length  " not in trained[1].stdout


# How it ends ----------------------------------------------------------------------------------------------------------


def test_the_last_lines_say_where_the_pictures_are_and_what_one_wants_next(trained: tuple):
    directory, done = trained
    *_, picture, sampling, watching, resuming, evaluating = done.stdout.splitlines()
    run = f"outputs/digits/{directory.name}"
    assert picture == f"pictures {run}/previews/step_00000004.png"
    assert sampling == f"sample   ddpm-sample ckpt={run} sampler=dpmpp_2m_sde sampler.steps=20"
    assert watching == "watch    tensorboard --logdir outputs/digits"
    assert resuming == f"resume   ddpm-train resume={run} trainer.steps=8"
    assert evaluating == f"evaluate ddpm-eval ckpt={run}"


def test_what_is_not_there_is_not_named_and_the_command_to_go_further_does(tmp_path: Path):
    """Of a rate that has come down a plain `trainer.steps=` would be refused."""
    where = ["hydra.run.dir=mine", "logger=[]", "trainer.steps=2", "trainer.lr_decay=cosine"]
    done = train(*QUIET, *where, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, sampling, resuming, _ = done.stdout.splitlines()
    assert sampling.startswith("sample   ddpm-sample ckpt=mine ")
    assert resuming == "resume   ddpm-train resume=mine trainer.steps=4 trainer.lr_decay=cosine 'logger=[]'"
    further = train(*shlex.split(resuming)[2:], cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    assert (tmp_path / "mine" / "checkpoints" / "step_00000004").is_dir()
