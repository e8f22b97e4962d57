"""The records of a run, metrics.jsonl and TensorBoard's files, appended step by step."""

import io
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from ddpm_cli.io import durable

EVENTS = "events.out.tfevents."  # what the names of TensorBoard's files begin with
_VERSION = "brain.Event:2"  # by which a file of events begins
_proto: Any = event_pb2  # protoc makes its names while it is imported: a type checker sees none of them


class Appended:
    """A file for appending, without buffering. Raises OSErrors that name it."""

    def __init__(self, path: Path):
        self.path = path
        durable.unshare(path)
        self._file = path.open("ab", buffering=0)

    def write(self, content: bytes) -> None:
        with durable.errors_naming(self.path):
            while content:
                content = content[self._file.write(content) :]

    def flush(self) -> None:
        """Flush it to the disk."""
        durable.flush(self._file.fileno(), self.path)

    def close(self) -> None:
        self._file.close()


class Events:
    """A file of TensorBoard's in `directory`, which is created if missing.

    Not its own `SummaryWriter`: that writes from a thread, which dies of a full disk with a traceback and tells the
    program nothing.
    """

    def __init__(self, directory: Path):
        directory.mkdir(exist_ok=True)
        name = f"{EVENTS}{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self.file = Appended(directory / name)
        self._records = RecordWriter(self.file)
        self._records.write(_event(file_version=_VERSION))

    def add(self, summary: Any, step: int) -> None:
        """Record the result of one of the functions in torch.utils.tensorboard.summary."""
        self._records.write(_event(step=step, summary=summary))


def file_of(summaries: Iterable[Any]) -> bytes:
    """The content of a TensorBoard file with exactly these summaries, each of step 0."""
    file = io.BytesIO()
    records = RecordWriter(file)
    records.write(_event(file_version=_VERSION))
    for summary in summaries:
        records.write(_event(summary=summary))
    return file.getvalue()


def _event(**content: Any) -> bytes:
    return _proto.Event(wall_time=time.time(), **content).SerializeToString()
