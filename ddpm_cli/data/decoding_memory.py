"""The memory that decoding an image takes, computed from its header, and the limits for one and for several at once.

Worker processes import this module: it needs PIL.
"""

import os
from typing import BinaryIO

from PIL import Image

from ddpm_cli.runtime import cgroup

MOST = 2**30  # bytes that decoding one image may take
MOST_FILE = 2**29  # bytes of its file, of which some decoders keep copies
_TOGETHER = 2**32  # bytes that all decoding processes may take together, or less: ...
_SHARE_OF_MEMORY = 0.25  # ... of this machine's memory

# Bytes per pixel that decoders take beside the decoded image, as measured with images of 16 megapixels.
_DECODER_BYTES = {"WEBP": 16, "AVIF": 8, "JPEG2000": 16, "TIFF": 4, "GIF": 1, "BMP": 1, "PPM": 1}

_START_OF_SCAN = 0xDA
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}


class LargeImageError(ValueError):
    """An image that takes `needed` bytes of memory to decode, which is too much, or too much here."""

    def __init__(self, needed: int):
        mib, most = needed / 2**20, MOST / 2**20
        super().__init__(f"too large: decoding it would take {mib:,.0f} MiB of memory, an image may take {most:,.0f}")
        self.needed = needed


def most_at_a_time(workers: int) -> int:
    """Bytes that an image may take in each of `workers` processes that decode at the same time.

    A larger image must be decoded by one process alone, up to the limit of any image.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each has so many
    together = min(_TOGETHER, int(_memory() * _SHARE_OF_MEMORY))
    return MOST if workers <= 1 else min(MOST, together // (workers * ranks))


def _memory() -> float:
    """Bytes of memory of this machine or container; if unknown, so much that it sets no limit."""
    try:
        return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cgroup.memory())
    except (AttributeError, ValueError, OSError):
        return 2**40


def check_file_size(size: int, most: int) -> None:
    """Raise LargeImageError for a file that is too large here, ValueError for one that is too large anywhere."""
    if size > MOST_FILE:
        raise ValueError(f"{size:,} bytes: too large for an image")
    if size > most:
        raise LargeImageError(size)


def check_decoding(image: Image.Image, file: BinaryIO, mode: str, most: int) -> None:
    """Raise LargeImageError if more than `most` bytes are needed to decode an opened image and convert it to `mode`."""
    width, height = image.size  # of the decoded image: a JPEG may be decoded at a reduced size
    pixel = _stored_bytes(image.mode)
    if image.mode != mode:
        pixel += _stored_bytes(mode)
    if image.mode.startswith("I"):  # by way of L
        pixel += 1
    if mode == "RGBA":  # scaled with its colours multiplied by alpha
        pixel += 4
    needed = width * height * (pixel + _DECODER_BYTES.get(image.format or "", 0))
    if image.format in ("JPEG", "MPO"):
        needed += _coefficients(file)
    if needed > most:
        raise LargeImageError(needed)


def _stored_bytes(mode: str) -> int:
    """Bytes per pixel in PIL."""
    if mode in ("1", "L", "P"):
        return 1
    return 2 if mode.startswith("I;16") else 4


def _coefficients(file: BinaryIO) -> int:
    """Bytes of a whole image's coefficients, which libjpeg keeps if they come in several scans.

    They do if the image is progressive, or its components are stored one after another; otherwise libjpeg keeps a few
    rows of blocks.
    """
    place = file.tell()
    try:
        file.seek(2)
        frame, progressive = b"", False
        while (marker := _next_marker(file)) != _START_OF_SCAN:
            if marker in _WITHOUT_LENGTH:
                continue
            segment = file.read(max(0, int.from_bytes(file.read(2), "big") - 2))
            if marker in _START_OF_FRAME:
                frame, progressive = segment, marker & 3 == 2
        components = file.read(3)[-1:]
    finally:
        file.seek(place)
    if len(frame) < 9 or len(frame) < 6 + 3 * frame[5]:
        raise ValueError("a damaged header")
    if not progressive and components == frame[5:6]:
        return 0
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    sampling = [(factors >> 4, factors & 15) for factors in frame[7 : 6 + 3 * frame[5] : 3]]
    whole = max(1, max(across for across, _ in sampling) * max(down for _, down in sampling))
    return 2 * width * height * sum(across * down for across, down in sampling) // whole


def _next_marker(file: BinaryIO) -> int:
    """The next marker of a JPEG; bytes before it are skipped, as decoders do."""
    before = b""
    while byte := file.read(1):
        if before == b"\xff" and byte not in (b"\0", b"\xff"):
            return byte[0]
        before = byte
    raise ValueError("truncated before the image data")
