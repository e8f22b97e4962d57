"""TensorBoard's files, which are among a run's own records: exact on resume, and written by this very process."""

import io
import time
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image
from tensorboard.compat.proto import summary_pb2

from ddpm_cli.io import durable, hparams_file, run_dir
from ddpm_cli.io.event_files import EVENTS, Events
from ddpm_cli.io.hparams_file import Value
from ddpm_cli.io.own_output import RESULT_FILE
from ddpm_cli.io.tensorboard_tags import has_tags, tag
from ddpm_cli.loggers.logger import Begun, Ending, RunInfo, State

_NOT_SHOWN = "eval_error/"  # standard errors: it draws no error bars
_TEXTS = ("data", "schedule", "prediction", "weighting", "loss", "optimizer", "trainer.lr_decay", "ema.decays")
_NUMBERS = ("optimizer.lr", "trainer.batch_size", "trainer.steps", "model.base_channels", "seed")
_FIGURES = {"loss/mean": "loss", "loss/heldout": "held-out loss", "time/images_per_second": "images per second"}
_proto: Any = summary_pb2  # protoc makes its names while it is imported: a type checker sees none of them


class TensorBoard:
    """Files that `tensorboard --logdir RUN_DIR` shows. Raises OSErrors that name the file, as other records do.

    The run is a session under HParams too, with the same columns as every run that is none of a sweep; those that are
    get theirs at its end, out of what was swept.
    """

    def __init__(self) -> None:
        self._events: Events | None = None
        self._session: RunInfo | None = None  # None: a sweep writes it
        self._begun = time.time()
        self._tag = tag

    @property
    def place(self) -> str:
        return ""

    def begin(self, run: RunInfo) -> Begun:
        directory = run.directory / run_dir.TENSORBOARD
        first = not any(directory.glob(f"{EVENTS}*"))
        self._tag = tag if has_tags(run.directory) else str
        self._events = Events(directory)
        if first:
            self._show_config((run.directory / run_dir.CONFIG_FILE).read_text(encoding="utf-8"))
        if run.group is None and not (run.directory / RESULT_FILE).exists():
            self._session = run
            self._show_session("running")
        return Begun(run.id, f"tensorboard --logdir {directory}")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        assert self._events is not None
        for name, value in values.items():
            if not name.startswith(_NOT_SHOWN):
                self._events.add(_summary(tag=self._tag(name), simple_value=value), step)

    def image(self, step: int, name: str, png: bytes) -> None:
        assert self._events is not None
        with Image.open(io.BytesIO(png)) as picture:
            (width, height), channels = picture.size, len(picture.getbands())
        image = _proto.Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png)
        self._events.add(_summary(tag=name, image=image), step)

    def flush(self) -> None:
        """Have it on the disk."""
        assert self._events is not None
        self._events.file.flush()

    def end(self, ending: Ending) -> None:
        assert self._events is not None
        self._events.file.close()
        self._show_session(ending.state)

    def _show_session(self, state: State | Literal["running"]) -> None:
        if self._session is None:
            return
        statuses = {
            "running": hparams_file.RUNNING,
            "finished": hparams_file.SUCCESS,
            "failed": hparams_file.FAILURE,
        }
        values = _values(self._session.config)
        columns = hparams_file.experiment([hparams_file.column(key, [values[key]]) for key in values], _FIGURES)
        content = hparams_file.session(values, columns, begun=self._begun, status=statuses.get(state))
        durable.replace(self._session.directory / run_dir.TENSORBOARD / hparams_file.FIRST_FILE, content)

    def _show_config(self, text: str) -> None:
        from torch.utils.tensorboard import summary

        assert self._events is not None
        self._events.add(summary.text("config", f"```yaml\n{text}\n```"), 0)


def _values(config: Mapping[str, Any]) -> dict[str, Value]:
    """What tells runs apart, as far as this one has it; of a node which class or function it is."""
    found: dict[str, Value] = {}
    for key in (*_TEXTS, *_NUMBERS):
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            value = str(value.get("_target_")).rpartition(".")[2]
        if key in _TEXTS and value is not None:
            found[key] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        elif key in _NUMBERS and isinstance(value, int | float):
            found[key] = float(value)
    return found


def _summary(**content: Any) -> Any:
    return _proto.Summary(value=[_proto.Summary.Value(**content)])
