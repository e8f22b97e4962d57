"""Well-known data sets, each as one `ImageSet`; with `num_classes`, which must be 10, with labels.

They are the training split, unless `split` says otherwise. No YAML file has that option: no run trains on the images
that it is tested on, and checkpoints need not record it.

torchvision and scikit-learn are imported where they are used: they take seconds.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from ddpm_cli.data.archives import Archive, read_unpacking
from ddpm_cli.data.fingerprint import image_checksums
from ddpm_cli.data.image_set import Flip, ImageSet, check_flip
from ddpm_cli.data.labels import check_num_classes
from ddpm_cli.data.options import check_channels, check_split, height_width

RESIZE_BATCH = 1024  # images turned to float at a time: 60,000 of them at 64 px would take 3 GB

TEN_DIGITS = tuple("0123456789")
TEN_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
TEN_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def digits(
    *,
    image_size: int | Sequence[int] = 8,
    channels: int = 1,
    flip: Flip = "none",
    num_classes: int | None = None,
) -> ImageSet:
    """scikit-learn's 1797 handwritten digits, 8 x 8; they come with the package."""
    return _image_set(
        "digits",
        TEN_DIGITS,
        _read_digits,
        image_size=image_size,
        channels=channels,
        flip=flip,
        num_classes=num_classes,
    )


def mnist(
    *,
    root: str = "data",
    download: bool = False,
    image_size: int | Sequence[int] = 28,
    channels: int = 1,
    flip: Flip = "none",
    num_classes: int | None = None,
    split: Literal["train", "test"] = "train",
) -> ImageSet:
    """MNIST, 60,000 x 28 x 28 (test: 10,000), from `root`/MNIST/raw, unpacked or downloaded first if needed.

    Raises FileNotFoundError if a file is missing or damaged and cannot be downloaded; it says where the file belongs.
    """
    return _image_set(
        "mnist",
        TEN_DIGITS,
        functools.partial(_read_mnist, "MNIST", root, download, split, labelled=num_classes is not None),
        image_size=image_size,
        channels=channels,
        flip=flip,
        num_classes=num_classes,
    )


def fashion_mnist(
    *,
    root: str = "data",
    download: bool = False,
    image_size: int | Sequence[int] = 28,
    channels: int = 1,
    flip: Flip = "none",
    num_classes: int | None = None,
    split: Literal["train", "test"] = "train",
) -> ImageSet:
    """Fashion-MNIST, 60,000 x 28 x 28 (test: 10,000), from `root`/FashionMNIST/raw; raises as `mnist`."""
    return _image_set(
        "fashion_mnist",
        TEN_CLOTHES,
        functools.partial(_read_mnist, "FashionMNIST", root, download, split, labelled=num_classes is not None),
        image_size=image_size,
        channels=channels,
        flip=flip,
        num_classes=num_classes,
    )


def cifar10(
    *,
    root: str = "data",
    download: bool = False,
    image_size: int | Sequence[int] = 32,
    channels: int = 3,
    flip: Flip = "horizontal",
    num_classes: int | None = None,
    split: Literal["train", "test"] = "train",
) -> ImageSet:
    """CIFAR-10, 50,000 x 3 x 32 x 32 (test: 10,000), from `root`/cifar-10-batches-py or its archive in `root`.

    Raises as `mnist`.
    """
    return _image_set(
        "cifar10",
        TEN_THINGS,
        functools.partial(_read_cifar10, root, download, split),
        image_size=image_size,
        channels=channels,
        flip=flip,
        num_classes=num_classes,
    )


