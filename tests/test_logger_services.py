"""Weights & Biases and MLflow, the real libraries without a network: what of a run lies there once it is done."""

import json
import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, assert_one_message, only, start, train, wait_for
from mlflow import MlflowClient
from test_loggers import SHORT, warnings
from wandb.proto.wandb_internal_pb2 import Record

from ddpm_cli.io.metrics_file import PLACE

RUN = [*TINY, "trainer.steps=6", "trainer.checkpoint_every=2", "trainer.preview_every=4", "name=x"]
WANDB = ["logger=[tensorboard,wandb]", "logger.wandb.mode=offline"]
MLFLOW = ["logger=[tensorboard,mlflow]", "logger.mlflow.tracking_uri=mlruns"]
FILE_STORE = {"MLFLOW_ALLOW_FILE_STORE": "true"}
SECRET = "0123456789abcdef0123456789abcdef01234567"  # as long as a key of theirs
CURVES = {"loss/mean", "train/grad_norm", "train/learning_rate", "time/images_per_second"}


def records(file: Path) -> Iterator[Record]:
    """The records of a .wandb file, which is a log as LevelDB has it: blocks of 32 kB, records in pieces."""
    content, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if kind == 0:  # what a kill has left unwritten
            return
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole one, the last piece of one
            yield Record.FromString(whole)
            whole = b""


def wandb_files(directory: Path) -> list[Path]:
    return sorted((directory / "loggers" / "wandb").glob("offline-run-*/*.wandb"))


def history(directory: Path) -> list[dict[str, Any]]:
    """All that was logged with Weights & Biases, in the order in which it was, over all its files."""
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for file in wandb_files(directory)
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]


def steps_of(found: list[dict[str, Any]], key: str) -> list[int]:
    return [line["step"] for line in found if key in line]


