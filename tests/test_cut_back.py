"""Records cut back to a step, whoever has written them: what stays, what goes, and how much memory it takes."""

import json
import struct
from pathlib import Path

import pytest
from commands import run
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.io.event_files import Events
from ddpm_cli.training.cut_back import cut_back

NAMES = {"metrics": "metrics.jsonl", "tensorboard": "tensorboard", "previews": "previews"}
EARLIER = "events.out.tfevents.0000000000.earlier"
MIB = 2**20

# In a forked process that may take so much more memory: the files that are cut have more.
LIMITED = f"""
import resource, sys
from pathlib import Path
from ddpm_cli.training.cut_back import cut_back
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + 8 * {MIB}, -1))
cut_back(Path("."), 5, **{NAMES})
"""


def framed(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<QI", len(content) if length is None else length, 0) + content + bytes(4)


def event(step: int, tag: str = "loss", *, wall_time: float = 1.0, size: int = 0) -> bytes:
    value = Summary.Value(tag=tag, simple_value=1.0) if size == 0 else Summary.Value(tag="x" * size)
    return framed(Event(wall_time=wall_time, step=step, summary=Summary(value=[value])).SerializeToString())


VERSION = framed(Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())


def events_in(directory: Path) -> list[tuple[int, str]]:
    """Step and tag (or version) of all events, by TensorBoard's own classes."""
    found = []
    for file in sorted(directory.iterdir()):
        content, position = file.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            parsed = Event.FromString(content[position + 12 : position + 12 + length])
            found.append((parsed.step, parsed.file_version or parsed.summary.value[0].tag[:9]))
            position += 16 + length
    return found


def written(place: Path, *files: bytes) -> Path:
    directory = place / "tensorboard"
    directory.mkdir()
    for number, content in enumerate(files):
        (directory / f"events.out.tfevents.100000000{number}.host").write_bytes(content)
    return directory


def test_events_of_several_files_come_into_one_in_order_and_once(tmp_path: Path):
    first = VERSION + event(0, "config") + event(4) + event(5, "b") + event(6)
    second = VERSION + event(5, "c", wall_time=2.0) + event(7, wall_time=2.0)
    directory = written(tmp_path, first, second)
    cut_back(tmp_path, 5, **NAMES)
    expected = [(0, "brain.Event:2"), (0, "config"), (4, "loss"), (5, "b"), (5, "c")]
    assert [path.name for path in directory.iterdir()] == [EARLIER]
    assert events_in(directory) == expected
    (directory / "events.out.tfevents.1000000001.host").write_bytes(second)  # as if its removal had been cut short
    (directory / "events.out.tfevents.1000000002.host").write_bytes(VERSION + event(5, "d", wall_time=3.0))
    cut_back(tmp_path, 5, **NAMES)
    assert events_in(directory) == [*expected, (5, "d")]
    cut_back(tmp_path, 0, **NAMES)
    assert list(directory.iterdir()) == []


def test_what_our_own_writer_makes_is_read(tmp_path: Path):
    events = Events(tmp_path / "tensorboard")
    for step in (0, 1, 300, 2**40):
        events.add(Summary(value=[Summary.Value(tag="loss", simple_value=step)]), step)
    events.file.close()
    cut_back(tmp_path, 2**39, **NAMES)
    found = events_in(tmp_path / "tensorboard")
    assert found == [(0, "brain.Event:2"), (0, "loss"), (1, "loss"), (300, "loss")]


ENDS = {
    "cut short": event(5, "lost")[:-1],
    "zeros": bytes(1000),
    "zeros in an event": event(5, "lost")[:20] + bytes(1000),
    "a length of 2**62": framed(b"", 2**62),
    "events of nothing": framed(b"") * 100,
    "no Event": framed(b"\x0b\x0c" * 10),
    "fields without end": framed(b"\x09" + bytes(8) + b"\x2a\x00" * 1000),
    "a value beyond its event": framed(b"\x09" + bytes(8) + b"\x2a\xff\x01"),
    "a number without end": framed(b"\x09" + bytes(8) + b"\x10" + b"\xff" * 1000),
    "a mebibyte of zeros": event(5, size=MIB).replace(b"x", b"\0"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_file_of_events_ends_where_something_is_none(end: str, tmp_path: Path):
    after = b"" if end == "cut short" else event(5, "after it")
    directory = written(tmp_path, VERSION + event(4) + ENDS[end] + after, VERSION + event(5, "more"))
    cut_back(tmp_path, 5, **NAMES)
    assert events_in(directory) == [(0, "brain.Event:2"), (4, "loss"), (5, "more")]


def line(step: int) -> bytes:
    return json.dumps({"step": step}).encode() + b"\n"


@pytest.mark.parametrize("end", [b'{"step": 5', b"\0" * 200_000, b"[]\n", b'{"step": []}\n', b"[" * 60_000 + b"\n"])
def test_metrics_end_where_a_line_is_torn(end: bytes, tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line(1) + line(5) + end + line(3))
    cut_back(tmp_path, 5, **NAMES)
    assert file.read_bytes() == line(1) + line(5)


def test_metrics_that_need_no_cut_are_left_alone(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line(1) + line(5))
    before = file.stat().st_ino
    cut_back(tmp_path, 5, **NAMES)
    assert file.stat().st_ino == before


def test_a_line_that_cannot_be_ours_is_refused_and_stays(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    content = line(1) + b'{"step": 2, "x": "' + b"x" * 2**16 + b'"}\n'
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: line 2 is longer than any that ddpm-cli writes"):
        cut_back(tmp_path, 5, **NAMES)
    assert file.read_bytes() == content


def test_what_stays_is_copied_in_pieces(tmp_path: Path):
    """Files of 40 MB where 8 MB may be taken: a picture that stays, lines that stay, and holes of a GiB."""
    kept = VERSION + event(4, size=40 * MIB)
    hole = framed(b"", 15 + 2**30)[:12] + b"\x09" + bytes(8) + b"\x2a" + b"\x80\x80\x80\x80\x04"  # a summary of a GiB
    directory = written(tmp_path, kept, VERSION + event(5) + hole)
    with (directory / "events.out.tfevents.1000000001.host").open("ab") as stream:
        stream.truncate(stream.tell() + 2**30 + 4)
    lines = (json.dumps({"step": 3, "x": "x" * 2**15}).encode() + b"\n") * 640
    (tmp_path / "metrics.jsonl").write_bytes(lines + line(6))
    done = run("train", cwd=tmp_path, code=LIMITED)
    assert done.returncode == 0, done.stderr[-500:]
    assert events_in(directory) == [(0, "brain.Event:2"), (4, "xxxxxxxxx"), (5, "loss")]
    assert (tmp_path / "metrics.jsonl").stat().st_size == len(lines)
