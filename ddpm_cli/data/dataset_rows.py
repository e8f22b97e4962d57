"""Pictures in the rows of a table of the datasets package: read and decoded as files are.

Worker processes import this module: of ours it needs only what imports no torch.
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
    """A column of pictures that the datasets package leaves as they are stored: their bytes, or the path of a file.

    Args:
        table: a `datasets.Dataset`, which goes to other processes as the files that it is in.
        column: of the pictures.
        called: what it is called, where memory has run out.
    """

    table: Any
    column: str
    called: str


def row_name(row: int) -> str:
    """What an image is called: in messages, and in the cache."""
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
