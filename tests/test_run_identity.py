"""Which run a name means: copies, archives, clocks and other machines do not change it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ddpm_cli.io import run_identity
from ddpm_cli.io.run_dir import CONFIG_FILE, RUN_FILE, create
from ddpm_cli.io.run_identity import NEWEST_FILE, Identity, Place, find, identity_of


def begin(place: Path, name: str = "x", directory: str | None = None, *, named: bool = True) -> Path:
    """A run of a name, as `training.start` begins it."""
    path = create(place, name) if directory is None else place / name / directory
    path.mkdir(parents=True, exist_ok=True)
    identity = Identity(name=name if named else None)
    identity.write(path)
    (path / CONFIG_FILE).touch()
    if named:
        run_identity.remember(place, name, path, identity)
    return path


def test_the_run_that_was_begun_last_is_meant_whatever_the_clock_said(tmp_path: Path):
    begin(tmp_path, directory="2026-10-25_02-59-00")
    last = begin(tmp_path, directory="2026-10-25_02-10-00")  # an hour later, after the clock was put back
    assert find(tmp_path, "x") == (last, ["2026-10-25_02-59-00"])


def test_copies_and_other_runs_are_seen_and_not_chosen(tmp_path: Path):
    run = begin(tmp_path)
    shutil.copytree(run, run.with_name(f"{run.name}_backup"))
    begin(tmp_path, directory="9999-01-01_00-00-00", named=False)
    assert find(tmp_path, "x") == (run, sorted(["9999-01-01_00-00-00", f"{run.name}_backup (a copy of it)"]))


def test_a_run_without_a_name_is_not_found_by_one(tmp_path: Path):
    """It lies where its data is called so."""
    begin(tmp_path, "digits", named=False)
    assert find(tmp_path, "digits").directory is None


def test_a_run_that_was_renamed_is_found(tmp_path: Path):
    run = begin(tmp_path)
    moved = run.rename(run.with_name("best"))
    assert find(tmp_path, "x").directory == moved


def test_a_run_that_has_been_archived_is_not_replaced_by_an_older_one(tmp_path: Path):
    begin(tmp_path, directory="older")
    shutil.move(begin(tmp_path, directory="newer"), tmp_path / "archive")
    says = r"x/newer, the run of this name that was started last, no longer exists; there are older"
    with pytest.raises(ValueError, match=says):
        find(tmp_path, "x")


def test_two_copies_of_a_run_that_is_gone_are_not_guessed_between(tmp_path: Path):
    run = begin(tmp_path, directory="it")
    for copy in ("a", "b"):
        shutil.copytree(run, run.with_name(copy))
    shutil.rmtree(run)
    with pytest.raises(ValueError, match=r"started last, is now a, b"):
        find(tmp_path, "x")


def test_runs_of_before_there_were_identities(tmp_path: Path):
    for directory in ("2026-01-01_00-00-00", "2026-01-02_00-00-00"):
        assert find(tmp_path, "x").directory is None or directory.startswith("2026-01-02")
        (tmp_path / "x" / directory).mkdir(parents=True)
        (tmp_path / "x" / directory / CONFIG_FILE).touch()
        if directory.startswith("2026-01-01"):
            assert find(tmp_path, "x") == (tmp_path / "x" / directory, [])
    with pytest.raises(ValueError, match=r"no record says which was started last: 2026-01-01\S+, 2026-01-02"):
        find(tmp_path, "x")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"id": 3}', '{"nothing": 1}', "x" * 70_000, "[" * 9_000])
@pytest.mark.parametrize("file", [RUN_FILE, NEWEST_FILE])
def test_what_is_not_ours_is_named(content: str, file: str, tmp_path: Path):
    run = begin(tmp_path)
    path = run / file if file == RUN_FILE else run.parent / file
    path.write_text(content)
    with pytest.raises(ValueError, match=r"not ours|not written by ddpm-cli|no longer exists"):
        find(tmp_path, "x")


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    run = begin(tmp_path)
    (run / RUN_FILE).unlink()
    os.mkfifo(run / RUN_FILE)
    with pytest.raises(ValueError, match=r"not a plain file"):
        identity_of(run)


def test_a_directory_is_followed_when_it_is_moved(tmp_path: Path):
    run = begin(tmp_path)
    place = Place(run)
    assert not place.left()
    moved = run.rename(tmp_path / "elsewhere")
    assert place.left()
    assert place.moved_to() == moved
    shutil.copytree(moved, run)  # a copy in its old place is the run still, as far as anybody can tell
    assert not place.left()
    shutil.rmtree(run)
    shutil.rmtree(moved)
    assert place.left()
    assert place.moved_to() is None
    begin(tmp_path, directory=run.name)  # another run has taken its place
    assert place.left()
    assert place.moved_to() is None
    place.close()


def test_the_identity_says_when_it_was_begun_in_one_time_zone(tmp_path: Path):
    run = begin(tmp_path)
    written = json.loads((run / RUN_FILE).read_text())
    assert written["begun"].endswith("+00:00")
    assert identity_of(run) == Identity(**{**written, "differs": ()})
