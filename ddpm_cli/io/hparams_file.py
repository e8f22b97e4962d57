"""A session of TensorBoard's HParams tab, as a file beside a run's own events, which begin with `events`.

    RUN/tensorboard/hparams.tfevents     of a run of a sweep, written when that ends
    RUN/tensorboard/_hparams.tfevents    of any other run, written when it begins, and again when it ends

It holds the values of the session and what the tab has columns for; the figures in these are the run's curves.
TensorBoard reads files by their names, and some versions never look at one again once they have come to the next: while
a run goes on, nothing may stand behind its events.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from ddpm_cli.io.event_files import file_of

# protoc makes their names while they are imported: a type checker sees none of them.
_summary: Any = summary_pb2
_api: Any = api_pb2
_plugin: Any = plugin_data_pb2

FILE, FIRST_FILE = "hparams.tfevents", "_hparams.tfevents"  # TensorBoard reads what has `tfevents` in its name
SUCCESS, FAILURE, RUNNING = _api.STATUS_SUCCESS, _api.STATUS_FAILURE, _api.STATUS_RUNNING

Value = float | bool | str


def experiment(columns: Sequence[Any], figures: Mapping[str, str]) -> Any:
    """What the tab has columns for.

    Args:
        columns: of values, as `column` makes them.
        figures: their titles, by tag.
    """
    return _api.Experiment(
        time_created_secs=time.time(),
        hparam_infos=columns,
        metric_infos=[
            _api.MetricInfo(name=_api.MetricName(tag=tag), display_name=title) for tag, title in figures.items()
        ],
    )


def column(key: str, values: Sequence[Value]) -> Any:
    """A column of values of one type, of which these are there."""
    made = _api.HParamInfo(name=key, differs=len(set(values)) > 1)
    if isinstance(values[0], float):
        made.type = _api.DATA_TYPE_FLOAT64
        made.domain_interval.min_value, made.domain_interval.max_value = min(values), max(values)
    else:
        is_bool = isinstance(values[0], bool)
        made.type = _api.DATA_TYPE_BOOL if is_bool else _api.DATA_TYPE_STRING
        made.domain_discrete.extend(dict.fromkeys(values))
    return made


def session(values: Mapping[str, Value], columns: Any, *, begun: float, status: Any = None) -> bytes:
    """The file of a session.

    Args:
        columns: as `experiment` makes them.
        begun: when, in seconds since 1970.
        status: SUCCESS, FAILURE or RUNNING; None: that is not known.
    """
    start = _plugin.SessionStartInfo(start_time_secs=begun)
    for key, value in values.items():
        kind = (
            "bool_value" if isinstance(value, bool) else "number_value" if isinstance(value, float) else "string_value"
        )
        setattr(start.hparams[key], kind, value)
    contents = {
        metadata.EXPERIMENT_TAG: {"experiment": columns},
        metadata.SESSION_START_INFO_TAG: {"session_start_info": start},
    }
    if status is not None:
        end = _plugin.SessionEndInfo(status=status, end_time_secs=time.time())
        contents[metadata.SESSION_END_INFO_TAG] = {"session_end_info": end}
    return file_of(_tagged(tag, content) for tag, content in contents.items())


def _tagged(tag: str, content: Mapping[str, Any]) -> Any:
    data = metadata.create_summary_metadata(_plugin.HParamsPluginData(**content))
    return _summary.Summary(value=[_summary.Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)])
