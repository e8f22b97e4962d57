"""What TensorBoard shows of a run on its own: loss first, a session under HParams, names that stay what they were."""

import json
from pathlib import Path

import pytest
from commands import TINY, only, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from test_compare_sweep import Tab

from ddpm_cli.comparison.run import read_run
from ddpm_cli.io import hparams_file, tensorboard_tags

EVALUATED = [*TINY, "trainer.preview_every=0", "data.holdout=8", "trainer.eval_every=2"]


def scalars(run: Path) -> list[str]:
    """Tags in the order in which TensorBoard puts them."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return sorted(events.Tags()["scalars"])


def recorded(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where a run has been evaluated while it trained."""
    place = tmp_path_factory.mktemp("tensorboard")
    done = train(*EVALUATED, "trainer.steps=4", "name=x", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def test_the_loss_comes_first_with_that_of_what_was_held_out_beside_it(place: Path):
    run = only(place / "outputs" / "x")
    tags = scalars(run)
    assert tags[:2] == ["loss/heldout", "loss/mean"]
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in tags))
    assert groups == ["loss", "loss_by_t", "loss_by_t_heldout", "time", "train"]
    assert tensorboard_tags.tag("eval/fd_classifier") == "quality/fd_classifier"
    assert "eval/heldout" in recorded(run)[1], "the run's own record has the names that it had"
    found = read_run(run)
    assert found is not None
    assert [step for step, _ in found.series["eval/heldout"]] == [2, 4]


def test_a_run_on_its_own_is_a_session_with_what_tells_it_from_others(place: Path):
    name = f"{only(place / 'outputs' / 'x').name}/tensorboard"
    done = train(*EVALUATED, "trainer.steps=2", "optimizer.lr=0.5", "name=x", "resume=null", cwd=place)
    assert done.returncode == 0, done.stderr
    tab = Tab(place / "outputs" / "x")
    other = next(group for group in tab.groups if group != name)
    assert len(tab.groups) == 2
    assert [tab.values(run)["optimizer.lr"] for run in (name, other)] == [0.001, 0.5]
    values = tab.values(name)
    assert values["data"] == "digits"
    assert values["schedule"] == "cosine"
    assert values["ema.decays"] == "0.995"
    assert values["trainer.batch_size"] == 8
    last = recorded(place / "outputs" / "x" / other.partition("/")[0])
    assert tab.figures(other)["loss/heldout"] == pytest.approx(last[-1]["eval/heldout"])
    assert tab.groups[name].sessions[0].status == api_pb2.STATUS_SUCCESS
    assert {column.name for column in tab.experiment.hparam_infos} >= {"optimizer.lr", "seed", "weighting"}


def test_a_run_of_an_earlier_version_goes_on_under_the_names_that_it_has(tmp_path: Path):
    assert train(*EVALUATED, "trainer.steps=2", "name=x", cwd=tmp_path).returncode == 0
    run = only(tmp_path / "outputs" / "x")
    lines = [{key: line[key] for key in line if key not in ("epoch", "images", "time/unix")} for line in recorded(run)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    (run / "tensorboard" / hparams_file.FIRST_FILE).unlink()
    done = train(*EVALUATED, "trainer.steps=4", "name=x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/heldout")] == [4]
    assert [event.step for event in events.Scalars("loss/mean")] == [2, 4]
    assert [line["step"] for line in recorded(run)] == [2, 2, 4, 4]
