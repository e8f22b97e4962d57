"""Cuts a run's records back to the step from which it is resumed: later steps will be done and recorded again.

The run may be somebody else's, and its records may be anything. They are read in small pieces and copied without being
parsed, except the step of an event, and lines of metrics no longer than ours can be.
"""

import errno
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.io import durable
from ddpm_cli.io.event_files import EVENTS
from ddpm_cli.io.run_dir import by_step

PIECE = 2**16  # bytes held at a time; a line of ours has 1 kB
_EARLIER = f"{EVENTS}0000000000.earlier"  # sorts before every file named by the clock
_BEGINNING = 64  # bytes of an event: ours have the step in the first 20
_HEADER, _FOOTER = 12, 4  # bytes around an event: its length, and a checksum of each


def cut_back(run_directory: Path, step: int, *, metrics: str, tensorboard: str, previews: str) -> None:
    """Remove everything that a run has recorded after `step`.

    A file of records ends at the first invalid one, as after a kill or a power cut.

    Args:
        metrics, tensorboard, previews: names of the file and the directories in it.

    Raises:
        ConfigError: for a line of metrics that is too long to be ours.
        OSError: if a file cannot be read or written, or there is no memory.
    """
    try:
        _cut_metrics(run_directory / metrics, step)
        _cut_events(run_directory / tensorboard, step)
    except MemoryError as error:  # not a matter of batch size, unlike training's other memory errors
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(run_directory)) from error
    for drawn, picture in by_step(run_directory / previews, ".png").items():
        if drawn > step and picture.is_file():
            picture.unlink()


# Lines of metrics ----------------------------------------------------------------------------------------------------


def _cut_metrics(file: Path, step: int) -> None:
    if not file.exists():
        return
    end = _end_of_metrics(file, step)
    if end < file.stat().st_size:
        durable.replace(file, _pieces(file, 0, end))


def _end_of_metrics(file: Path, step: int) -> int:
    """The number of bytes in the lines up to `step`."""
    end = 0
    with file.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(PIECE), b""), start=1):
            if len(line) == PIECE and b"\0" not in line:  # a power cut leaves zeros, as many as you like
                raise ConfigError(
                    f"resume: {file}: line {number} is longer than any that ddpm-cli writes; "
                    "move the file away to resume without its records"
                )
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError, RecursionError):
                break  # cut off by the kill, like everything after it
            end += len(line)
    return end


# TensorBoard's events ------------------------------------------------------------------------------------------------


class _Event(NamedTuple):
    """The parts of an event that matter here."""

    step: int
    names_version: bool  # it is the event at the beginning of every file
    begins: bytes  # its first bytes, which identify it: they hold a time in microseconds
    end: int  # in its file


def _cut_events(directory: Path, step: int) -> None:
    """Put all events up to `step` into one file: TensorBoard reads files by name, and drops steps that go backwards."""
    files = sorted(directory.glob(f"{EVENTS}*"))
    if not files:
        return
    if step > 0:
        durable.replace(directory / _EARLIER, _kept(files, step))
    for file in files:
        if step == 0 or file.name != _EARLIER:
            os.unlink(file)


def _kept(files: list[Path], step: int) -> Iterator[bytes]:
    """The events up to `step` of all files in order, in pieces, each once."""
    first = {file: _first(file) for file in files if file.name != _EARLIER}
    known, merged, any_kept = set(first.values()), set(), False
    for file in files:
        start = end = 0
        for event in _events(file):
            if event.step > step:
                break
            if event.names_version and end == 0 and any_kept:
                start = event.end
            if file.name == _EARLIER and event.begins in known:
                merged.add(event.begins)
            end = event.end
        if first.get(file) not in merged:  # else a removal was cut short, and these events are in another file too
            yield from _pieces(file, start, end)
            any_kept = any_kept or end > start


def _first(file: Path) -> bytes | None:
    """The beginning of a file's first event that no other file has."""
    return next((event.begins for event in _events(file) if not event.names_version), None)


def _events(file: Path) -> Iterator[_Event]:
    """The events of a file up to the first invalid one (TFRecord: length, its checksum, an Event, its checksum)."""
    size, position = file.stat().st_size, 0
    with file.open("rb") as stream:
        while position + _HEADER + _FOOTER <= size:
            stream.seek(position)
            header = stream.read(_HEADER + _BEGINNING)
            (length,) = struct.unpack_from("<Q", header)
            begins, end = header[_HEADER : _HEADER + length], position + _HEADER + length + _FOOTER
            said = _said(begins, length)
            if end > size or said is None or (length > PIECE and _has_hole(file, position, end)):
                return
            yield _Event(*said, begins, end)
            position = end


def _said(begins: bytes, length: int) -> tuple[int, bool] | None:
    """Step of an Event of `length` bytes, by the first of them, and whether it names the version; None: it is no Event.

    It is a list of fields: a number 8 * field + kind, and the value. The long ones are passed over. Ours all have a
    time (field 1), a step (2) unless it is 0, and either a version (3) or a summary at the end.
    """
    position, found = 0, {}
    try:
        while position < length:
            field, position = _number(begins, position)
            if field < 8:  # no field has the number 0: zeros where a disk has nothing
                return None
            value = 0
            match field & 7:
                case 0:
                    value, position = _number(begins, position)
                case 1:
                    position += 8
                case 2:
                    value, position = _number(begins, position)
                    position += value
                case 5:
                    position += 4
                case _:
                    return None
            found[field] = value
    except IndexError:
        return None
    return (found.get(2 << 3, 0), 3 << 3 | 2 in found) if position == length and 1 << 3 | 1 in found else None


def _number(content: bytes, position: int) -> tuple[int, int]:
    """A varint (seven bits in a byte, the lowest first), and where it ends. Raises IndexError if it is cut off."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _has_hole(file: Path, start: int, end: int) -> bool:
    """Whether a piece of it is all zeros: no image has so many, but a cut-off or sparse file does."""
    return any(piece.count(0) == PIECE for piece in _pieces(file, start, end))


def _pieces(file: Path, start: int, end: int) -> Iterator[bytes]:
    """The bytes of a file from `start` to `end`, in pieces."""
    with file.open("rb") as stream:
        stream.seek(start)
        while start < end and (piece := stream.read(min(PIECE, end - start))):
            yield piece
            start += len(piece)
