"""Images of any program, in a folder or an .npz file; read as needed, after all have been checked."""

import os
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from ddpm_cli.data.cache_files import cache_directory
from ddpm_cli.data.decode import is_grey, upright_size
from ddpm_cli.data.folder import folder
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.scan import find_images, kinds_text
from ddpm_cli.evaluation.content import content_sha256
from ddpm_cli.evaluation.npz_file import NpzFile
from ddpm_cli.io.own_output import FINISHED_FILE, IMAGES_DIRECTORY, NPZ_FILE, UNFINISHED_FOLDER
from ddpm_cli.io.text import printable

PIXELS, LABELS = "arr_0", "arr_1"  # as numpy.savez calls what it is given without names
MOST_CLASSES = 100_000
_MOST_LABELS = 8 * 10**8  # bytes
_SHOWN = 5  # bad files


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images `uint8 [N, C, H, W]`, with labels if the file has any."""

    images: ImageSet

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each."""
        return self.images.shape

    @property
    def labels(self) -> np.ndarray | None:
        """int64 `[N]`."""
        return self.images.labels

    @cached_property
    def sha256(self) -> str:
        """Of the pixels, wherever they lie."""
        return content_sha256(self.images.pixels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 `[B, C, H, W]`: the images of int64 `[B]` indices."""
        return self.images.pixels[indices]


def open_images(path: Path) -> ImageFiles:
    """The images in a folder and below it, in an output directory of ddpm-sample, or in an .npz file.

    Those of a folder come in the order of their names, what is transparent in them over white. An .npz file has uint8
    `[N, H, W, C]` (grey also `[N, H, W]`) as arr_0, and perhaps labels as arr_1.

    Raises:
        ValueError: for what holds no images, or images that are damaged, of different sizes, or of another type.
        OSError: if it cannot be read.
    """
    path = Path(os.path.abspath(path.expanduser()))
    if not path.is_dir():
        with NpzFile(path) as file:
            return images_in(file)
    if not {FINISHED_FILE, UNFINISHED_FOLDER}.isdisjoint(os.listdir(path)):
        return open_images(_samples_in(path))
    return ImageFiles(_folder(path))


def _samples_in(directory: Path) -> Path:
    """The place of single images in an output directory of ddpm-sample."""
    if (directory / UNFINISHED_FOLDER).exists():
        raise ValueError(f"{printable(str(directory))}: sampling there has not finished")
    for name in (IMAGES_DIRECTORY, NPZ_FILE):
        if (directory / name).exists():
            return directory / name
    raise ValueError(f"{printable(str(directory))} has only a grid of all images; save=npz keeps each image")


# Folders -------------------------------------------------------------------------------------------------------------


def _folder(path: Path) -> ImageSet:
    where = printable(str(path))
    found = find_images(str(path), extensions=None, follow_links=True)
    if not found.images and not found.bad:
        there = f"; there are {kinds_text(found.left_out)}" if found.left_out else ""
        raise ValueError(f"no images in {where}{there}")
    if found.bad:
        _refuse(where, [image.line(str(path)) for image in found.bad])
    size, grey = None, True
    for image in found.images:
        file = path / image.name
        try:
            of_this = upright_size(file)
            grey = grey and is_grey(file)
        except ValueError as error:
            _refuse(where, [f"{printable(str(file))}: {printable(str(error))}"])
        if size is None:
            size = of_this
        if of_this != size:
            raise ValueError(
                f"{where}: images must be of one size, but {printable(found.images[0].name)} is {size[0]} x {size[1]} "
                f"and {printable(image.name)} {of_this[0]} x {of_this[1]}"
            )
    assert size is not None
    images = folder(
        str(path),
        image_size=size,
        channels=1 if grey else 3,
        flip="none",
        extensions=None,
        follow_links=True,
        on_bad="skip",
        memory_mb=0,
    )
    if images.skipped:
        _refuse(where, list(images.skipped))
    return images


def _refuse(where: str, lines: list[str]) -> NoReturn:
    more = [f"and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    raise ValueError("\n  ".join([f"{where}: images that cannot be used:", *lines[:_SHOWN], *more]))


# Arrays --------------------------------------------------------------------------------------------------------------


class StoredArray:
    """uint8 `[N, C, H, W]` of uint8 `[N, H, W, C]` in a file, like an array that only takes arrays of indices.

    Read, not mapped into memory: a file that shrinks under a map kills the process (SIGBUS).
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, file: BinaryIO, start: int, stored_shape: tuple[int, int, int, int]):
        self._file, self._start, self._stored = file, start, stored_shape
        count, height, width, channels = stored_shape
        self.shape = (count, channels, height, width)
        self.nbytes = count * height * width * channels
        self._one_at_a_time = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 `[B, C, H, W]`. Raises OSError if the file has become shorter."""
        pixels = np.empty((len(indices), *self._stored[1:]), np.uint8)
        size = self.nbytes // len(self)
        with self._one_at_a_time:
            for place, image in enumerate(indices.tolist()):
                self._file.seek(self._start + image * size)
                content = self._file.read(size)
                if len(content) != size:
                    raise OSError(f"image {image} is no longer in the file")
                pixels[place] = np.frombuffer(content, np.uint8).reshape(self._stored[1:])
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def images_in(file: NpzFile) -> ImageFiles:
    """The images in an .npz file. Raises as `open_images`."""
    where = printable(str(file.path))
    if PIXELS not in file.names:
        raise ValueError(f"{where}: images must be uint8 [N, H, W, C], called {PIXELS}; it holds {file.names_text()}")
    found = file.member(PIXELS)
    shape = (*found.shape, 1) if len(found.shape) == 3 else found.shape
    if found.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3, 4) or 0 in shape or found.fortran_order:
        raise ValueError(
            f"{where}: {PIXELS} must be uint8 [N, H, W, 3], [N, H, W, 4] or [N, H, W], "
            f"got {found.dtype} {list(found.shape)}"
        )
    labels = _labels(file, shape[0]) if LABELS in file.names else None
    cache = cache_directory(None)
    cache.mkdir(parents=True, exist_ok=True)
    pixels = StoredArray(*file.unpacked(PIXELS, cache), (shape[0], shape[1], shape[2], shape[3]))
    names = () if labels is None else tuple(str(number) for number in range(int(labels.max()) + 1))
    return ImageFiles(ImageSet(pixels, printable(file.path.stem), flip="none", labels=labels, class_names=names))


def _labels(file: NpzFile, count: int) -> np.ndarray:
    labels = file.read(LABELS, most=_MOST_LABELS)
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ValueError(
            f"{printable(str(file.path))}: {LABELS} must be the labels [{count}] of the images, whole numbers from 0, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    return labels.astype(np.int64)
