"""Small files that may come from anybody: read only if they are plain files of a sensible size."""

import os
import stat
from pathlib import Path


def size(path: Path) -> int:
    """Bytes of a plain file; anything else might block its reader, or never end.

    Raises:
        ValueError: naming it, if it is anything else.
        OSError: if it is not there.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is not a plain file")
    return found.st_size


def read(path: Path, most: int) -> bytes:
    """The content of a plain file.

    Raises:
        ValueError: naming it, if it is none, or has more than `most` bytes.
        OSError: if it is not there, or cannot be read.
    """
    if size(path) > most:
        raise ValueError(f"{path} is larger than {most:,} bytes")
    return path.read_bytes()
