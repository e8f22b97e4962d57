"""What is on record of a run of a sweep, and who may change that."""

import json
from pathlib import Path

import pytest

from ddpm_cli.cli.run_result import RESULT_FILE, RunResult, result_in, run_resumed
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.runtime.exit_codes import RunError, Stopped


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run that was stopped."""
    directory = tmp_path / "3"
    (directory / "checkpoints" / "step_00000002").mkdir(parents=True)
    result = RunResult(["seed=3"])
    result.begin(directory)
    result.end_early(directory, Stopped("SIGTERM: stopped at step 2 and saved"))
    return directory


def on_record(directory: Path) -> RunResult:
    result = result_in(directory)
    assert result is not None
    return result


@pytest.mark.parametrize("named", ["3", "3/checkpoints", "3/checkpoints/step_00000002"])
def test_a_run_that_is_resumed_by_itself_is_put_on_record(named: str, run: Path):
    assert not on_record(run).done
    assert run_resumed(str(run.parent / named), lambda: 0.25) == 0.25
    assert on_record(run) == RunResult(["seed=3"], final_loss=0.25)


@pytest.mark.parametrize(
    ("error", "ending", "stopped"),
    [
        (Stopped("SIGINT: stopped at step 3 and saved"), "SIGINT: stopped at step 3 and saved", True),
        (RunError("the disk is full"), "the disk is full", False),
        (ZeroDivisionError("by us"), "ZeroDivisionError: by us", False),
    ],
)
def test_so_is_one_that_ends_early(error: BaseException, ending: str, stopped: bool, run: Path):
    def work() -> float:
        raise error

    with pytest.raises(type(error)):
        run_resumed(str(run), work)
    assert on_record(run) == RunResult(["seed=3"], error=ending, stopped=stopped)
    assert (run / "error.log").exists() == isinstance(error, ZeroDivisionError)
    on_record(run).begin(run)
    assert not (run / "error.log").exists(), "it is about another attempt"


def test_a_mistake_and_a_run_of_no_sweep_leave_no_record(run: Path):
    before = on_record(run)

    def refused() -> float:
        raise ConfigError("seed: cannot change when resuming")

    with pytest.raises(ConfigError):
        run_resumed(str(run), refused)
    assert on_record(run) == before
    (run / RESULT_FILE).unlink()
    assert run_resumed(str(run), lambda: 0.5) == 0.5
    assert result_in(run) is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"overrides": "seed=1"}', '{"overrides": [1]}', '{"overrides": [], "final_loss": "0"}', '{"x": 1}'],
)
def test_what_is_no_result_is_named(content: str, tmp_path: Path):
    (tmp_path / RESULT_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"result\.json is no result of a run"):
        result_in(tmp_path)


def test_results_of_before_runs_were_put_on_record_as_they_begin_are_read(tmp_path: Path):
    then = {"overrides": ["seed=1"], "final_loss": 0.5, "error": None, "stopped": False, "picture": None, "gpu": None}
    (tmp_path / RESULT_FILE).write_text(json.dumps(then))
    assert on_record(tmp_path).done
