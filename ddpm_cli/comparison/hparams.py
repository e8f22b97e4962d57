"""A sweep in TensorBoard's HParams tab: a session for each run, with its overrides; its figures are the run's curves.

A session lies where the run's own events are, so no curve is there twice. The end of the sweep writes it anew.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from ddpm_cli.comparison.run import FAILED, FINISHED, RUNNING, Run
from ddpm_cli.comparison.series import EVALUATED, HELDOUT, IMAGES_PER_SECOND, LOSS
from ddpm_cli.io import durable, hparams_file, run_dir
from ddpm_cli.io.hparams_file import FILE, Value
from ddpm_cli.io.tensorboard_tags import has_tags, tag

_TITLES = {LOSS: "loss", HELDOUT: "held-out loss", IMAGES_PER_SECOND: "images per second"}
_STATUS = {FINISHED: hparams_file.SUCCESS, FAILED: hparams_file.FAILURE, RUNNING: hparams_file.RUNNING}


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
        content = hparams_file.session(of_run, experiment, begun=_begun(run), status=_STATUS.get(run.state))
        durable.replace(folder / FILE, content)


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
    names = dict.fromkeys(name for run in of for name in run.series if name.startswith(EVALUATED))
    measured = [name for name in (LOSS, *names, IMAGES_PER_SECOND) if any(name in run.series for run in of)]
    as_now = any(has_tags(run.directory) for run in of if run.series)
    return hparams_file.experiment(
        [hparams_file.column(key, distinct[key]) for key in swept or distinct],
        {tag(name) if as_now else name: _TITLES.get(name, name.removeprefix(EVALUATED)) for name in measured},
    )


def _begun(run: Run) -> float:
    if run.identity is None:
        return 0.0
    with suppress(ValueError, OverflowError):  # it may be anybody's
        return datetime.fromisoformat(run.identity.begun).timestamp()
    return 0.0
