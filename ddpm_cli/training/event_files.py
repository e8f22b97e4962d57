"""What a run puts on record, metrics.jsonl and TensorBoard: appended step by step, cut back when it is resumed.

A run that is killed has recorded more steps than its newest checkpoint has done; it will do them again.
"""

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from ddpm_cli.io import durable
from ddpm_cli.io.run_dir import by_step

_EVENTS = "events.out.tfevents."
_EARLIER = f"{_EVENTS}0000000000.earlier"  # sorts before every file that is named by the clock


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
        name = f"{_EVENTS}{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self.file = Appended(directory / name)
        self._records = RecordWriter(self.file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, summary: Summary, step: int) -> None:
        """Record what one of torch.utils.tensorboard.summary's functions has made."""
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def cut_back(run_directory: Path, step: int, *, metrics: str, tensorboard: str, previews: str) -> None:
    """Forget whatever a run has recorded of the steps after `step`.

    Args:
        metrics, tensorboard, previews: names of the file and the directories in it.
    """
    _cut_metrics(run_directory / metrics, step)
    _cut_events(run_directory / tensorboard, step)
    for drawn, picture in by_step(run_directory / previews, ".png").items():
        if drawn > step and picture.is_file():
            picture.unlink()


def _cut_metrics(file: Path, step: int) -> None:
    if not file.exists():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = []
    for line in lines:
        try:
            recorded = json.loads(line)["step"]
            if not line.endswith(b"\n") or recorded > step:
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break  # torn by the kill, and so is everything after it
        kept.append(line)
    if len(kept) < len(lines):
        durable.replace(file, b"".join(kept))


def _cut_events(directory: Path, step: int) -> None:
    """Put all events up to `step` into one file: TensorBoard reads files by name, and drops what runs backwards."""
    files = sorted(directory.glob(f"{_EVENTS}*"))
    if not files:
        return
    kept: dict[bytes, None] = {}  # in order, each once: a removal that was cut short has left some in two files
    for file in files:
        for record, event in _events(file.read_bytes()):
            if event.step > step:
                break
            if not (kept and event.file_version):  # which stands at the beginning of every file
                kept[record] = None
    if step > 0:
        durable.replace(directory / _EARLIER, b"".join(kept))
    for file in files:
        if step == 0 or file.name != _EARLIER:
            os.unlink(file)


def _events(content: bytes) -> Iterator[tuple[bytes, Event]]:
    """The records of an event file (TFRecord: length, its checksum, an Event, its checksum), as they are and parsed."""
    from google.protobuf.message import DecodeError

    position = 0
    while position + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        end = position + 12 + length + 4
        if end > len(content):
            return  # torn by the kill
        try:
            event = Event.FromString(content[position + 12 : end - 4])
        except DecodeError:
            return
        yield content[position:end], event
        position = end
