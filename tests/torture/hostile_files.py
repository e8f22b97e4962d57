"""Hostile bytes in a checkpoint's files: code in disguise, bombs, headers that lie, tensors that do not fit."""

import functools
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator

from torture.hostile_run import ALL, EMA, MANIFEST, STEP, TRAINING, Foreign, Kind, joined
from torture.hostile_watch import MIB

DAMAGED = "is damaged"
NO_HEADER = "is damaged: a header of|is damaged: Error"
NO_DESCRIPTION = "its header has no description|do not fit the network it describes"  # the latter said by resume
MISFIT = "does? not fit the network it describes"
OTHERS = "sample load"


class _Code:
    """Pickled, it is a call of os.system."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def _pickle(foreign: Foreign) -> bytes:
    return pickle.dumps(_Code(foreign.payload))


def _torch_file(foreign: Foreign) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"model": _Code(foreign.payload)}, file)
    return file.getvalue()


@functools.cache
def _zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(128 * MIB))
    return file.getvalue()


@functools.cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(128 * MIB), 1)


def _many(entry: str, around: str, size: int = MIB) -> bytes:
    """A header of almost `size` bytes of entries."""
    count = (size - 200) // (len(entry.format(2**20)) + 1)
    return joined(around.format(",".join(entry.format(i) for i in range(count))))


_NOTHING = '"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'

# What stands where a safetensors file should, and what is said of it. Half a MB is the longest header without tensors.
HALF = MIB // 2
DISGUISES: dict[str, tuple[Callable[[Foreign], bytes], str]] = {
    "a pickle": (_pickle, NO_HEADER),
    "a torch file": (_torch_file, NO_HEADER),
    "a pickle as a header": (lambda foreign: joined(_pickle(foreign)), NO_HEADER),
    "a zip bomb": (lambda _: _zip_bomb(), NO_HEADER),
    "a gzip bomb": (lambda _: _gzip_bomb(), NO_HEADER),
    "nothing": (lambda _: b"", NO_HEADER),
    "a header of 2**63": (lambda _: joined("{}", length=2**63), NO_HEADER),
    "a header of 2**62": (lambda _: joined("{}", length=2**62), NO_HEADER),
    "a header of 50 MB": (lambda _: joined("{}" + " " * (50_000_000 - 2)), NO_HEADER),
    "a header of invalid UTF-8": (lambda _: joined(b'{"__metadata__":{"ddpm_cli":"\xff\xff"}}'), NO_HEADER),
    "a header nested deep": (lambda _: joined('{"a":' * 200_000), NO_HEADER),
    "a header of 4 MB of tensors": (lambda _: _many(_NOTHING, "{{{}}}", 4 * MIB), NO_HEADER),
    "a header of 1 MB of tensors": (lambda _: _many(_NOTHING, "{{{}}}"), NO_HEADER),
    "a header of 500 kB of tensors": (lambda _: _many(_NOTHING, "{{{}}}", HALF), NO_DESCRIPTION),
    "a header of 500 kB of metadata": (
        lambda _: _many('"{:x}":""', '{{"__metadata__":{{{}}}}}', HALF),
        NO_DESCRIPTION,
    ),
    "a header of 500 kB of one shape": (
        lambda _: _many("0", '{{"x":{{"dtype":"U8","shape":[{}],"data_offsets":[0,0]}}}}', HALF),
        NO_DESCRIPTION,
    ),
    "a header of 500 kB of one name": (
        lambda _: joined(f'{{"{"a" * (HALF - 200)}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}'),
        NO_DESCRIPTION,
    ),
}


def _last(**changes) -> Callable[[dict], object]:
    """Change what the header says of the type, the shape or the place of the file's last tensor."""

    def change(header: dict) -> None:
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        max(tensors, key=lambda entry: entry["data_offsets"][1]).update(changes)

    return change


def _overlap(header: dict) -> None:
    first, second, *_ = (name for name in header if name != "__metadata__")
    header[first] = header[second]


def _without_first(header: dict) -> None:
    del header[next(name for name in header if name != "__metadata__")]


# What the header of either file says of its tensors.
HEADERS: dict[str, Callable[[dict], object]] = {
    "offsets beyond the file": _last(data_offsets=[0, 2**40]),
    "negative offsets": _last(data_offsets=[-8, 8]),
    "offsets backwards": _last(data_offsets=[64, 0]),
    "overlapping tensors": _overlap,
    "data of no tensor": _without_first,
    "a shape that overflows": _last(shape=[2**32, 2**32]),
    "a shape of 10**400": _last(shape=[10**400]),
    "a shape larger than its data": _last(shape=[2**20]),
    "a type wider than its data": _last(dtype="F64"),
    "a type that is none": _last(dtype="os.system"),
}

