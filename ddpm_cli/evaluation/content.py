"""The identity of images by their content, under which results computed from them are cached."""

import hashlib
import math

import numpy as np

from ddpm_cli.data.image_set import Pixels

_AT_A_TIME = 2**24  # bytes


def content_sha256(pixels: Pixels) -> str:
    """SHA-256 of images uint8 `[N, C, H, W]`, their number, size and order; each is read once."""
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    step = max(1, _AT_A_TIME // math.prod(pixels.shape[1:]))
    for start in range(0, len(pixels), step):
        digest.update(np.ascontiguousarray(pixels[np.arange(start, min(start + step, len(pixels)))]).data)
    return digest.hexdigest()
