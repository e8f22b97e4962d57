"""Somebody else's records, pictures that were being drawn, and YAML, against a limit on memory."""

import itertools
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture.hostile_watch import MIB
from torture.trials import RUN, Process, Row, Setting, command, noting, run_directories

MOST_TAKEN = 192 * MIB  # beyond what a process has before it begins: a good run takes half of it
SECONDS = 60
STEP = 10
LONGEST_MESSAGE = 2000  # characters
SAMPLE = ["n=2", "batch_size=1", "sampler=ddim", "sampler.steps=2", "precision=fp32", "device=cpu", "ckpt=run"]
RESUME = ["resume=run", f"trainer.steps={STEP + 2}"]
EVENTS = "run/tensorboard/events.out.tfevents.9999999999.foreign"
UNFINISHED = "out/.unfinished"


@dataclass(frozen=True)
class Trial:
    """Something foreign, and the command that comes upon it."""

    name: str
    spoil: Callable[[Path], object]  # does it to a directory in which the good run is called run
    command: list[str]
    says: str = ""  # is in the refusal; empty: it is no reason for one


def foreign_records(setting: Setting) -> Row:
    """Foreign things that would take many times their size if they were read at once: none does."""
    good = _good_run(setting.place / "good")
    trials = _trials()
    chosen = sorted(setting.random.sample(range(len(trials)), max(4, setting.count(len(trials)))))
    failures: list[str] = []
    refused = 0
    for number, trial in enumerate(
        [Trial("nothing", lambda _: None, ["train", *RESUME]), *(trials[i] for i in chosen)]
    ):
        place = setting.place / f"{number:02d}"
        shutil.copytree(good, place / "run")
        with noting(failures, trial.name):
            trial.spoil(place)
            process = command(trial.command[0], trial.command[1:], place, prepare=_limit)
            status = process.wait(SECONDS)
            refused += status != 0
            failures += [f"{trial.name}: {what}" for what in _wrong(trial, status, process)]
        shutil.rmtree(place, ignore_errors=True)
    allowed = f"{MOST_TAKEN // MIB} MiB allowed"
    figure = f"{len(chosen)} kinds, {allowed}: {refused} refused with one message, the others resumed"
    return Row("foreign records, unfinished pictures and YAML of up to a TiB, against a memory limit", figure, failures)


def _limit() -> None:
    data = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    limit = int(data) * 1024 + MOST_TAKEN
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _good_run(place: Path) -> Path:
    steps = [f"trainer.steps={STEP}", f"trainer.checkpoint_every={STEP}", "trainer.device=cpu", "name=good"]
    process = command("train", [*RUN, *steps], place)
    assert process.wait() == 0, process.said()
    return run_directories(place, "good")[0]


def _wrong(trial: Trial, status: int, process: Process) -> list[str]:
    said = process.said()
    wrong = []
    if status != (2 if trial.says else 0):
        wrong.append(f"ended with status {status}: {said[-300:]!r}")
    if trial.says and (trial.says not in said or len(said) > LONGEST_MESSAGE):
        wrong.append(f"was refused for another reason, or at length: {said[-300:]!r}")
    if "Traceback" in said or "memory" in said:
        wrong.append(f"a traceback, or a lack of memory: {said[-300:]!r}")
    return wrong


# What is foreign -----------------------------------------------------------------------------------------------------