def recorded(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def of_kind(directory: Path, kind: str) -> list[Any]:
    found = (record for file in wandb_files(directory) for record in records(file))
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


# Weights & Biases ----------------------------------------------------------------------------------------------------


def test_wandb_has_curves_pictures_configuration_and_summary(tmp_path: Path):
    options = ["logger.wandb.project=digits", "logger.wandb.tags=[a,b]", "logger.wandb.entity=us"]
    evaluated = ["trainer.eval_every=3", "data.holdout=64", "trainer.eval_images=0", "objective=heldout"]
    done = train(*RUN, *WANDB, *options, *evaluated, cwd=tmp_path, WANDB_API_KEY=SECRET, OWN_TOKEN=SECRET)
    assert done.returncode == 0, done.stderr
    directory = only(tmp_path / "outputs" / "x")
    assert re.search(r"wandb    to send it: wandb sync .*loggers/wandb/offline-run-\*", done.stdout)
    found = history(directory)
    assert all(steps_of(found, curve) == [2, 4, 6] for curve in CURVES)
    assert steps_of(found, "eval/heldout") == [3, 6]
    assert steps_of(found, "preview") == [4, 6]
    for line in recorded(directory):
        known = {key: value for key, value in line.items() if value is not None and key not in PLACE}
        assert known.items() <= _merged(found, line["step"]).items()
    (about,) = of_kind(directory, "run")
    assert (about.project, about.entity, list(about.tags), about.run_group) == ("digits", "us", ["a", "b"], "")
    assert about.run_id == json.loads((directory / "run.json").read_text())["id"]
    config = {update.key: json.loads(update.value_json) for update in about.config.update}
    assert config["schedule"] == {"_target_": "ddpm_cli.diffusion.schedule.cosine"} | config["schedule"]
    assert config["trainer"]["batch_size"] == 8
    updates = [item for summary in of_kind(directory, "summary") for item in summary.update]
    summary = {item.key: json.loads(item.value_json) for item in updates}
    heldout = [line["eval/heldout"] for line in recorded(directory) if "eval/heldout" in line]
    assert summary["objective"] == summary["final/heldout"] == heldout[-1]
    (ended,) = of_kind(directory, "exit")
    assert ended.exit_code == 0
    pictures = {path.read_bytes() for path in directory.glob("loggers/wandb/*/files/media/images/preview*.png")}
    assert len(pictures) == 2
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def _merged(found: list[dict[str, Any]], step: int) -> dict[str, Any]:
    return {key: value for line in found if line["step"] == step for key, value in line.items()}


def stopped_at(place: Path, line: str, *arguments: str, number: int) -> Path:
    """A run in `place` that was sent a signal once its metrics held a line; its directory."""
    process = start("train", *arguments, cwd=place)

    def reached() -> bool:
        return any(line in file.read_text() for file in place.glob("outputs/x/*/metrics.jsonl"))

    wait_for(reached, process)
    process.send_signal(number)
    _, err = process.communicate(120)
    assert process.returncode == (75 if number == signal.SIGTERM else -number), err
    return only(place / "outputs" / "x")


LONG = [*TINY, "trainer.steps=120", "trainer.checkpoint_every=20", "trainer.preview_every=40", "name=x"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_or_killed_goes_on_as_the_same_one_and_shows_no_step_twice(number, tmp_path: Path):
    arguments = [*LONG, *WANDB, "logger=[tensorboard,wandb,mlflow]", *MLFLOW[1:]]
    directory = stopped_at(tmp_path, '"step": 50', *arguments, number=number)
    if number == signal.SIGTERM:
        said = (directory / "train.log").read_text()
        assert "'logger=[tensorboard,wandb,mlflow]' logger.wandb.mode=offline logger.mlflow.tracking_uri=mlruns" in said
        assert of_kind(directory, "exit")[0].exit_code == 75
    done = train(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed  at step" in done.stdout
    assert not warnings((directory / "train.log").read_text().partition("resumed ")[2])
    first, second = of_kind(directory, "run")
    assert first.run_id == second.run_id
    found = history(directory)
    expected = [line["step"] for line in recorded(directory) if "loss/mean" in line]
    assert expected == list(range(2, 121, 2))
    for curve in CURVES:
        assert steps_of(found, curve) == expected, curve
    assert steps_of(found, "preview") == [40, 80, 120]
    client, run_id = only_mlflow_run(tmp_path)
    for curve in CURVES:
        assert [metric.step for metric in client.get_metric_history(run_id, curve)] == expected, curve
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_resume_that_does_not_say_so_goes_on_without_and_one_that_does_catches_up(tmp_path: Path):
    directory = stopped_at(tmp_path, '"step": 50', *LONG, *WANDB, number=signal.SIGTERM)
    last = steps_of(history(directory), "loss/mean")[-1]
    done = train(f"resume={directory}", "trainer.steps=122", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (warned,) = [line for line in warnings((directory / "train.log").read_text()) if "logger " in line]
    assert warned.endswith("logger=[tensorboard,wandb] continues there")
    assert steps_of(history(directory), "loss/mean")[-1] == last
    done = train(f"resume={directory}", "trainer.steps=130", *WANDB, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps_of(history(directory), "loss/mean") == list(range(2, 131, 2))
    forked = train(f"fork={directory}", "trainer.steps=132", *WANDB, "name=y", cwd=tmp_path)
    assert forked.returncode == 0, forked.stderr
    other = only(tmp_path / "outputs" / "y")
    assert steps_of(history(other), "loss/mean") == [132]
    assert of_kind(other, "run")[0].run_id != of_kind(directory, "run")[0].run_id


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_a_group(tmp_path: Path):
    sweep = ["-m", "seed=1,2", "hydra.sweep.dir=sweeps/mine", "logger=[wandb,mlflow]", *WANDB[1:], *MLFLOW[1:]]
    done = train(*RUN[:-1], "trainer.steps=2", *sweep, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    runs = [of_kind(tmp_path / "sweeps" / "mine" / number, "run")[0] for number in ("0", "1")]
    assert {run.run_group for run in runs} == {"mine"}
    assert runs[0].run_id != runs[1].run_id
    _, runs = mlflow_runs(tmp_path)
    assert [run.data.tags["ddpm_cli.sweep"] for run in runs] == ["mine", "mine"]
    assert {run.data.params["seed"] for run in runs} == {"1", "2"}
    assert not (tmp_path / "sweeps" / "mine" / "0" / "tensorboard").exists()


# MLflow --------------------------------------------------------------------------------------------------------------


def test_mlflow_has_curves_pictures_configuration_and_summary(tmp_path: Path):
    options = ["logger.mlflow.experiment=digits", "logger.mlflow.tags=[team:vision,'a b:c:d']"]
    done = train(
        *RUN, *MLFLOW, *options, "trainer.eval_every=3", "data.holdout=64", "trainer.eval_images=0", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    directory = only(tmp_path / "outputs" / "x")
    client, (found,) = mlflow_runs(tmp_path, "digits")
    assert f"mlflow   experiment digits, run {found.info.run_id}" in done.stdout
    for curve in CURVES:
        history = client.get_metric_history(found.info.run_id, curve)
        assert [(metric.step, metric.value) for metric in history] == [
            (line["step"], line[curve]) for line in recorded(directory) if curve in line
        ]
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "eval/heldout")] == [3, 6]
    assert (
        found.data.metrics["objective"]
        == [line["loss/mean"] for line in recorded(directory) if "loss/mean" in line][-1]
    )
    assert found.data.params["schedule"] == "cosine"
    assert found.data.params["trainer.batch_size"] == "8"
    assert (found.data.tags["team"], found.data.tags["a b"]) == ("vision", "c:d")
    assert found.info.run_name == f"x/{directory.name}"
    assert found.info.status == "FINISHED"
    shown = sorted(Path(found.info.artifact_uri.removeprefix("file://"), "preview").iterdir())
    assert [path.read_bytes() for path in shown] == [
        path.read_bytes() for path in sorted((directory / "previews").iterdir())
    ]


def mlflow_runs(place: Path, experiment: str = "ddpm-cli") -> tuple[MlflowClient, list[Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(str(place / "mlruns"))
        found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client, list(client.search_runs([found.experiment_id]))


def only_mlflow_run(place: Path) -> tuple[MlflowClient, str]:
    client, (found,) = mlflow_runs(place)
    return client, found.info.run_id


# What cannot be, and what is not there -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["logger=wandbb"], r"logger=wandbb: no such option \(did you mean 'wandb'\?\)"),
        (["logger=[tensorboard,mflow]"], "logger=mflow: no such option"),
        (
            ["logger.wandb.project=a"],
            r"logger.wandb.project: wandb is not chosen; logger=\[tensorboard,wandb\]",
        ),
        (["logger=wandb", "logger.wandb.projekt=a"], r"logger.wandb.projekt: no such option \(did you mean 'project'"),
        (["logger=wandb", "logger.wandb.mode=ofline"], "logger.wandb.mode: expected one of online, offline"),
        (["logger=wandb", "logger.wandb.tags=[[a]]"], "logger.wandb.tags: expected a list of texts"),
        (["logger=mlflow", "logger.mlflow.tags=[a]"], "logger.mlflow: tags must be KEY:VALUE, got 'a'"),
        (
            ["logger=mlflow", "logger.mlflow.tracking_uri='http://me:pw@there'"],
            "logger.mlflow: tracking_uri contains a pass",
        ),
        (["logger=3"], "logger=3: no such option"),
    ],
)
def test_bad_options_are_one_message_and_nothing_is_written(arguments: list[str], says: str, tmp_path: Path):
    assert_one_message(train(*arguments, cwd=tmp_path), "train", says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_a_network_and_without_a_key_a_run_warns_once_and_ends_well(tmp_path: Path):
    nowhere = "http://127.0.0.1:9"
    environment = {"WANDB_BASE_URL": nowhere, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "HOME": str(tmp_path)}
    chosen = ["logger=[tensorboard,wandb,mlflow]", f"logger.mlflow.tracking_uri='{nowhere}'"]
    short = SHORT.replace("2.0", "20.0") + "from ddpm_cli.train import main; main()"
    done = train(*RUN, *chosen, cwd=tmp_path, code=short, **environment)
    assert done.returncode == 0, done.stderr
    directory = only(tmp_path / "outputs" / "x")
    warned = warnings((directory / "train.log").read_text())
    assert len(warned) == 2, warned
    for name in ("wandb", "mlflow"):
        assert [line for line in warned if re.search(rf"WARNING {name} +has (failed|not sent)", line)], warned
    assert (directory / "checkpoints" / "step_00000006").is_dir()
