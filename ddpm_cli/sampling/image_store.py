"""Images that are being drawn: on the disk as soon as they are, so that a run of many resumes where it was stopped.

A hidden folder in the output directory holds

    identity.json   what decides the images: only a run of the same identity resumes here; once all is made of them that
                    is to be made, it is renamed to samples.json beside that folder, by which the run has finished
    pixels          uint8 [N, H, W, C], image i at its own place
    done            a byte for each batch, 1 once its images are on the disk
    trajectory_*.npy    the way there of the first images, by batch
    lock            held by the process that began the run or resumes it

Several processes write to the same files, each its own batches. What is not marked as done is drawn again.
"""

import io
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.config.compare import all_differences
from ddpm_cli.config.errors import shown
from ddpm_cli.io import durable, lock, plain_files
from ddpm_cli.io.own_output import FINISHED_FILE, SAMPLED
from ddpm_cli.io.own_output import UNFINISHED_FOLDER as FOLDER

IDENTITY_FILE = "identity.json"
PIXELS_FILE = "pixels"
DONE_FILE = "done"
TRAJECTORIES = "trajectory_*.npy"
LOCK_FILE = "lock"

MOST_IDENTITY = 2**20  # bytes of JSON; ours has 3 kB
MOST_BATCHES = 2**26
FLUSH_SECONDS = 1.0  # what a killed process may have to draw again; more often, flushing would take time from drawing


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold an output directory while inside. Afterwards nothing is left of a run that has finished, or drawn nothing.

    Raises:
        BlockingIOError: if another process holds it; says which.
        ValueError: if something in its hidden folder is a link, or no plain file.
    """
    folder = directory / FOLDER
    with suppress(FileExistsError):
        os.mkdir(folder)
    try:
        for path in (folder, *folder.iterdir()):
            if path.is_symlink():
                raise ValueError(f"{path} is a link; what is being drawn lies in its own directory")
            if not path.is_dir() and plain_files.size(path) > MOST_BATCHES and path.name == DONE_FILE:
                raise ValueError(f"{path} is not whole; remove {folder} to begin anew")
        try:
            release = lock.acquire(folder / LOCK_FILE)
        except BlockingIOError as error:
            raise BlockingIOError(f"{directory}: another process is drawing there: {error}") from error
        try:
            yield
        finally:
            try:
                if not (folder / IDENTITY_FILE).exists() or not any(_done(folder)):
                    with suppress(OSError):  # what is left is cleared by the next
                        _clear(folder)
            finally:
                release()
    finally:
        with suppress(OSError):
            os.rmdir(folder)


def begin(
    directory: Path,
    identity: dict,
    *,
    batch_size: int,
    shape: Sequence[int],
    copies: int = 1,
    wanted: Sequence[str] = (),
) -> list[Path]:
    """Make room for a new run in a directory that is held, or find that it can be resumed there, or has finished.

    Args:
        batch_size: images of every batch but the last.
        shape: `[N, H, W, C]` of all images.
        copies: how many of all images there will be on the disk.
        wanted: names of what is to be made of the images.

    Returns:
        What has been made of the images if this very run has finished there; nothing if it is to be drawn.

    Raises:
        ValueError: if what was begun there is of another identity, if its files are not whole, or if the directory
            holds finished pictures of another run, or not the wanted ones.
        OSError: if there is no room for the images.
    """
    folder = directory / FOLDER
    sizes = {PIXELS_FILE: math.prod(shape), DONE_FILE: math.ceil(shape[0] / batch_size)}
    kept = _identity_in(folder / IDENTITY_FILE)
    if kept is not None and any(_done(folder)):
        _check_same(
            f"{directory} holds unfinished images",
            kept,
            identity,
            f"choose another directory, or remove {folder} to begin anew",
        )
        for name, size in sizes.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise ValueError(f"{folder / name} is not whole; remove {folder} to begin anew")
            durable.unshare(folder / name)
        for file in folder.glob(TRAJECTORIES):
            _check_trajectory(file)
        return []
    _clear(folder)
    finished = _identity_in(directory / FINISHED_FILE)
    if finished is not None:
        _check_same(f"{directory} holds finished images", finished, identity, "choose another directory")
        missing = [name for name in wanted if not (directory / name).exists()]
        if missing:
            raise ValueError(f"{directory} has finished without {missing[0]}; choose another directory")
        return [directory / name for name in SAMPLED if (directory / name).exists()]
    for name in SAMPLED:
        if (directory / name).exists():
            raise ValueError(f"{directory} already holds {name}; choose another directory")
    durable.check_space(directory, copies * sizes[PIXELS_FILE])
    if sizes[DONE_FILE] > MOST_BATCHES:
        raise ValueError(f"at most {MOST_BATCHES:,} batches are drawn there; a larger batch_size makes fewer")
    for name, size in sizes.items():
        with durable.errors_naming(folder / name), open(folder / name, "xb") as file:
            file.truncate(size)
            durable.flush(file.fileno(), folder / name)
    durable.replace(folder / IDENTITY_FILE, json.dumps(identity, indent=2).encode())
    durable.sync(directory)
    return []


def files(directory: Path) -> list[Path]:
    """What every process opens of a run that has been begun."""
    return [directory / FOLDER / name for name in (PIXELS_FILE, DONE_FILE)]


class ImageStore:
    """What of the images in a directory is there, for a process to read and add to.

    Args:
        directory: where a run has been begun.
        batch_size: images of every batch but the last.
        shape: `[N, H, W, C]` of all images.

    Raises:
        OSError: if it cannot be read and written.
    """

    def __init__(self, directory: Path, *, batch_size: int, shape: Sequence[int]):
        self.directory = directory
        self.folder = directory / FOLDER
        self.batch_size = batch_size
        self.shape = tuple(shape)
        self._unmarked: list[int] = []  # batches that have been written, but may not be on the disk
        self._flushed = time.monotonic()
        self._pixels = open(self.folder / PIXELS_FILE, "r+b", buffering=0)  # noqa: SIM115 - closed in __exit__
        self._done = open(self.folder / DONE_FILE, "r+b", buffering=0)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.flush()
        except OSError:
            if error is None:
                raise
        finally:
            self._pixels.close()
            self._done.close()

    @property
    def missing(self) -> list[range]:
        """The batches that are not done, as the indices of their images."""
        return [self._batch(number) for number, done in enumerate(_done(self.folder)) if not done]

    @property
    def finished(self) -> int:
        """How many images are done, in all processes."""
        return sum(len(self._batch(number)) for number, done in enumerate(_done(self.folder)) if done)

    def _batch(self, number: int) -> range:
        first = number * self.batch_size
        return range(first, min(first + self.batch_size, self.shape[0]))

    def keep(self, indices: range, images: Tensor, trajectory: Tensor | None = None) -> None:
        """Write down a batch. It counts as done once flushed, at the latest when this is closed.

        Args:
            indices: of its images.
            images: uint8 `[B, C, H, W]` on the CPU.
            trajectory: x of the first of them on its way, uint8 `[frames, k, C, H, W]`.
        """
        with durable.errors_naming(self.folder / PIXELS_FILE):
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
            _write(self._pixels, indices.start * math.prod(self.shape[1:]), pixels.data.cast("B"))
        if trajectory is not None:
            content = io.BytesIO()
            np.save(content, trajectory.numpy())
            durable.replace(self._trajectory_file(indices.start), content.getvalue())
        self._unmarked.append(indices.start // self.batch_size)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Mark what has been written as done, once it is on the disk."""
        if not self._unmarked:
            return
        durable.flush(self._pixels.fileno(), self.folder / PIXELS_FILE)
        with durable.errors_naming(self.folder / DONE_FILE):
            for number in self._unmarked:
                _write(self._done, number, memoryview(b"\1"))
        durable.flush(self._done.fileno(), self.folder / DONE_FILE)
        self._unmarked.clear()
        self._flushed = time.monotonic()

    def images(self, indices: range) -> Tensor:
        """uint8 `[len(indices), C, H, W]`, of a range without gaps."""
        size = math.prod(self.shape[1:])
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        with durable.errors_naming(self.folder / PIXELS_FILE):
            self._pixels.seek(indices.start * size)
            read = self._pixels.readinto(pixels.data.cast("B")) if len(indices) > 0 else 0
        assert read == pixels.nbytes, (read, indices)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def trajectory_files(self, followed: int) -> list[Path]:
        """Those that all processes together leave of the first `followed` images."""
        return [self._trajectory_file(first) for first in range(0, min(followed, self.shape[0]), self.batch_size)]

    def _trajectory_file(self, first: int) -> Path:
        return self.folder / f"trajectory_{first:06d}.npy"

    def trajectory(self) -> Tensor | None:
        """x of the first images on its way, uint8 `[frames, images, C, H, W]`; None: none were kept."""
        parts = [torch.from_numpy(np.load(file)) for file in sorted(self.folder.glob(TRAJECTORIES))]
        return torch.cat(parts, dim=1) if parts else None

    def end(self) -> None:
        """All that was to be made of the images has been: what is left is no longer a run to resume."""
        os.rename(self.folder / IDENTITY_FILE, self.directory / FINISHED_FILE)
        durable.sync(self.directory)


