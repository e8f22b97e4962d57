"""A little model of a disk, and of what it may hold after a power cut; and a hand on the calls that change a real one.

POSIX and no more: fsync of a file makes safe what the file holds and not its name; fsync of a directory makes safe the
names in it and not what they name; everything else may be on the disk or not, in any combination. Only a rename is
taken to happen as a whole or not at all.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

Tree = dict[str, "bytes | Tree"]

# Everything that `durable` and `checkpoint.saving` do to a disk, in `os`.
CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir", "listdir")


@contextmanager
def intercepted(handler: Callable[..., Any]) -> Iterator[None]:
    """Inside, every call `os.NAME(*arguments)` of CALLS becomes `handler(NAME, os.NAME, *arguments)`."""
    originals = {name: getattr(os, name) for name in CALLS}
    for name, really in originals.items():
        setattr(os, name, partial(handler, name, really))
    try:
        yield
    finally:
        for name, really in originals.items():
            setattr(os, name, really)


class Operation(NamedTuple):
    """One change of the disk, paths from the root of what is watched; or what a program has promised by then."""

    name: str  # create, write, fsync, mkdir, rename, unlink, rmdir; announce
    path: Path = Path()
    data: bytes = b""  # written, at the end of the file
    target: Path = Path()  # of a rename
    step: int = 0  # announced


class Recorder:
    """A handler for `intercepted` that does what is asked and notes it down."""

    def __init__(self, root: Path):
        self.root = root
        self.operations: list[Operation] = []
        self._open: dict[int, Path] = {}

    def __call__(self, name: str, really: Callable, *arguments: Any) -> Any:
        result = really(*arguments)
        if name == "open":
            self._open[result] = self._inside(arguments[0])
            if arguments[1] & os.O_CREAT:
                assert arguments[1] & os.O_EXCL, "the model knows new files only"
                self._note("create", self._open[result])
        elif name == "close":
            del self._open[arguments[0]]
        elif name == "write":
            self._note("write", self._open[arguments[0]], data=bytes(arguments[1][:result]))
        elif name == "fsync":
            self._note("fsync", self._open[arguments[0]])
        elif name in ("rename", "replace"):
            self._note("rename", self._inside(arguments[0]), target=self._inside(arguments[1]))
        elif name in ("mkdir", "unlink", "rmdir"):
            self._note(name, self._inside(arguments[0]))
        return result

    def announce(self, step: int) -> None:
        """The program has said that `step` is safe."""
        self._note("announce", step=step)

    def _note(self, name: str, *arguments: Any, **details: Any) -> None:
        self.operations.append(Operation(name, *arguments, **details))

    def _inside(self, path: str | Path) -> Path:
        return Path(path).relative_to(self.root)


@dataclass(eq=False)
class _File:
    safe: bytes = b""
    unsafe: list[tuple[int, bytes]] = field(default_factory=list)  # writes: where, what
    length: int = 0

    def fsync(self) -> None:
        self.safe, self.unsafe = _everything(self), []


@dataclass(eq=False)
class _Directory:
    safe: dict[str, "_File | _Directory"] = field(default_factory=dict)
    unsafe: list[dict[str, "_File | _Directory | None"]] = field(default_factory=list)  # changes of names; None: gone

    def names(self, kept: Callable[[], bool] = lambda: True) -> dict[str, "_File | _Directory"]:
        names: dict[str, _File | _Directory | None] = dict(self.safe)
        for change in self.unsafe:
            if kept():
                names |= change
        return {name: node for name, node in names.items() if node is not None}

    def fsync(self) -> None:
        self.safe, self.unsafe = self.names(), []


class Cut(NamedTuple):
    """Which of the things that had not been made safe a power cut leaves."""

    names: Callable[[], bool]  # asked for every change of names: is it on the disk?
    data: Callable[[bytes], bytes]  # what is on the disk where this was written


ALL_LOST = Cut(lambda: False, lambda data: b"")
NAMES_KEPT = Cut(lambda: True, lambda data: b"")
DATA_KEPT = Cut(lambda: False, lambda data: data)
ALL_KEPT = Cut(lambda: True, lambda data: data)


def at_random(random: Random) -> Cut:
    """Every change of names is kept or not; every write is kept, lost, torn, or room was made for it and no more."""

    def data(written: bytes) -> bytes:
        torn = written[: random.randrange(len(written))]
        return random.choice([written, b"", torn, bytes(len(written)), random.randbytes(len(written))])

    return Cut(lambda: random.random() < 0.5, data)


class Disk:
    """A disk that holds `tree`, all of it safe."""

    def __init__(self, tree: Tree):
        self._root = _safe_directory(tree)

    def apply(self, operation: Operation) -> None:
        name, path = operation.name, operation.path
        if name == "announce":
            return
        parent = self._at(path.parent)
        if name in ("write", "fsync"):
            node = self._at(path)
            if name == "fsync":
                node.fsync()
            else:
                node.unsafe.append((node.length, operation.data))
                node.length += len(operation.data)
        elif name in ("create", "mkdir"):
            parent.unsafe.append({path.name: _File() if name == "create" else _Directory()})
        elif name == "rename":
            assert operation.target.parent == path.parent, "the model knows renames within a directory only"
            parent.unsafe.append({path.name: None, operation.target.name: self._at(path)})
        else:
            assert name in ("unlink", "rmdir"), name
            parent.unsafe.append({path.name: None})

    def after(self, cut: Cut) -> Tree:
        """What is on the disk after a power cut now."""
        return _left(self._root, cut)

    def _at(self, path: Path) -> Any:
        node = self._root
        for part in path.parts:
            assert isinstance(node, _Directory)
            node = node.names()[part]
        return node


def _safe_directory(tree: Tree) -> _Directory:
    return _Directory(
        {
            name: _safe_directory(node) if isinstance(node, dict) else _File(node, length=len(node))
            for name, node in tree.items()
        }
    )


def _left(directory: _Directory, cut: Cut) -> Tree:
    return {
        name: _left(node, cut) if isinstance(node, _Directory) else _content(node, cut)
        for name, node in directory.names(cut.names).items()
    }


def _content(file: _File, cut: Cut) -> bytes:
    content = bytearray(file.safe)
    for start, written in file.unsafe:
        kept = cut.data(written)
        if kept:
            content += bytes(max(0, start - len(content)))  # a hole, where a write before it was lost
            content[start : start + len(kept)] = kept
    return bytes(content)


def _everything(file: _File) -> bytes:
    return _content(file, ALL_KEPT)


def read_tree(directory: Path) -> Tree:
    """What a real directory holds."""
    return {path.name: read_tree(path) if path.is_dir() else path.read_bytes() for path in directory.iterdir()}


def write_tree(tree: Tree, directory: Path) -> None:
    """Make a real directory that holds `tree`."""
    directory.mkdir()
    for name, node in tree.items():
        if isinstance(node, dict):
            write_tree(node, directory / name)
        else:
            (directory / name).write_bytes(node)