def _trials() -> list[Trial]:
    train, sample = ["train", *RESUME], ["sample", *SAMPLE, "out=out"]
    own = ["train", "--config-dir", "own", "schedule=foreign"]
    too_long, many = "metrics.jsonl: line 1 is longer", "holds more than 10,000 values"
    return [
        Trial("a line of metrics of 40 MB", _file("run/metrics.jsonl", _long_line), train, too_long),
        Trial("metrics of 40 MB of brackets", _file("run/metrics.jsonl", lambda: b"[" * 40 * MIB), train, too_long),
        Trial("metrics of 40 MB in short lines", _file("run/metrics.jsonl", _short_lines), train),
        Trial("metrics of a TiB of holes", _holes("run/metrics.jsonl", 2**40), train),
        Trial("an event of ten million values", _file(EVENTS, _event_of_values), train),
        Trial("an event of ten million fields", _file(EVENTS, _event_of_fields), train),
        Trial("events of nothing, 40 MB of them", _file(EVENTS, lambda: _record(b"") * (40 * MIB // 16)), train),
        Trial("an event of 100 MB", _file(EVENTS, lambda: _record(_summary(100 * MIB))), train),
        Trial("an event of a GiB of holes", _event_of_holes, train),
        Trial("events of a TiB of holes", _holes(EVENTS, 2**40), train),
        Trial("an identity of 40 MB", _unfinished("identity.json", 40 * MIB), sample, "is not of ddpm-cli"),
        Trial("an identity of a TiB of holes", _unfinished("identity.json", 2**40), sample, "is not of ddpm-cli"),
        Trial("a TiB of batches", _unfinished("done", 2**40), sample, "is incomplete"),
        Trial("aliases of aliases", _file("own/schedule/foreign.yaml", _aliases), own, many),
        Trial("30,000 values in YAML", _file("own/schedule/foreign.yaml", _values), own, many),
        Trial("YAML of a TiB of holes", _holes("own/schedule/foreign.yaml", 2**40), own, "a configuration may have"),
        Trial("30,000 values on the command line", lambda _: None, ["train", f"seed={_list()}"], "put long lists into"),
    ]


def _file(name: str, content: Callable[[], bytes]) -> Callable[[Path], object]:
    def spoil(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content())

    return spoil


def _holes(name: str, size: int) -> Callable[[Path], object]:
    """At its end: what is there stays."""

    def spoil(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
        os.truncate(place / name, size)

    return spoil


def _unfinished(name: str, size: int) -> Callable[[Path], object]:
    def spoil(place: Path) -> None:
        _file(f"{UNFINISHED}/done", lambda: b"\1\0")(place)
        _file(f"{UNFINISHED}/identity.json", lambda: b"{}")(place)
        os.truncate(place / UNFINISHED / name, size)

    return spoil


def _long_line() -> bytes:
    return json.dumps({"step": 1, "x": [{}] * (10 * MIB)}).encode() + b"\n"


def _short_lines() -> bytes:
    line = json.dumps({"step": 1, "x": "x" * 2**12}).encode() + b"\n"
    return line * (40 * MIB // len(line))


def _record(content: bytes) -> bytes:
    """A record of an event file; checksums are not looked at."""
    return struct.pack("<QI", len(content), 0) + content + bytes(4)


def _summary(size: int, content: bytes | None = None) -> bytes:
    """An event with a time and a summary of so many bytes."""
    return b"\x09" + struct.pack("<d", 1.0) + b"\x2a" + _varint(size) + (b"x" * size if content is None else content)


def _varint(value: int) -> bytes:
    parts = [value >> shift & 0x7F for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


def _event_of_values() -> bytes:
    return _record(_summary(20_000_000, b"\x0a\x00" * 10_000_000))


def _event_of_fields() -> bytes:
    return _record(b"\x09" + bytes(8) + b"\x2a\x00" * 10_000_000)


def _event_of_holes(place: Path) -> None:
    whole = _summary(2**30, b"")
    with (place / EVENTS).open("wb") as file:
        file.write(struct.pack("<QI", len(whole) + 2**30, 0) + whole)
        file.truncate(file.tell() + 2**30 + 4)


def _aliases() -> bytes:
    names = "abcdefghijklmnopqrst"
    lines = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in itertools.pairwise(names)]
    return "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *lines]).encode()


def _values() -> bytes:
    return f"betas: {_list()}\n".encode()


def _list() -> str:
    return f"[{','.join(['0.001'] * 30_000)}]"
