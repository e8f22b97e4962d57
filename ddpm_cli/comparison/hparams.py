"""A sweep in TensorBoard's HParams tab: a session for each run, with its overrides; its figures are the run's curves.

A session lies where the run's own events are, so no curve is there twice: RUN/tensorboard/hparams.tfevents. A run that
is resumed leaves it alone (its own files begin with `events`), and the end of the sweep writes it anew.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from ddpm_cli.comparison.run import FAILED, FINISHED, RUNNING, Run
from ddpm_cli.comparison.series import EVALUATED, HELDOUT, IMAGES_PER_SECOND, LOSS
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.event_files import file_of

# protoc makes their names while they are imported: a type checker sees none of them.
_summary: Any = summary_pb2
_api: Any = api_pb2
_plugin: Any = plugin_data_pb2

FILE = "hparams.tfevents"  # TensorBoard reads what has `tfevents` in its name
_TITLES = {LOSS: "loss", HELDOUT: "held-out loss", IMAGES_PER_SECOND: "images per second"}
_STATUS = {
    FINISHED: _api.STATUS_SUCCESS,
    FAILED: _api.STATUS_FAILURE,
    RUNNING: _api.STATUS_RUNNING,
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
    """Turn the values of a key into texts if their types differ, as TensorBoard has one type for each key."""
    types: dict[str, set[type]] = {}
    for values in runs:
        for key, value in values.items():
            types.setdefault(key, set()).add(type(value))
    return [{key: value if len(types[key]) == 1 else _text(value) for key, value in values.items()} for values in runs]


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"


def _experiment(runs: Sequence[Mapping[str, Value]], of: Sequence[Run]) -> Any:
    """The columns of the tab: the overrides that were swept (all, if none differ), and the results."""
    distinct = {key: [values[key] for values in runs if key in values] for values in runs for key in values}
    swept = [key for key, found in distinct.items() if len(set(found)) > 1 or len(found) < len(runs)]
    tags = dict.fromkeys(name for run in of for name in run.series if name.startswith(EVALUATED))
    measured = [name for name in (LOSS, *tags, IMAGES_PER_SECOND) if any(name in run.series for run in of)]
    return _api.Experiment(
        time_created_secs=time.time(),
        hparam_infos=[_column(key, distinct[key]) for key in swept or distinct],
        metric_infos=[
            _api.MetricInfo(
                name=_api.MetricName(tag=name),
                display_name=_TITLES.get(name, name.removeprefix(EVALUATED)),
            )
            for name in measured
        ],
    )


def _column(key: str, values: Sequence[Value]) -> Any:
    column = _api.HParamInfo(name=key, differs=len(set(values)) > 1)
    if isinstance(values[0], float):
        column.type = _api.DATA_TYPE_FLOAT64
        column.domain_interval.min_value, column.domain_interval.max_value = min(values), max(values)
    else:
        is_bool = isinstance(values[0], bool)
        column.type = _api.DATA_TYPE_BOOL if is_bool else _api.DATA_TYPE_STRING
        column.domain_discrete.extend(dict.fromkeys(values))
    return column


def _events(run: Run, values: Mapping[str, Value], experiment: Any) -> bytes:
    start = _plugin.SessionStartInfo(start_time_secs=_begun(run))
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
        end = _plugin.SessionEndInfo(status=_STATUS[run.state], end_time_secs=time.time())
        contents[metadata.SESSION_END_INFO_TAG] = {"session_end_info": end}
    return file_of(_tagged(tag, content) for tag, content in contents.items())


def _tagged(tag: str, content: Mapping[str, Any]) -> Any:
    data = metadata.create_summary_metadata(_plugin.HParamsPluginData(**content))
    return _summary.Summary(value=[_summary.Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)])


def _begun(run: Run) -> float:
    if run.identity is None:
        return 0.0
    with suppress(ValueError, OverflowError):  # it may be anybody's
        return datetime.fromisoformat(run.identity.begun).timestamp()
    return 0.0
