"""The end of a sweep: its comparison, and its sessions as TensorBoard's own backend reads them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import TINY, sample, train
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from torch.utils.tensorboard import summary
from written_runs import config, metrics, result, write_run

from ddpm_cli.comparison import hparams
from ddpm_cli.comparison.of_sweep import compare_sweep
from ddpm_cli.comparison.series import EVALUATED
from ddpm_cli.io.event_files import Events
from ddpm_cli.training.cut_back import cut_back

TINY_SWEEP = [*TINY, "trainer.steps=2", "trainer.preview_every=2", "-m", "hydra.sweep.dir=sweep"]


class Tab:
    """What the HParams tab gets of a directory."""

    def __init__(self, directory: Path):
        self.multiplexer = EventMultiplexer().AddRunsFromDirectory(str(directory))
        self.multiplexer.Reload()
        context = Context(TBContext(data_provider=MultiplexerDataProvider(self.multiplexer, str(directory))))
        request = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=range(4))
        handler = list_session_groups.Handler(RequestContext(), context, "", request)
        self.groups = {group.name: group for group in handler.run().session_groups}
        metadata = context.hparams_metadata(RequestContext(), "")
        self.experiment = context.experiment_from_metadata(RequestContext(), "", True, metadata, [])

    def values(self, name: str) -> dict[str, object]:
        hparams = self.groups[name].hparams.items()
        return {key: getattr(value, value.WhichOneof("kind")) for key, value in hparams}

    def figures(self, name: str) -> dict[str, float]:
        (session,) = self.groups[name].sessions
        return {value.name.tag: value.value for value in session.metric_values}


def written(home: Path, number: int, overrides: Sequence[str], losses: list[float], **ending) -> Path:
    """A run of a sweep with metrics and TensorBoard's events of the same."""
    record = result(list(overrides), None if ending else losses[-1], **ending)
    lines = metrics(losses, heldout=[loss + 1 for loss in losses])
    run = write_run(home / str(number), config(), lines, result=record)
    events = Events(run / "tensorboard")
    for line in lines:
        for name, value in line.items():
            if name != "step":
                events.add(summary.scalar(name, value), line["step"])
    events.file.close()
    return run


def test_tensorboard_shows_a_session_for_each_run_and_no_curve_twice(tmp_path: Path):
    runs = [
        written(tmp_path, 0, ["seed=1", "optimizer.lr=1e-3", "data.flip=true", "schedule=cosine"], [1.0, 0.5]),
        written(tmp_path, 1, ["seed=1", "optimizer.lr=2e-3", "data.flip=false", "schedule='linear'"], [1.0, 0.25]),
        written(
            tmp_path, 2, ["seed=1", "optimizer.lr=5", "data.flip=true", "schedule=cosine"], [3.0], error="not finite"
        ),
    ]
    before = Tab(tmp_path).multiplexer.Runs()
    compared = compare_sweep(tmp_path, runs)
    assert compared is not None
    assert compared.page == tmp_path / "compare.html"
    tab = Tab(tmp_path)
    assert sorted(tab.groups) == [f"{i}/tensorboard" for i in range(3)] == sorted(before)
    assert tab.values("1/tensorboard") == {"seed": 1, "optimizer.lr": 0.002, "data.flip": False, "schedule": "linear"}
    names = {"loss/mean": 0.25, "eval/heldout": 1.25, "time/images_per_second": 100.0}
    assert tab.figures("1/tensorboard") == pytest.approx(names)
    status = [tab.groups[f"{i}/tensorboard"].sessions[0].status for i in range(3)]
    assert status == [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE]
    columns = {column.name: column for column in tab.experiment.hparam_infos}
    assert columns.keys() == {"optimizer.lr", "data.flip", "schedule"}, "the seed is the same in all"
    assert columns["optimizer.lr"].domain_interval.max_value == 5
    assert [column.string_value for column in columns["schedule"].domain_discrete.values] == ["cosine", "linear"]
    assert [info.name.tag for info in tab.experiment.metric_infos] == list(names)
    for run, tags in tab.multiplexer.Runs().items():
        assert tags["tensors"] or tags["scalars"]
        assert {tag for kind in tags.values() if isinstance(kind, list) for tag in kind} - {
            tag for kind in before[run].values() if isinstance(kind, list) for tag in kind
        } == {f"_hparams_/{name}" for name in ("experiment", "session_start_info", "session_end_info")}


