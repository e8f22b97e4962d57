"""Images that are being drawn: on the disk as soon as they are, so that a run of many resumes where it was stopped.

A hidden folder in the output directory holds what `batch_store` says, and

    pixels          uint8 [N, H, W, C], image i at its own place
    trajectory_*.npy    the way there of the first images, by batch

Once all is made of the images that is to be made, identity.json is renamed to samples.json beside that folder, by which
the run has finished.
"""

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.io import durable, plain_files
from ddpm_cli.io.own_output import FINISHED_FILE, SAMPLED
from ddpm_cli.io.own_output import UNFINISHED_FOLDER as FOLDER
from ddpm_cli.sampling import batch_store
from ddpm_cli.sampling.batch_store import DONE_FILE, IDENTITY_FILE, BatchStore

PIXELS_FILE = "pixels"
TRAJECTORIES = "trajectory_*.npy"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold an output directory while inside. Afterwards nothing is left of a run that has finished, or drawn nothing.

    Raises:
        BlockingIOError: if another process holds it; says which.
        ValueError: if something in its hidden folder is a link, or no plain file.
    """
    with batch_store.locked(directory / FOLDER, f"{directory}: another process is drawing there"):
        yield


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
    folder, layout = directory / FOLDER, _layout(shape, batch_size)
    if batch_store.resumes(folder, identity, what=f"{directory} holds unfinished images", **layout):
        for file in folder.glob(TRAJECTORIES):
            _check_trajectory(file)
        return []
    batch_store.clear(folder)
    finished = batch_store.identity_in(directory / FINISHED_FILE)
    if finished is not None:
        batch_store.check_same(f"{directory} holds finished images", finished, identity, "choose another directory")
        missing = [name for name in wanted if not (directory / name).exists()]
        if missing:
            raise ValueError(f"{directory} has finished without {missing[0]}; choose another directory")
        return [directory / name for name in SAMPLED if (directory / name).exists()]
    for name in SAMPLED:
        if (directory / name).exists():
            raise ValueError(f"{directory} already holds {name}; choose another directory")
    durable.check_space(directory, copies * math.prod(shape))
    batch_store.create(folder, identity, **layout)
    return []


def _layout(shape: Sequence[int], batch_size: int) -> dict:
    return {"n": shape[0], "batch_size": batch_size, "records": {PIXELS_FILE: math.prod(shape[1:])}}


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
        self._batches = BatchStore(self.folder, **_layout(self.shape, batch_size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._batches.__exit__(kind, error, trace)

    @property
    def missing(self) -> list[range]:
        """The batches that are not done, as the indices of their images."""
        return self._batches.missing

    @property
    def finished(self) -> int:
        """How many images are done, in all processes."""
        return self._batches.finished

    def keep(self, indices: range, images: Tensor, trajectory: Tensor | None = None) -> None:
        """Write down a batch. It counts as done once flushed, at the latest when this is closed.

        Args:
            indices: of its images.
            images: uint8 `[B, C, H, W]` on the CPU.
            trajectory: of the first of them, uint8 `[frames, 2, k, C, H, W]`: x_t and the x_0 guessed of it.
        """
        if trajectory is not None:  # before the batch can count as done
            content = io.BytesIO()
            np.save(content, trajectory.numpy())
            durable.replace(self._trajectory_file(indices.start), content.getvalue())
        self._batches.keep(indices, {PIXELS_FILE: images.permute(0, 2, 3, 1).contiguous().numpy().data})

    def flush(self) -> None:
        """Mark what has been written as done, once it is on the disk."""
        self._batches.flush()

    def images(self, indices: range) -> Tensor:
        """uint8 `[len(indices), C, H, W]`, of a range without gaps."""
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        self._batches.read_into(PIXELS_FILE, indices, pixels.data)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def trajectory_files(self, followed: int) -> list[Path]:
        """Those that all processes together leave of the first `followed` images."""
        return [self._trajectory_file(first) for first in range(0, min(followed, self.shape[0]), self.batch_size)]

    def _trajectory_file(self, first: int) -> Path:
        return self.folder / f"trajectory_{first:06d}.npy"

    def trajectory(self) -> Tensor | None:
        """Of the first images, uint8 `[frames, 2, images, C, H, W]` as of `Film`; None: none was kept."""
        parts = [torch.from_numpy(np.load(file)) for file in sorted(self.folder.glob(TRAJECTORIES))]
        return torch.cat(parts, dim=2) if parts else None

    def end(self) -> None:
        """All that was to be made of the images has been: what is left is no longer a run to resume."""
        os.rename(self.folder / IDENTITY_FILE, self.directory / FINISHED_FILE)
        durable.sync(self.directory)


def _check_trajectory(file: Path) -> None:
    """Raise ValueError unless as many bytes lie in it as its header says, before memory is taken for them."""
    found = plain_files.size(file)
    try:
        with file.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            whole = dtype == np.uint8 and len(shape) == 6 and stream.tell() + math.prod(shape) == found
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{file} is incomplete; remove {file.parent} to start again")
