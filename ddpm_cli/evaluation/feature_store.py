"""Features of images that are being drawn, on the disk batch by batch: an evaluation that is killed loses a second.

A hidden folder beside the record holds what `sampling.batch_store` says, and

    features    float32 [N, D]
    pixels      uint8 [N, H, W, C], where the images themselves are wanted too

It goes once the record is written.
"""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.io import durable
from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError
from ddpm_cli.sampling import batch_store
from ddpm_cli.sampling.batch_store import DONE_FILE, IDENTITY_FILE, BatchStore

FEATURES_FILE = "features"
PIXELS_FILE = "pixels"
CHUNK_BYTES = 1 << 24


class Layout:
    """The number and shape of the images, and how many numbers are kept of each.

    Args:
        shape: `[N, H, W, C]` of the images.
        dimensions: D, features of an image.
        keeps_pixels: whether the images are kept too.
    """

    def __init__(self, *, batch_size: int, shape: Sequence[int], dimensions: int, keeps_pixels: bool):
        self.shape = tuple(shape)
        self.dimensions = dimensions
        self.keeps_pixels = keeps_pixels
        records = {FEATURES_FILE: 4 * dimensions}
        if keeps_pixels:
            records[PIXELS_FILE] = int(np.prod(self.shape[1:]))
        self.of_store = {"n": self.shape[0], "batch_size": batch_size, "records": records}

    @property
    def nbytes(self) -> int:
        """The bytes of all files together."""
        return self.shape[0] * sum(self.of_store["records"].values())


@contextmanager
def begun(folder: Path, identity: dict, layout: Layout, *, copies: int) -> Iterator[None]:
    """Lock a folder in which these features are made, now or in an earlier run.

    Args:
        copies: how many of all images there will be on the disk beside.

    Raises:
        BlockingIOError: if another process is at it.
        ValueError: if files of another run, or broken ones, lie there.
        OSError: if there is no room.
    """
    with batch_store.locked(folder, f"{folder.parent}: another process is making this evaluation"):
        if not batch_store.resumes(folder, identity, what=f"{folder} holds unfinished features", **layout.of_store):
            batch_store.clear(folder)
            durable.check_space(folder, layout.nbytes + copies * int(np.prod(layout.shape)))
            batch_store.create(folder, identity, **layout.of_store)
        yield


def files(folder: Path, layout: Layout) -> list[Path]:
    """The store that every process opens."""
    return [folder / name for name in (*layout.of_store["records"], DONE_FILE)]


class FeatureStore(BatchStore):
    """The features in a folder, for a process to read and add to.

    Raises:
        OSError: if it cannot be read and written.
    """

    def __init__(self, folder: Path, layout: Layout):
        super().__init__(folder, **layout.of_store)
        self.layout = layout

    def add(self, indices: range, images: Tensor, features: Tensor) -> None:
        """Write a batch; see `BatchStore.keep`.

        Args:
            images: uint8 `[B, C, H, W]` on the CPU.
            features: float32 `[B, D]`.

        Raises:
            RunError: if a feature is not a finite number.
        """
        if features.shape != (len(indices), self.layout.dimensions):
            raise RunError(f"features: expected [{len(indices)}, {self.layout.dimensions}], got {list(features.shape)}")
        if not torch.isfinite(features).all():
            raise RunError("features: are not finite; choose other features, or precision=fp32", NON_FINITE)
        content = {FEATURES_FILE: features.float().cpu().contiguous().numpy().data}
        if self.layout.keeps_pixels:
            content[PIXELS_FILE] = images.permute(0, 2, 3, 1).contiguous().numpy().data
        self.keep(indices, content)

    def features(self) -> np.ndarray:
        """float32 `[N, D]`, read from the disk as needed."""
        shape = (self.n, self.layout.dimensions)
        return np.memmap(self.folder / FEATURES_FILE, np.float32, mode="r", shape=shape)

    def images(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """uint8 `[len(indices), C, H, W]`: any of the images, if they are kept."""
        assert self.layout.keeps_pixels
        pixels = np.empty((len(indices), *self.layout.shape[1:]), np.uint8)
        for place, index in enumerate(indices):
            self.read_into(PIXELS_FILE, range(int(index), int(index) + 1), pixels[place].data)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def write_npz(self, path: Path) -> None:
        """The images as `numpy.savez(path, images)` would write them: uint8 `[N, H, W, C]` as arr_0."""
        header = {"descr": "|u1", "fortran_order": False, "shape": self.layout.shape}
        temporary = self.folder / f"new_{path.name}"
        temporary.unlink(missing_ok=True)
        at_a_time = max(1, CHUNK_BYTES // self.records[PIXELS_FILE])
        with (
            durable.errors_naming(temporary),
            zipfile.ZipFile(temporary, "w") as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as member,
        ):
            np.lib.format.write_array_header_1_0(member, header)
            for first in range(0, self.n, at_a_time):
                part = range(first, min(first + at_a_time, self.n))
                pixels = np.empty((len(part), *self.layout.shape[1:]), np.uint8)
                self.read_into(PIXELS_FILE, part, pixels.data)
                member.write(pixels.data)
        with temporary.open("r+b") as file:
            durable.flush(file.fileno(), temporary)
        temporary.replace(path)

    def end(self) -> None:
        """Call when the record is written: the files here are then no longer a run to resume."""
        (self.folder / IDENTITY_FILE).unlink()