def test_the_end_of_a_sweep_that_went_on_takes_the_place_of_its_first_end(tmp_path: Path):
    """Also after a run of it has been resumed, whose own events are then put together anew."""
    runs = [
        written(tmp_path, 0, ["seed=1"], [1.0, 0.5]),
        written(tmp_path, 1, ["seed=2"], [1.0], error="SIGTERM: stopped at step 10", stopped=True),
    ]
    assert compare_sweep(tmp_path, runs) is not None
    assert Tab(tmp_path).groups["1/tensorboard"].sessions[0].status == api_pb2.STATUS_UNKNOWN
    kept = (runs[1] / "tensorboard" / hparams.FILE).read_bytes()
    cut_back(runs[1], 10, metrics="metrics.jsonl", tensorboard="tensorboard", previews="previews")
    assert (runs[1] / "tensorboard" / hparams.FILE).read_bytes() == kept
    (runs[1] / "result.json").unlink()
    write_run(tmp_path / "copy", None, [], preview=None, result=result(["seed=2"], 0.9))
    (tmp_path / "copy" / "result.json").rename(runs[1] / "result.json")
    assert compare_sweep(tmp_path, runs) is not None
    tab = Tab(tmp_path)
    assert tab.groups["1/tensorboard"].sessions[0].status == api_pb2.STATUS_SUCCESS
    assert tab.figures("1/tensorboard")["loss/mean"] == 1.0
    assert len(list((runs[1] / "tensorboard").iterdir())) == 2


def test_values_of_several_types_are_texts(tmp_path: Path):
    runs = [
        written(tmp_path, i, [f"trainer.grad_clip={value}", f"name={i}"], [1.0])
        for i, value in enumerate(("1.0", "null", "true"))
    ]
    assert compare_sweep(tmp_path, runs) is not None
    tab = Tab(tmp_path)
    found = [tab.values(f"{i}/tensorboard")["trainer.grad_clip"] for i in range(3)]
    assert found == ["1", "null", "true"]


def test_a_sweep_ends_by_comparing_its_runs_and_none_fails_of_it(tmp_path: Path):
    done = train(*TINY_SWEEP, "optimizer.lr=1e-3,1e-4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "  compare  sweep/compare.html"
    tab = Tab(tmp_path / "sweep")
    assert [tab.values(f"{i}/tensorboard")["optimizer.lr"] for i in range(2)] == [0.001, 0.0001]
    assert all(tab.figures(f"{i}/tensorboard")["loss/mean"] > 0 for i in range(2))
    text = (tmp_path / "sweep" / "compare.csv").read_text(encoding="utf-8").splitlines()
    assert [line.partition(",")[0] for line in text] == ["run", "0", "1"]
    (tmp_path / "sweep" / "compare.html").write_text("mine", encoding="utf-8")
    again = train(*TINY_SWEEP, "optimizer.lr=1e-3,1e-4", cwd=tmp_path)
    assert again.returncode == 0
    assert "compare  not written: sweep/compare.html was not written by ddpm-compare" in again.stdout
    assert (tmp_path / "sweep" / "compare.html").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_where_there_is_nothing_to_compare_nothing_is_written(tmp_path: Path, labelled: Path):
    failed = train(*TINY_SWEEP, "model.dropout=7,8", cwd=tmp_path)
    assert failed.returncode == 1
    drawn = sample("-m", f"ckpt={labelled}", "n=1", "sampler.steps=1,2", "hydra.sweep.dir=drawn", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "compare" not in failed.stdout + drawn.stdout
    assert not list(tmp_path.rglob("compare.*"))


def test_columns_have_the_names_under_which_the_runs_are_shown(tmp_path: Path):
    """Those of a version that knows epochs; see `ddpm_cli.io.tensorboard_tags`."""
    runs = [written(tmp_path, i, [f"seed={i}"], [1.0]) for i in range(2)]
    for run in runs:
        file = run / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8") + '{"step": 20, "eval/fd_classifier": 3.5}\n'
        file.write_text(lines.replace('"step"', '"epoch": 1.0, "step"'), encoding="utf-8")
    compare_sweep(tmp_path, runs)
    found = [(info.name.tag, info.display_name) for info in Tab(tmp_path).experiment.metric_infos]
    assert found == [
        ("loss/mean", "loss"),
        ("loss/heldout", "held-out loss"),
        ("quality/fd_classifier", "fd_classifier"),
        ("time/images_per_second", "images per second"),
    ]


def test_curves_of_evaluations_while_training_are_columns_too(tmp_path: Path):
    assert EVALUATED == "eval/"
    runs = [written(tmp_path, i, [f"seed={i}"], [1.0]) for i in range(2)]
    for run in runs:
        with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 20, "eval/fd_classifier": 3.5}\n')
    compare_sweep(tmp_path, runs)
    assert [info.display_name for info in Tab(tmp_path).experiment.metric_infos] == [
        *("loss", "held-out loss", "fd_classifier", "images per second")
    ]
