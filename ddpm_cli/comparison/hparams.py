"""A sweep in TensorBoard's HParams tab: a session for each run, with its overrides; its figures are the run's curves.

A session lies where the run's own events are, so no curve is there twice: RUN/tensorboard/hparams.tfevents. A run that
is resumed leaves it alone (its own files begin with `events`), and the end of the sweep writes it anew.
"""

import io
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from ddpm_cli.comparison.run import FAILED, FINISHED, RUNNING, Run
from ddpm_cli.comparison.series import EVALUATED, HELDOUT, IMAGES_PER_SECOND, LOSS
from ddpm_cli.io import durable, run_dir

FILE = "hparams.tfevents"  # TensorBoard reads what has `tfevents` in its name
_TITLES = {LOSS: "loss", HELDOUT: "held-out loss", IMAGES_PER_SECOND: "images per second"}
_STATUS = {
    FINISHED: api_pb2.STATUS_SUCCESS,  # pyright: ignore[reportAttributeAccessIssue]
    FAILED: api_pb2.STATUS_FAILURE,  # pyright: ignore[reportAttributeAccessIssue]
    RUNNING: api_pb2.STATUS_RUNNING,  # pyright: ignore[reportAttributeAccessIssue]
}

Value = float | bool | str


def write_hparams(runs: Sequence[Run]) -> None:
    """Write a session for each run of a sweep that has events. Raises OSError if one cannot be written."""
    described = [
        (run, folder)
        for run in runs
        if run.overrides is not None
        and (folder := run.directory / run_dir.TENSORBOARD).is_dir()
        and not folder.is_symlink()
    ]
    values = _of_one_type([_values(run.overrides or []) for run, _ in described])
    experiment = _experiment(values, [run for run, _ in described])
    for (run, folder), of_run in zip(described, values, strict=True):
        durable.replace(folder / FILE, _events(run, of_run, experiment))


def _values(overrides: Sequence[str]) -> dict[str, Value]:
    pairs = [text.lstrip("+").partition("=") for text in overrides if not text.startswith("~")]
    return {key: _value(text.strip()) for key, _, text in pairs}


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _of_one_type(runs: Sequence[dict[str, Value]]) -> list[dict[str, Value]]:
    """Values of a key that are not of one type everywhere become texts, as TensorBoard has one type for each."""
    types: dict[str, set[type]] = {}
    for values in runs:
        for key, value in values.items():
            types.setdefault(key, set()).add(type(value))
    return [{key: value if len(types[key]) == 1 else _text(value) for key, value in values.items()} for values in runs]


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"


def _experiment(runs: Sequence[Mapping[str, Value]], of: Sequence[Run]) -> api_pb2.Experiment:  # pyright: ignore[reportAttributeAccessIssue]
    """What the tab has columns for: the overrides that were swept (all, if none differ), and what came out."""
    distinct = {key: [values[key] for values in runs if key in values] for values in runs for key in values}
    swept = [key for key, found in distinct.items() if len(set(found)) > 1 or len(found) < len(runs)]
    tags = dict.fromkeys(name for run in of for name in run.series if name.startswith(EVALUATED))
    measured = [name for name in (LOSS, *tags, IMAGES_PER_SECOND) if any(name in run.series for run in of)]
    return api_pb2.Experiment(  # pyright: ignore[reportAttributeAccessIssue]
        time_created_secs=time.time(),
        hparam_infos=[_column(key, distinct[key]) for key in swept or distinct],
        metric_infos=[
            api_pb2.MetricInfo(  # pyright: ignore[reportAttributeAccessIssue]
                name=api_pb2.MetricName(tag=name),  # pyright: ignore[reportAttributeAccessIssue]
                display_name=_TITLES.get(name, name.removeprefix(EVALUATED)),
            )
            for name in measured
        ],
    )


def _column(key: str, values: Sequence[Value]) -> api_pb2.HParamInfo:  # pyright: ignore[reportAttributeAccessIssue]
    column = api_pb2.HParamInfo(name=key, differs=len(set(values)) > 1)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(values[0], float):
        column.type = api_pb2.DATA_TYPE_FLOAT64  # pyright: ignore[reportAttributeAccessIssue]
        column.domain_interval.min_value, column.domain_interval.max_value = min(values), max(values)
    else:
        is_bool = isinstance(values[0], bool)
        column.type = api_pb2.DATA_TYPE_BOOL if is_bool else api_pb2.DATA_TYPE_STRING  # pyright: ignore[reportAttributeAccessIssue]
        column.domain_discrete.extend(dict.fromkeys(values))
    return column


def _events(run: Run, values: Mapping[str, Value], experiment: api_pb2.Experiment) -> bytes:  # pyright: ignore[reportAttributeAccessIssue]
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=_begun(run))  # pyright: ignore[reportAttributeAccessIssue]
    for key, value in values.items():
        kind = (
            "bool_value" if isinstance(value, bool) else "number_value" if isinstance(value, float) else "string_value"
        )
        setattr(start.hparams[key], kind, value)
    contents = {
        metadata.EXPERIMENT_TAG: {"experiment": experiment},
        metadata.SESSION_START_INFO_TAG: {"session_start_info": start},
    }
    if run.state in _STATUS:
        end = plugin_data_pb2.SessionEndInfo(status=_STATUS[run.state], end_time_secs=time.time())  # pyright: ignore[reportAttributeAccessIssue]
        contents[metadata.SESSION_END_INFO_TAG] = {"session_end_info": end}
    file = io.BytesIO()
    records = RecordWriter(file)
    records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    for tag, content in contents.items():
        data = plugin_data_pb2.HParamsPluginData(**content)  # pyright: ignore[reportAttributeAccessIssue]
        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
        records.write(Event(wall_time=time.time(), summary=Summary(value=[value])).SerializeToString())
    return file.getvalue()


def _begun(run: Run) -> float:
    with suppress(ValueError, OverflowError, AttributeError):
        return datetime.fromisoformat(run.identity.begun).timestamp()  # pyright: ignore[reportOptionalMemberAccess]
    return 0.0
