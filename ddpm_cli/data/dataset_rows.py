"""Images in the rows of a table of the datasets package, read and decoded like files.

Worker processes import this module: it imports only modules without torch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_cli.data.decode import Written, decode, decode_bytes, write_into
from ddpm_cli.data.decoding_memory import MOST, check_file_size
from ddpm_cli.data.reading import AS_STORED, Reading


@dataclass(frozen=True, eq=False)
class Rows:
    """A column of images left encoded as they are stored: their bytes, or the path of a file.

    Args:
        table: a `datasets.Dataset`, which is sent to other processes as the names of its files.
        column: of the images.
        called: its name in messages, such as when memory runs out.
    """

    table: Any
    column: str
    called: str


def row_name(row: int) -> str:
    """The name of an image in messages and in the cache."""
    return f"row {row}"


def decode_rows(
    file: str | os.PathLike[str],
    rows: Rows,
    size: tuple[int, int],
    channels: int,
    offset: int,
    names: Sequence[str],
    *,
    most: int = MOST,
    reading: Reading = AS_STORED,
) -> Written:
    """As `decode.decode_into`, of the rows that are called `names`."""

    def decoded(name: str) -> np.ndarray:
        stored = rows.table[int(name.removeprefix("row "))][rows.column]
        content, path = (stored, None) if not isinstance(stored, dict) else (stored.get("bytes"), stored.get("path"))
        if content is not None:
            check_file_size(len(content), most)
            where = f"{rows.called}, {name}"
            return decode_bytes(content, size, channels, most - len(content), reading, name=where)
        if path is None:
            raise ValueError("it has no image")
        if not os.path.isabs(path):
            raise ValueError("it has no bytes, and its path is not a file on this machine")
        return decode(path, size, channels, most, reading)

    return write_into(file, offset, names, decoded, size if reading.crop == "random" else None)
