"""Hostile entries of a run's directory: links that lead elsewhere, pipes that never end, records that lie."""

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from torture.hostile_run import ALL, DESCRIPTION, EMA, MANIFEST, TRAINING, Foreign, Kind

CHECKPOINT = "checkpoints/step_00000010"
EVENTS = "tensorboard/events.out.tfevents.9999999999.hostile"
OTHERS = "sample load"  # ways of use that do not look at what only resuming needs
NOT_PLAIN = "is damaged: not a plain file"
REFUSED = "is a link|is not a plain|is not a directory|is neither a plain|is damaged"


def _moved(place: str) -> Callable[[Foreign], object]:
    """The entry itself is fine, but lies elsewhere: what follows the link will succeed."""

    def spoil(foreign: Foreign) -> None:
        path = foreign.run / place
        target = foreign.elsewhere / path.name
        if path.exists():
            path.rename(target)
        elif place.startswith("checkpoints/") or place == "samples":
            target = foreign.elsewhere / "folder"
        else:
            target.write_text("of no business of the run\n")
        path.symlink_to(target)

    return spoil


def _linked(place: str, target: str) -> Callable[[Foreign], object]:
    return lambda foreign: _cleared(foreign, place).symlink_to(target)


def _pipe(place: str) -> Callable[[Foreign], object]:
    return lambda foreign: os.mkfifo(_cleared(foreign, place))


def _socket(place: str) -> Callable[[Foreign], object]:
    def spoil(foreign: Foreign) -> None:
        path = _cleared(foreign, place)
        back = os.getcwd()
        os.chdir(path.parent)  # a socket's name may not be long
        try:
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(path.name)
        finally:
            os.chdir(back)

    return spoil


def _directory(place: str) -> Callable[[Foreign], object]:
    return lambda foreign: (_cleared(foreign, place) / "x").mkdir(parents=True)


def _cleared(foreign: Foreign, place: str) -> Path:
    path = foreign.run / place
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    return path


def _written(place: str, content: bytes) -> Callable[[Foreign], object]:
    def spoil(foreign: Foreign) -> None:
        path = _cleared(foreign, place)
        path.write_bytes(content.replace(b"PAYLOAD", foreign.payload.encode()))

    return spoil


ALIASES = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n".encode() for i in range(20)
)
CODE = b"import os\nos.system('PAYLOAD')\n"


def _record(content: bytes, length: int | None = None) -> bytes:
    """A record of an event file; checksums are not looked at."""
    return struct.pack("<QI", len(content) if length is None else length, 0) + content + bytes(4)


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


RECORDS: dict[str, tuple[str, bytes]] = {
    "an event of length 2**62": (EVENTS, _record(b"", 2**62) * 3),
    "500,000 events of nothing": (EVENTS, _record(b"") * 500_000),
    "an event of a million values": (EVENTS, _record(b"\x2a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000)),
    "metrics of a step that is a list": ("metrics.jsonl", _line({"step": [1]})),
    "metrics of step 10**4000": ("metrics.jsonl", _line({"step": 10**4000})),
    "metrics nested deep": ("metrics.jsonl", b"[" * 60_000 + b"\n"),
    "code in config.yaml": ("config.yaml", b"!!python/object/apply:os.system ['PAYLOAD']\n"),
    "aliases in config.yaml": ("config.yaml", ALIASES),
    "torch.py": ("torch.py", CODE),
    "a plugin for Hydra": ("hydra_plugins/hostile.py", CODE),
}

TOO_LONG: dict[str, bytes] = {
    "metrics nested deep, in a line of 500 kB": b"[" * 500_000 + b"\n",
    "metrics in a line of 2 MB": b'{"step": 1, "x": [' + b"{}," * 700_000 + b"{}]}\n",
}

# Of entries that lie elsewhere, or are what nobody expects: the way of use that may overlook it, since it needs none.
LINKS: dict[str, str] = {
    f"{CHECKPOINT}/{EMA}": "",
    f"{CHECKPOINT}/{MANIFEST}": "",
    f"{CHECKPOINT}/{TRAINING}": "sample",
    f"{CHECKPOINT}/{DESCRIPTION}": "sample",
    CHECKPOINT: "",
    "checkpoints": "",
    "train.log": OTHERS,
    "metrics.jsonl": OTHERS,
    "config.yaml": OTHERS,
    ".lock": OTHERS,
    "tensorboard": OTHERS,
    "previews": OTHERS,
    "samples": "load",
    # These are replaced, removed or read by a run that is resumed.
    EVENTS: ALL,
    "previews/.step_00000012.png.tmp": ALL,
    "previews/step_00000099.png": ALL,
    "checkpoints/.step_00000012.tmp": ALL,
    "checkpoints/step_00000001": ALL,
    "checkpoints/step_00000099": "resume",
}
PIPES: dict[str, str] = {
    f"{CHECKPOINT}/{EMA}": "",
    f"{CHECKPOINT}/{MANIFEST}": "",
    "train.log": OTHERS,
    "metrics.jsonl": OTHERS,
    ".lock": ALL,
    "previews": ALL,
    EVENTS: ALL,
    "previews/.step_00000012.png.tmp": ALL,
}
FOLDERS: dict[str, str] = {
    f"{CHECKPOINT}/{MANIFEST}": "",
    "train.log": OTHERS,
    "config.yaml": OTHERS,
    ".config.yaml.tmp": ALL,
    EVENTS: ALL,
    "previews/step_00000099.png": ALL,
}


def kinds() -> Iterator[Kind]:
    for place, harmless in LINKS.items():
        yield Kind(f"{place} lies elsewhere", _moved(place), REFUSED, harmless)
    for place, harmless in PIPES.items():
        yield Kind(f"{place} is a pipe", _pipe(place), REFUSED, harmless)
    for place, harmless in FOLDERS.items():
        yield Kind(f"{place} is a folder", _directory(place), REFUSED, harmless)
    yield Kind(f"{EMA} is /dev/zero", _linked(f"{CHECKPOINT}/{EMA}", "/dev/zero"), NOT_PLAIN)
    yield Kind(f"{EMA} is a socket", _socket(f"{CHECKPOINT}/{EMA}"), NOT_PLAIN)
    yield Kind(f"{EVENTS} is /dev/zero", _linked(EVENTS, "/dev/zero"), REFUSED, ALL)
    yield Kind("tensorboard is a file", _written("tensorboard", b""), REFUSED, ALL)
    for name, (place, content) in RECORDS.items():
        yield Kind(name, _written(place, content), "", ALL)
    for name, content in TOO_LONG.items():
        yield Kind(name, _written("metrics.jsonl", content), "line 1 is longer than any that ddpm-cli writes", OTHERS)
