"""What identifies a set of images: a number for each image, and a few digests of all.

Worker processes import this module: it needs the standard library and NumPy.
"""

import hashlib
import zlib
from collections.abc import Iterable

import numpy as np


def image_checksums(images: Iterable[np.ndarray]) -> np.ndarray:
    """uint32 `[N]`: the CRC-32 of every image's pixels.

    It detects damage and other images, but not malice: one can construct another image with the same number.
    """
    return np.array([zlib.crc32(np.ascontiguousarray(image).data) for image in images], np.uint32)


def fingerprint(
    shape: tuple[int, int, int], checksums: np.ndarray, labels: np.ndarray | None, starts: np.ndarray | None
) -> dict[str, str]:
    """SHA-256 of everything that determines which images a run sees, and in which order.

    Args:
        shape: (C, H, W) of the images.
        checksums: uint32 `[N]`, a number for each image that changes when the image does.
        labels: int64 `[N]`, if there are any.
        starts: int64, the first image of each block, if the images are stored in blocks.

    Returns:
        `images`: of the images in their order; `unordered`: of the images in any order; `labels`: of their labels.
    """
    return {
        "images": _digest(repr(shape), checksums.astype("<u4"), None if starts is None else starts.astype("<i8")),
        "unordered": _digest(repr(shape), np.sort(checksums).astype("<u4")),
        "labels": _digest("" if labels is None else "labels", None if labels is None else labels.astype("<i8")),
    }


def _digest(text: str, *arrays: np.ndarray | None) -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()
