"""Well-known data sets, each the training split as one `ImageSet`; with `num_classes`, which must be 10, with labels.

torchvision and scikit-learn are imported where they are used: they take seconds.
"""

import contextlib
import functools
import gzip
import http.client
import io
import os
import platform
import secrets
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from ddpm_cli.data.image_set import ImageSet, check_channels, height_width, resize, with_channels
from ddpm_cli.data.labels import check_num_classes

Read = TypeVar("Read")

TEN_DIGITS = tuple("0123456789")
TEN_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
TEN_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def digits(
    *,
    image_size: int | Sequence[int] = 8,
    channels: int = 1,
    flip: bool = False,
    num_classes: int | None = None,
) -> ImageSet:
    """scikit-learn's 1797 handwritten digits, 8 x 8; comes with the package, nothing is fetched."""
    return _image_set("digits", _read_digits, image_size, channels, flip, num_classes, TEN_DIGITS)


def mnist(
    *,
    root: str = "data",
    download: bool = False,
    image_size: int | Sequence[int] = 28,
    channels: int = 1,
    flip: bool = False,
    num_classes: int | None = None,
) -> ImageSet:
    """MNIST, 60,000 x 28 x 28, from `root`/MNIST/raw, extracted or fetched first where needed.

    Raises FileNotFoundError saying which file should be where, if it is absent or damaged and cannot be fetched.
    """
    labelled = num_classes is not None
    read = functools.partial(_read_mnist, "MNIST", root, download, labelled=labelled)
    return _image_set("mnist", read, image_size, channels, flip, num_classes, TEN_DIGITS)


def fashion_mnist(
    *,
    root: str = "data",
    download: bool = False,
    image_size: int | Sequence[int] = 28,
    channels: int = 1,
    flip: bool = False,
    num_classes: int | None = None,
) -> ImageSet:
    """Fashion-MNIST, 60,000 x 28 x 28, from `root`/FashionMNIST/raw; raises as `mnist`."""
    labelled = num_classes is not None
    read = functools.partial(_read_mnist, "FashionMNIST", root, download, labelled=labelled)
    return _image_set("fashion_mnist", read, image_size, channels, flip, num_classes, TEN_CLOTHES)


def cifar10(
    *,
    root: str = "data",
    download: bool = False,
    image_size: int | Sequence[int] = 32,
    channels: int = 3,
    flip: bool = True,
    num_classes: int | None = None,
) -> ImageSet:
    """CIFAR-10, 50,000 x 3 x 32 x 32, from `root`/cifar-10-batches-py or its archive in `root`; raises as `mnist`."""
    read = functools.partial(_read_cifar10, root, download)
    return _image_set("cifar10", read, image_size, channels, flip, num_classes, TEN_THINGS)


def _image_set(
    name: str,
    read: Callable[[], tuple[np.ndarray, np.ndarray | None]],
    image_size: int | Sequence[int],
    channels: int,
    flip: bool,
    num_classes: int | None,
    class_names: tuple[str, ...],
) -> ImageSet:
    size = height_width(image_size)  # a wrong setting is found before anything is fetched
    check_channels(channels)
    check_num_classes(num_classes, name, class_names)
    pixels, labels = read()
    pixels = with_channels(resize(pixels, size), channels)
    if num_classes is None:
        return ImageSet(pixels, name, flip=flip)
    return ImageSet(pixels, name, flip=flip, labels=labels, class_names=class_names)


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[1797, 1, 8, 8]` and int64 `[1797]`."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # [1797, 64], 0..16
    pixels = np.rint(np.asarray(images) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return pixels, np.asarray(labels).astype(np.int64)


def _read_mnist(dataset: str, root: str, download: bool, *, labelled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 `[60000, 1, 28, 28]`, and int64 `[60000]` if `labelled`: else their file need not be there."""
    pixels = _read_idx(dataset, "train-images", root, download)[:, None]
    return pixels, _read_idx(dataset, "train-labels", root, download) if labelled else None


def _read_idx(dataset: str, kind: Literal["train-images", "train-labels"], root: str, download: bool) -> np.ndarray:
    """uint8 `[60000, 28, 28]` or int64 `[60000]` from one of an MNIST-like set's four files."""
    from torchvision import datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file

    published = getattr(datasets, dataset)
    file, md5 = next(resource for resource in published.resources if resource[0].startswith(kind))
    read_file = read_image_file if kind == "train-images" else read_label_file
    urls = tuple(mirror + file for mirror in published.mirrors)
    archive = _Archive(_absolute(root) / dataset / "raw" / file, md5, urls)

    def read() -> np.ndarray:
        return read_file(str(archive.path.with_suffix(""))).numpy()

    return _read_extracting(read, archive, download)


def _read_cifar10(root: str, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[50000, 3, 32, 32]` and int64 `[50000]`."""
    from torchvision.datasets import CIFAR10

    folder = _absolute(root)

    def read() -> tuple[np.ndarray, np.ndarray]:
        images = CIFAR10(folder, train=True, download=False)  # checks the MD5 of every file before it unpickles one
        return np.ascontiguousarray(images.data.transpose(0, 3, 1, 2)), np.array(images.targets, np.int64)

    archive = _Archive(folder / CIFAR10.filename, CIFAR10.tgz_md5, (CIFAR10.url,))
    return _read_extracting(read, archive, download)


@dataclass(frozen=True)
class _Archive:
    """A data set as it is published: the file's place here, its MD5, and the addresses it can be had from."""

    path: Path
    md5: str
    urls: tuple[str, ...]