Entry = tuple[dict, bytes]  # what the header says of a tensor, and its bytes


def _each(name: str, change: Callable[[str, dict, bytes], dict[str, Entry]]) -> Callable[[Foreign], object]:
    """Put in the place of every tensor of a file whatever `change` makes of it."""

    def spoil(foreign: Foreign) -> None:
        header, data = foreign.header(name)
        found = {key: header[key] for key in header if key == "__metadata__"}
        pieces, end = [], 0
        for key, entry in header.items():
            if key != "__metadata__":
                start, stop = entry["data_offsets"]
                for new, (said, piece) in change(key, entry, data[start:stop]).items():
                    found[new] = said | {"data_offsets": [end, end + len(piece)]}
                    pieces.append(piece)
                    end += len(piece)
        foreign.put(name, joined(found, b"".join(pieces)))

    return spoil


def _of_type(name: str, dtype: str, bits: int) -> Callable[[Foreign], object]:
    """All of the network's weights as zeros of another type."""

    def change(key: str, entry: dict, content: bytes) -> dict[str, Entry]:
        if key.startswith(("counter.", "unlogged.", "optimizer.")):
            return {key: (entry, content)}
        return {key: (entry | {"dtype": dtype}, bytes(math.prod(entry["shape"]) * bits // 8))}

    return _each(name, change)


def _state(signals: str, new: Callable[[str, dict, bytes], dict[str, Entry]]) -> Callable[[Foreign], object]:
    """Put something else in the place of the training state's tensors whose names end so."""
    return _each(TRAINING, lambda key, *entry: new(key, *entry) if key.endswith(signals) else {key: entry})


def _shaped(shape: list[int]) -> Callable[[str, dict, bytes], dict[str, Entry]]:
    return lambda key, entry, content: {key: (entry | {"shape": shape}, (content * 3)[: 4 * math.prod(shape)])}


def _counter(name: str, dtype: str, content: bytes) -> Callable[[Foreign], object]:
    return _state(f"counter.{name}", lambda key, _, __: {key: ({"dtype": dtype, "shape": []}, content)})


def _integer(value: int) -> bytes:
    return struct.pack("<q", value)


def _log_of_giants(_: str, __: dict, ___: bytes) -> dict[str, Entry]:
    """2**40 steps that were not logged, none of which takes a byte."""
    shapes = {"losses": [2**40, 0], "t": [2**40, 0], "grad_norm": [0], "skipped": [0]}
    return {f"unlogged.{name}": ({"dtype": "F32", "shape": shape}, b"") for name, shape in shapes.items()}


# Of the training state: a fused optimizer relies on the shapes of its moments, and on there being any.
STATES: dict[str, Callable[[Foreign], object]] = {
    "moments of one number": _state(".exp_avg", _shaped([1])),
    "moments without a shape": _state(".exp_avg_sq", _shaped([])),
    "no second moments": _state(".exp_avg_sq", lambda *_: {}),
    "steps of three numbers": _state("weight.step", _shaped([3])),
    "no counters": _state("counter.step", lambda *_: {}),
    "counter.step of -5": _counter("step", "I64", _integer(-5)),
    "counter.step of 3": _counter("step", "I64", _integer(3)),
    "counter.step infinite": _counter("step", "F32", struct.pack("<f", math.inf)),
    "counter.ema_updates of -10": _counter("ema_updates", "I64", _integer(-10)),
    "a log of 2**40 steps": _state("counter.overflows", lambda *entry: _log_of_giants(*entry)),
    "a tensor without a place": _state("counter.overflows", lambda key, *entry: {key: entry, "surprise": entry}),
}


def _ballast(key: str, entry: dict, content: bytes) -> dict[str, Entry]:
    """40 MB of numbers in the place of one, so that what a large file takes can be seen."""
    return {key: (entry | {"shape": [5 * MIB]}, bytes(40 * MIB))}


def _manifest(text: str) -> Callable[[Foreign], object]:
    return lambda foreign: (foreign.checkpoint / MANIFEST).write_text(text)


def _listing(name: str, count: str) -> str:
    entry = f'{{"bytes": {count}, "sha256": ""}}'
    return f'{{"{name}": {entry}, "{TRAINING}": {entry}, "checkpoint.json": {entry}}}'


MANIFESTS: dict[str, str] = {
    "a manifest of brackets": "[" * 100_000,
    "a manifest of 2 MB": " " * (2 * MIB),
    "a manifest of files elsewhere": _listing("../../../../elsewhere/diary.txt", "6"),
    "a manifest with a deep number": _listing(EMA, "[" * 900 + "]" * 900),
    "a manifest with 10**400": _listing(EMA, str(10**400)),
    "a manifest with Infinity": _listing(EMA, "Infinity"),
}


AVERAGES = "averages/step_{:08d}.safetensors"


def _averages(count: int, *, lengths: int = 2, whole: bool = True, stuffing: int = 0) -> Callable[[Foreign], object]:
    """So many snapshots of so many lengths, of which memory would be taken for the square, or for what they say.

    Args:
        whole: with the weights they should have, instead of none.
        stuffing: empty lists in each description.
    """

    def spoil(foreign: Foreign) -> None:
        header, data = foreign.header("../../" + AVERAGES.format(STEP))
        foreign.configure({"ema.posthoc": [0.05, 0.1, *(0.11 + i / 1000 for i in range(lengths - 2))]})
        foreign.retell(lambda description: description.update(step=count))
        description = json.loads(header["__metadata__"]["ddpm_cli"])
        description["config"] = json.loads((foreign.checkpoint / "checkpoint.json").read_bytes())["config"]
        description["config"] |= {"surprise": [[]] * stuffing}
        for step in range(1, count + 1):
            text, updates = json.dumps(description | {"step": step}), str(step)
            own = hashlib.sha256(f"{text}\n{updates}\n".encode() + (data if whole else b"")).hexdigest()
            said = {"__metadata__": {"ddpm_cli": text, "updates": updates, "sha256": own}}
            (foreign.run / AVERAGES.format(step)).write_bytes(joined(header | said, data) if whole else joined(said))

    return spoil


def kinds() -> Iterator[Kind]:
    for name, (content, says) in DISGUISES.items():
        yield Kind(f"{name}: {EMA}", _put(EMA, content), says)
    for name in ("a pickle", "a torch file"):
        content, says = DISGUISES[name]
        yield Kind(f"{name}: {TRAINING}", _put(TRAINING, content), says, "sample")
        yield Kind(f"{name}: {EMA}, not in the manifest", _slipped_in(EMA, content), "bytes, manifest.json says")
    for name, change in HEADERS.items():
        yield Kind(name, lambda foreign, change=change: foreign.change_header(EMA, change), DAMAGED)
    for name in ("overlapping tensors", "a shape that overflows"):
        change = HEADERS[name]
        yield Kind(
            f"{name}: {TRAINING}",
            lambda foreign, change=change: foreign.change_header(TRAINING, change),
            DAMAGED,
            "sample",
        )
    for file, dtype, bits in ((EMA, "F64", 64), (EMA, "F4", 4), (TRAINING, "F4", 4), (TRAINING, "C64", 64)):
        yield Kind(f"weights of {dtype}: {file}", _of_type(file, dtype, bits), f"{DAMAGED}|{MISFIT}", ALL)
    for dtype, bits in (("BOOL", 8), ("U8", 8), ("I64", 64), ("F8_E4M3", 8), ("F8_E5M2", 8)):
        yield Kind(f"weights of {dtype}", _of_type(EMA, dtype, bits), f"{MISFIT}: it is ")
    yield Kind("moments and weights of I8", _of_type(TRAINING, "I8", 8), f"{MISFIT}: it is ", "sample")
    for name, spoil in STATES.items():
        yield Kind(name, spoil, f"{MISFIT}|the training state|counter.step|step 3", OTHERS)
    yield Kind("40 MB too much", _state("counter.overflows", _ballast), MISFIT, OTHERS)
    for name, text in MANIFESTS.items():
        yield Kind(name, _manifest(text), r"manifest\.json is damaged|bytes, manifest.json says")
    too_many = "no checkpoint may hold this: 64 entries"
    yield Kind("24 averages of 64 lengths", _averages(24, lengths=64, whole=False), f"{too_many}|step 24", "sample")
    empty = "does not fit the checkpoint|its training state does not fit|step 480"
    yield Kind("480 averages of 8 lengths, empty", _averages(480, lengths=8, whole=False), empty, "sample")
    yield Kind("100 averages that say much", _averages(100, stuffing=50_000), "of step 10, it says 100", ALL)
    yield Kind("weights that are no numbers", _each(EMA, _not_numbers), "not finite", ALL, (2, 3))
    yield Kind("a terabyte of holes", lambda foreign: os.truncate(foreign.checkpoint / EMA, 2**40), "json says")


def _put(name: str, content: Callable[[Foreign], bytes]) -> Callable[[Foreign], object]:
    return lambda foreign: foreign.put(name, content(foreign))


def _slipped_in(name: str, content: Callable[[Foreign], bytes]) -> Callable[[Foreign], object]:
    return lambda foreign: (foreign.checkpoint / name).write_bytes(content(foreign))


def _not_numbers(key: str, entry: dict, content: bytes) -> dict[str, Entry]:
    return {key: (entry, b"\xff" * len(content))}