def _image_set(
    name: str,
    class_names: tuple[str, ...],
    read: Callable[[], tuple[np.ndarray, np.ndarray | None]],
    *,
    image_size: int | Sequence[int],
    channels: int,
    flip: Flip,
    num_classes: int | None,
) -> ImageSet:
    """What `read` reads, uint8 `[N, C, H, W]` and labels int64 `[N]`, as an image set; options are checked first."""
    size = height_width(image_size)
    check_channels(channels)
    check_flip(flip)
    check_num_classes(num_classes, name, class_names)
    pixels, labels = read()
    checksums = image_checksums(pixels)  # as published: scaled in floating point, they may differ on another processor
    pixels = with_channels(resize(pixels, size), channels)
    if num_classes is None:
        return ImageSet(pixels, name, flip=flip, checksums=checksums)
    return ImageSet(pixels, name, flip=flip, labels=labels, class_names=class_names, checksums=checksums)


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[1797, 1, 8, 8]` and int64 `[1797]`."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # [1797, 64], 0..16
    pixels = np.rint(np.asarray(images) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return pixels, np.asarray(labels).astype(np.int64)


def _read_mnist(
    dataset: str, root: str, download: bool, split: Literal["train", "test"], *, labelled: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 `[N, 1, 28, 28]`, and int64 `[N]` if `labelled`; otherwise the file of labels may be missing."""
    check_split(split)
    prefix = {"train": "train", "test": "t10k"}[split]
    pixels = _read_idx(dataset, f"{prefix}-images", root, download)[:, None]
    return pixels, _read_idx(dataset, f"{prefix}-labels", root, download) if labelled else None


def _read_idx(dataset: str, kind: str, root: str, download: bool) -> np.ndarray:
    """uint8 `[N, 28, 28]` or int64 `[N]` from one of an MNIST-like set's four files."""
    from torchvision import datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file

    published = getattr(datasets, dataset)
    file, md5 = next(resource for resource in published.resources if resource[0].startswith(kind))
    read_file = read_image_file if kind.endswith("images") else read_label_file
    urls = tuple(mirror + file for mirror in published.mirrors)
    archive = Archive(_absolute(root) / dataset / "raw" / file, md5, urls)

    def read() -> np.ndarray:
        return read_file(str(archive.path.with_suffix(""))).numpy()

    return read_unpacking(read, archive, [archive.path.with_suffix("")], download)


def _read_cifar10(root: str, download: bool, split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[N, 3, 32, 32]` and int64 `[N]`."""
    check_split(split)
    from torchvision.datasets import CIFAR10

    folder = _absolute(root)

    def read() -> tuple[np.ndarray, np.ndarray]:
        # It checks the MD5 of every file before it unpickles one.
        images = CIFAR10(folder, train=split == "train", download=False)
        return np.ascontiguousarray(images.data.transpose(0, 3, 1, 2)), np.array(images.targets, np.int64)

    archive = Archive(folder / CIFAR10.filename, CIFAR10.tgz_md5, (CIFAR10.url,))
    return read_unpacking(read, archive, (folder / CIFAR10.base_folder).glob("*"), download)


def _absolute(root: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(root)))


def resize(pixels: np.ndarray, image_size: int | Sequence[int]) -> np.ndarray:
    """uint8 `[N, C, H, W]` at `image_size` (int or [H, W]): antialiased bicubic, rounded; unchanged if the size fits.

    The whole image is kept: another aspect ratio stretches it.
    """
    size = height_width(image_size)
    if pixels.shape[2:] == size:
        return pixels
    resized = np.empty((*pixels.shape[:2], *size), dtype=np.uint8)
    for start in range(0, len(pixels), RESIZE_BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + RESIZE_BATCH])).float()
        batch = F.interpolate(batch, size=size, mode="bicubic", antialias=True, align_corners=False)
        # Bicubic overshoots at edges, so it must be clamped before uint8 wraps it round.
        resized[start : start + RESIZE_BATCH] = batch.round().clamp(0, 255).byte().numpy()
    return resized


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 `[N, channels, H, W]` from uint8 `[N, 1 or 3, H, W]`: grey is repeated, RGB becomes ITU-R 601 luma.

    Raises ValueError for other numbers of channels than 1 and 3.
    """
    check_channels(channels)
    assert pixels.shape[1] in (1, 3), pixels.shape
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.repeat(3, axis=1)
    # 0.299 R + 0.587 G + 0.114 B in PIL's 16-bit fixed point, so that a folder and an array give the same grey.
    red, green, blue = (pixels[:, [channel]].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)