def _write(file: io.FileIO, offset: int, content: memoryview) -> None:
    file.seek(offset)
    while len(content) > 0:
        content = content[file.write(content) :]


def _identity_in(file: Path) -> dict | None:
    try:
        found = json.loads(plain_files.read(file, MOST_IDENTITY))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        reason = shown(str(error))
        raise ValueError(f"{file} is not ours ({reason}); remove {file.parent} to begin anew") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not ours; remove {file.parent} to begin anew")
    return found


def _check_same(what: str, kept: dict, identity: dict, advice: str) -> None:
    changed = all_differences(kept, json.loads(json.dumps(identity)))
    if changed:
        listed = "".join(f"\n  {line}" for line in changed)
        raise ValueError(f"{what} of another configuration:{listed}\n  {advice}")


def _done(folder: Path) -> bytes:
    try:
        return plain_files.read(folder / DONE_FILE, MOST_BATCHES)
    except FileNotFoundError:
        return b""


def _check_trajectory(file: Path) -> None:
    """Raise ValueError unless as many bytes lie in it as its header says, before memory is taken for them."""
    found = plain_files.size(file)
    try:
        with file.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            whole = dtype == np.uint8 and len(shape) == 5 and stream.tell() + math.prod(shape) == found
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{file} is not whole; remove {file.parent} to begin anew")


def _clear(folder: Path) -> None:
    """Remove what a run that drew nothing, or has finished, left in its folder."""
    for path in folder.iterdir():
        if path.name in (LOCK_FILE, LOCK_FILE + lock.EXISTS):
            continue
        if path.is_dir():
            durable.remove_tree(path)
        else:
            path.unlink()
