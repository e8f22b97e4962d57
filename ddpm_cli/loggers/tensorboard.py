"""TensorBoard's files, which are among a run's own records: exact on resume, and written by this very process."""

import io
from typing import Any

from PIL import Image
from tensorboard.compat.proto import summary_pb2

from ddpm_cli.io import run_dir
from ddpm_cli.io.event_files import EVENTS, Events
from ddpm_cli.loggers.logger import Begun, Ending, RunInfo

_NOT_SHOWN = "eval_error/"  # standard errors: it draws no error bars
_proto: Any = summary_pb2  # protoc makes its names while it is imported: a type checker sees none of them


class TensorBoard:
    """Files that `tensorboard --logdir RUN_DIR` shows. Raises OSErrors that name the file, as other records do."""

    def __init__(self) -> None:
        self._events: Events | None = None

    @property
    def place(self) -> str:
        return ""

    def begin(self, run: RunInfo) -> Begun:
        directory = run.directory / run_dir.TENSORBOARD
        first = not any(directory.glob(f"{EVENTS}*"))
        self._events = Events(directory)
        if first:
            self._show_config((run.directory / run_dir.CONFIG_FILE).read_text(encoding="utf-8"))
        return Begun(run.id, f"tensorboard --logdir {directory}")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        assert self._events is not None
        for name, value in values.items():
            if not name.startswith(_NOT_SHOWN):
                self._events.add(_summary(tag=name, simple_value=value), step)

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

    def _show_config(self, text: str) -> None:
        from torch.utils.tensorboard import summary

        assert self._events is not None
        self._events.add(summary.text("config", f"```yaml\n{text}\n```"), 0)


def _summary(**content: Any) -> Any:
    return _proto.Summary(value=[_proto.Summary.Value(**content)])
