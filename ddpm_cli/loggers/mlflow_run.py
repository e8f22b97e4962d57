"""MLflow: a tracking server, a database, or a folder of files."""

import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ddpm_cli.config.extras import require
from ddpm_cli.loggers.logger import Begun, Ending, RunInfo

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_RUN, _SWEEP = "ddpm_cli.run", "ddpm_cli.sweep"  # tags
_FILES = "MLFLOW_ALLOW_FILE_STORE"  # without it the library refuses folders, which are no longer developed
_AT_ONCE = 100  # parameters: more the servers refuse
_LONGEST = 500  # characters of a parameter: more some of them refuse


class MLflow:
    """A run of MLflow, which a resumed run goes on with.

    Args:
        tracking_uri: a server (http://...), a database (sqlite:///...), or a folder; None: MLFLOW_TRACKING_URI, or what
            the library takes when nothing is said.
        experiment: made if there is none of that name; None: MLFLOW_EXPERIMENT_NAME, or ddpm-cli.
        tags: of the run, each KEY:VALUE.

    Raises:
        ValueError: if the library is not installed, or a value cannot be.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        tags: Sequence[str] = (),
    ):
        require("mlflow", "mlflow")
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ddpm-cli"
        self.tags = dict(_tag(tag) for tag in tags)
        if tracking_uri is not None and urlsplit(tracking_uri).password is not None:
            raise ValueError(
                "tracking_uri contains a password, which the run's records would keep; set MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD instead, or the whole address as MLFLOW_TRACKING_URI"
            )
        _check_driver(self.uri)
        self._client: Any = None
        self._run_id = ""

    @property
    def place(self) -> str:
        return f"{self.uri} {self.experiment}"

    def begin(self, run: RunInfo) -> Begun:
        if _is_folder(self.uri):
            os.environ.setdefault(_FILES, "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(self.uri and os.path.expanduser(self.uri))
        if run.earlier is not None:
            self._run_id = run.earlier
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._new_run(run)
        found = self._client.get_run(self._run_id).info
        return Begun(self._run_id, f"experiment {self.experiment}, run {self._run_id} ({found.artifact_uri})")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def image(self, step: int, name: str, png: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, f"step_{step:08d}.png")
            file.write_bytes(png)
            self._client.log_artifact(self._run_id, str(file), artifact_path=name)

    def end(self, ending: Ending) -> None:
        if ending.summary:
            self.scalars(ending.step, ending.summary)
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[ending.state]
        self._client.set_terminated(self._run_id, status=status)

    def _new_run(self, run: RunInfo) -> str:
        from mlflow.entities import Param

        tags = self.tags | {_RUN: run.id} | ({} if run.group is None else {_SWEEP: run.group})
        made = self._client.create_run(self._experiment_id(), run_name=run.name, tags=tags)
        params = [Param(key, value[:_LONGEST]) for key, value in _flat(run.config, "")]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(made.info.run_id, params=params[first : first + _AT_ONCE])
        return made.info.run_id

    def _experiment_id(self) -> str:
        """Of the experiment, which another run of a sweep may be making at the same time."""
        for last in (False, True):
            found = self._client.get_experiment_by_name(self.experiment)
            if found is not None:
                return found.experiment_id
            try:
                return self._client.create_experiment(self.experiment)
            except Exception:
                if last:
                    raise
        raise AssertionError


def _tag(text: str) -> tuple[str, str]:
    key, colon, value = text.partition(":")
    if not (key and colon):
        raise ValueError(f"tags must be KEY:VALUE, got {text!r}")
    return key.strip(), value.strip()


def _check_driver(uri: str | None) -> None:
    """Raise ValueError where the library alone does not bring what it takes: mlflow-skinny knows no databases."""
    is_database = uri is None or uri.partition(":")[0].partition("+")[0] in _DATABASES
    if is_database and importlib.util.find_spec("sqlalchemy") is None:
        what = "no address to log to: set tracking_uri=http://HOST:PORT, tracking_uri=DIR or MLFLOW_TRACKING_URI"
        database = "a database needs the full MLflow: pip install mlflow"
        raise ValueError(f"{what}; {database}" if uri is None else f"{uri.partition(':')[0]}: {database}")


def _is_folder(uri: str | None) -> bool:
    return uri is not None and uri != "databricks" and urlsplit(uri).scheme in ("", "file")


def _flat(config: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """A configuration by dotted keys; a node's own key says what it builds."""
    for key, value in config.items():
        where = f"{path}{key}"
        if isinstance(value, dict):
            if "_target_" in value:
                yield where, str(value["_target_"]).rpartition(".")[2]
            yield from _flat(value, f"{where}.")
        elif key not in ("_target_", "_partial_"):
            yield where, str(value)