def _read_extracting(read: Callable[[], Read], archive: _Archive, download: bool) -> Read:
    """What `read` finds beside the archive; if that fails, what it finds once the archive is extracted there."""
    # What torchvision raises for files that are absent, cut short or changed. Extraction can have been interrupted.
    with contextlib.suppress(OSError, RuntimeError, ValueError, AssertionError, TypeError, KeyError):
        return read()
    _provide(archive, download)
    _unpack(archive.path)
    return read()


def _unpack(archive: Path) -> None:
    """Unpack a .tar.gz or .gz file beside itself, and nowhere else.

    Raises ValueError for an archive that holds anything but files and folders to be put there, before any has been put
    there; OSError if it cannot be read, or if this Python cannot unpack safely.
    """
    try:
        if archive.suffixes[-2:] == [".tar", ".gz"]:
            _unpack_tar(archive)
        else:
            _unpack_gzip(archive)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise OSError(f"cannot unpack {archive}: {error}") from error


def _unpack_tar(archive: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise OSError(
            f"cannot unpack {archive} safely with Python {platform.python_version()}: use 3.11.4 or later, "
            f"or unpack it in {archive.parent} by hand"
        )
    with tarfile.open(archive) as tar:
        for member in tar:
            _check_member(member, archive)
        tar.extractall(archive.parent, filter="data")


def _check_member(member: tarfile.TarInfo, archive: Path) -> None:
    """Raise ValueError for what the filter refuses (it leads outside, or is a device), and for an absolute path.

    The filter would make an absolute path a relative one. No data set of ours has one, so something is wrong with it.
    """
    try:
        if member.name.startswith("/"):
            raise tarfile.AbsolutePathError(member)
        tarfile.data_filter(member, str(archive.parent))
    except tarfile.FilterError as error:
        raise ValueError(f"{archive} is not to be trusted, nothing was unpacked: {error}") from error


def _unpack_gzip(archive: Path) -> None:
    partial = archive.with_suffix(f".{secrets.token_hex(4)}.part")  # its own: a second run may be doing the same
    try:
        with gzip.open(archive) as packed, open(partial, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        os.replace(partial, archive.with_suffix(""))
    finally:
        partial.unlink(missing_ok=True)


def _provide(archive: _Archive, download: bool) -> None:
    """Leave a good archive in its place, fetched if `download` and need be, or raise FileNotFoundError."""
    from torchvision.datasets.utils import check_integrity

    if check_integrity(archive.path, archive.md5):
        return
    state = f"is corrupted (its MD5 is not {archive.md5})" if archive.path.exists() else "is missing"
    if not download:
        raise FileNotFoundError(f"{archive.path} {state}: set data.download=true, or put {archive.urls[0]} there")
    failures = []
    for url in archive.urls:
        try:
            _fetch(url, archive)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
        else:
            return
    raise FileNotFoundError(
        f"{archive.path} {state} and cannot be fetched; put the file there by hand. Tried {'; '.join(failures)}"
    )


def _fetch(url: str, archive: _Archive) -> None:
    """Download the archive, under its own name only once its MD5 is right."""
    from torchvision.datasets.utils import download_url

    partial = archive.path.with_name(f"{archive.path.name}.part")
    # torchvision draws a progress bar: welcome on a terminal, litter in a log.
    quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            download_url(url, str(partial.parent), filename=partial.name, md5=archive.md5)
        partial.replace(archive.path)
    finally:
        partial.unlink(missing_ok=True)


def _absolute(root: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(root)))
