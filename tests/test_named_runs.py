"""`outputs/NAME` where a run is asked for: the one begun last that has a checkpoint; and what is no such place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import assert_one_message, run, train

from ddpm_cli.io.named_runs import newest_of
from ddpm_cli.io.run_dir import CHECKPOINTS, CONFIG_FILE
from ddpm_cli.io.run_identity import Identity


def begin(place: Path, begun: str | None = None, steps: tuple[int, ...] = (2,)) -> Path:
    (place / CHECKPOINTS).mkdir(parents=True)
    (place / CONFIG_FILE).touch()
    for step in steps:
        (place / CHECKPOINTS / f"step_{step:08d}").mkdir()
    if begun is not None:
        Identity(begun=begun).write(place)
    return place


def test_it_is_the_run_begun_last_of_those_that_have_saved_something(tmp_path: Path):
    name = tmp_path / "digits"
    begin(name / "2026-10-25_02-59-00", "2026-10-25T00:59:00+00:00")
    meant = begin(name / "2026-10-25_02-10-00", "2026-10-25T01:10:00+00:00")  # the clock was put back in between
    begin(name / "2026-11-01_00-00-00", "2026-11-01T00:00:00+00:00", steps=())
    begin(name / "good_one", "2027-01-01T00:00:00+00:00")  # a copy under another name is nobody's newest
    found = newest_of(name)
    assert found is not None
    assert found.directory == meant
    assert found.said == (
        f"{name}: takes 2026-10-25_02-10-00, begun last of 2 with a checkpoint; 2026-11-01_00-00-00 has none yet"
    )


def test_where_nothing_says_when_it_was_begun_the_name_of_the_directory_does(tmp_path: Path):
    for stamp in ("2026-01-02_00-00-00", "2026-01-03_00-00-00", "2026-01-03_00-00-00-2"):
        begin(tmp_path / stamp)
    found = newest_of(tmp_path)
    assert found is not None
    assert found.directory.name == "2026-01-03_00-00-00-2"
    (alone := tmp_path / "alone").mkdir()
    begin(alone / "2026-01-02_00-00-00")
    found = newest_of(alone)
    assert found is not None
    assert found.said.endswith("alone: takes 2026-01-02_00-00-00")


def test_what_is_no_directory_of_one_name_stands_for_no_run(tmp_path: Path):
    run = begin(tmp_path / "outputs" / "x" / "2026-01-02_00-00-00")
    (run / "samples" / "2026-01-02_00-01-00").mkdir(parents=True)
    for job in "01":
        begin(tmp_path / "outputs" / "sweeps" / "2026-01-02_00-00-00-123456" / job)
    sweeps = tmp_path / "outputs" / "sweeps"
    for place in (run, run / "samples", run / CHECKPOINTS, tmp_path / "outputs", sweeps, *sweeps.iterdir()):
        assert newest_of(place) is None, place
    assert newest_of(run / CONFIG_FILE) is newest_of(Path("x" * 300)) is None


def test_between_a_run_and_the_runs_in_it_nothing_is_guessed(tmp_path: Path):
    begin(tmp_path)
    inner = begin(tmp_path / "2026-01-02_00-00-00")
    with pytest.raises(ValueError, match=f"is a run, and holds another, {inner.name}: {tmp_path}/checkpoints or "):
        newest_of(tmp_path)


def test_every_command_takes_it_and_says_which(home: Path, trained: tuple, sample_here: Callable, eval_here: Callable):
    """Of two runs and one that has saved nothing: what the earlier one has is left alone."""
    earlier, _ = trained
    place = (home / "outputs" / "digits").relative_to(home)
    later = shutil.copytree(earlier, home / place / "9998-01-01_00-00-00")
    begin(home / place / "9999-01-01_00-00-00", "2999-01-01", steps=())
    says = f"{place}: takes {later.name}, begun last of 2 with a checkpoint; 9999-01-01_00-00-00 has none yet\n"
    evaluated = eval_here(home, f"ckpt={place}", "metrics=[bpd]", "likelihood_images=2")
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.startswith(says)
    drawn = sample_here(f"ckpt={home / place}", "n=1", "sampler.steps=2")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith(f"{home}/{says}")
    out = run("export_model", f"ckpt={place}", "out=out", cwd=home)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith(says)
    before = {path: path.stat().st_mtime_ns for path in earlier.rglob("*")}
    resumed = train(f"resume={place}", "trainer.steps=5", cwd=home)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith(f"resume   {says}")
    forked = train(f"fork={place}", "trainer.steps=6", "name=forked", cwd=home)
    assert forked.returncode == 0, forked.stderr
    assert f"forked from {home / place / later.name}/checkpoints/step_00000005" in forked.stdout
    assert {path: path.stat().st_mtime_ns for path in earlier.rglob("*")} == before
    assert (later / "samples").is_dir()
    assert (later / "eval").is_dir()


def test_a_name_whose_runs_have_saved_nothing_is_one_message(tmp_path: Path, sample_here: Callable):
    begin(tmp_path / "x" / "2026-01-02_00-00-00", steps=())
    says = "holds one run, 2026-01-02_00-00-00, and no checkpoint: none has saved one yet"
    assert_one_message(sample_here("ckpt=x"), "sample", f"ckpt: x {says}")
    for key in ("resume", "fork"):
        assert_one_message(train(f"{key}=x", cwd=tmp_path), "train", f"{key}: x {says}")
    assert_one_message(train("init=x", cwd=tmp_path), "train", f"init: .*x {says}")
