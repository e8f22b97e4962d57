"""What a run puts on record, metrics.jsonl and TensorBoard, appended step by step."""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from ddpm_cli.io import durable

EVENTS = "events.out.tfevents."  # what the names of TensorBoard's files begin with


class Appended:
    """A file that grows at its end and holds at once what has been written to it. Raises OSErrors that name it."""

    def __init__(self, path: Path):
        self.path = path
        durable.unshare(path)
        self._file = path.open("ab", buffering=0)

    def write(self, content: bytes) -> None:
        with durable.errors_naming(self.path):
            while content:
                content = content[self._file.write(content) :]

    def flush(self) -> None:
        """Have it on the disk."""
        durable.flush(self._file.fileno(), self.path)

    def close(self) -> None:
        self._file.close()


class Events:
    """A file of TensorBoard's in `directory`, which is made if missing.

    Not its own `SummaryWriter`: that writes from a thread, which dies of a full disk with a traceback and tells the
    program nothing.
    """

    def __init__(self, directory: Path):
        directory.mkdir(exist_ok=True)
        name = f"{EVENTS}{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self.file = Appended(directory / name)
        self._records = RecordWriter(self.file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, summary: Summary, step: int) -> None:
        """Record what one of torch.utils.tensorboard.summary's functions has made."""
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
