"""What the runs of a sweep say of it as they begin and end, and how its list is laid out."""

import pickle
from pathlib import Path

import pytest

from ddpm_cli.cli.run_result import RunResult
from ddpm_cli.cli.sweep_plan import PlannedRun
from ddpm_cli.cli.sweep_progress import SweepProgress, in_columns, varying

OVERRIDES = [["a=1", f"lr={lr}", f"seed={seed}"] for lr in ("1e-4", "2e-4") for seed in (0, 1)]


@pytest.fixture
def progress(tmp_path: Path) -> SweepProgress:
    return SweepProgress([PlannedRun(overrides, tmp_path / str(i)) for i, overrides in enumerate(OVERRIDES)])


def end(progress: SweepProgress, number: int, outcome: object = 0.5) -> None:
    RunResult(OVERRIDES[number]).end(progress.runs[number].directory, outcome)


def test_a_run_says_which_it_is_what_differs_and_how_long_the_others_will_take(progress: SweepProgress):
    assert progress.header(0, OVERRIDES[0]) == "run 1 of 4: lr=1e-4 seed=0"
    end(progress, 0)
    progress.seconds.append(40.0)
    assert progress.header(1, OVERRIDES[1]) == "run 2 of 4: lr=1e-4 seed=1  (1 done, about 2 min left)"
    RunResult(OVERRIDES[1]).end_early(progress.runs[1].directory, ValueError("failed, and says nothing of the time"))
    assert progress.header(2, OVERRIDES[2]) == "run 3 of 4: lr=2e-4 seed=0  (1 done, about 80 s left)"
    end(progress, 3)  # in another process, or by an earlier sweep
    assert progress.header(2, OVERRIDES[2]) == "run 3 of 4: lr=2e-4 seed=0  (2 done, about 40 s left)"


def test_a_process_to_which_runs_are_sent_counts_those_of_all(progress: SweepProgress):
    there = pickle.loads(pickle.dumps(progress))
    end(progress, 2)
    assert there.so_far() == " (1 of 4 runs done)"
    (progress.runs[3].directory).mkdir()
    (progress.runs[3].directory / "result.json").write_text("{")
    assert there.so_far() == " (1 of 4 runs done)", "what is wrong with a record is for the report to say"


def test_where_a_sweeper_decides_as_it_goes_nobody_knows_how_many():
    progress = SweepProgress()
    assert progress.header(6, ["lr=0.1\x1b", "seed=3"]) == "run 7: lr=0.1\\x1b seed=3"
    assert progress.so_far() == ""


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([["a=1", "b=1"], ["a=1", "b=2"]], [["b=1"], ["b=2"]]),
        ([["a=1", "b=1"]], [["a=1", "b=1"]]),  # of one run nothing differs: all is shown
        ([["seed=3"], ["seed=3"]], [["seed=3"], ["seed=3"]]),
        ([["a=1", "b=1"], ["b=2"]], [["a=1", "b=1"], ["b=2"]]),
        ([], []),
    ],
)
def test_only_what_differs_is_shown(runs: list[list[str]], expected: list[list[str]]):
    assert varying(runs) == expected


def test_what_belongs_together_stands_below_each_other():
    rows = [["0", "lr=1e-4", "loss 0.5"], ["10", "lr=1", "FAILED: so long that no other line is padded to it"]]
    assert in_columns(rows) == [
        "0   lr=1e-4  loss 0.5",
        "10  lr=1     FAILED: so long that no other line is padded to it",
    ]
    assert in_columns([]) == []
