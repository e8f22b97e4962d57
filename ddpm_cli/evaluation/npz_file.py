"""Arrays in an .npz file from anywhere: what it says of itself is checked before memory is taken, nothing unpickled."""

import math
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, NamedTuple, Self

import numpy as np

from ddpm_cli.config.errors import shown
from ddpm_cli.io import durable
from ddpm_cli.io.openers import nonblocking
from ddpm_cli.io.text import printable

# What a few bytes may become when they are unpacked. Pixels do not shrink so far, unless there is nothing on them.
MOST_EXPANSION, EXPANDS_FREELY = 250, 2**26
_NAMES_SHOWN = 8
_CHUNK = 2**20


class Member(NamedTuple):
    """An array of the file, as its header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    header_bytes: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """An open .npz file. Opening it, and every method, raises ValueError naming it where it is none, or damaged."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "rb", opener=nonblocking)  # noqa: SIM115
        try:
            with self._explained():
                if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                    raise ValueError("not a regular file")
                self._archive = zipfile.ZipFile(self._file)
        except BaseException:
            self._file.close()
            raise
        self.names = [name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def names_text(self) -> str:
        """The names of its arrays, for a message."""
        more = ["..."] if len(self.names) > _NAMES_SHOWN else []
        return ", ".join([*(shown(printable(name)) for name in self.names[:_NAMES_SHOWN]), *more]) or "none"

    def member(self, name: str) -> Member:
        """The array of that name, which has to be there."""
        with self._explained(), self._archive.open(f"{name}.npy") as content:
            return self._header(name, content)

    def read(self, name: str, *, most: int) -> np.ndarray:
        """All of an array, which may take `most` bytes."""
        found = self.member(name)
        if found.nbytes > most:
            raise ValueError(f"{printable(str(self.path))}: {name} takes {found.nbytes:,} bytes, at most {most:,}")
        content = b"".join(self._content(found))
        return np.ndarray(found.shape, found.dtype, content, order="F" if found.fortran_order else "C")

    def unpacked(self, name: str, directory: Path) -> tuple[BinaryIO, int]:
        """A file, and the byte of it at which the content of an array begins; all of it has been read and is whole.

        Args:
            directory: where to unpack it to if it is compressed: a file without a name, gone when it is closed.
        """
        found = self.member(name)
        start = self._stored_at(found)
        if start is not None:
            for _ in self._content(found):
                pass
            return open(self.path, "rb", opener=nonblocking), start
        durable.check_space(directory, found.nbytes)
        file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        try:
            for chunk in self._content(found):
                file.write(chunk)
            file.flush()
        except BaseException:
            file.close()
            raise
        return file, 0

    def _header(self, name: str, content: IO[bytes]) -> Member:
        info = self._archive.getinfo(f"{name}.npy")
        if info.file_size > max(EXPANDS_FREELY, MOST_EXPANSION * info.compress_size):
            raise ValueError(f"{name} would unpack from {info.compress_size:,} to {info.file_size:,} bytes")
        version = np.lib.format.read_magic(content)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is of version {version} of .npy")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(content)
        if dtype.kind not in "biufU":
            raise ValueError(f"{name} holds {dtype}; only plain numbers are read")
        found = Member(name, shape, dtype, fortran_order, content.tell())
        if min(shape, default=1) < 0 or found.nbytes != info.file_size - found.header_bytes:
            raise ValueError(f"{name} says {dtype} {list(shape)}, which its {info.file_size:,} bytes are not")
        return found

    def _content(self, member: Member) -> Iterator[bytes]:
        """Its bytes, with an error at the end if their checksum is another."""
        with self._explained(), self._archive.open(f"{member.name}.npy") as content:
            content.read(member.header_bytes)
            left = member.nbytes
            while chunk := content.read(_CHUNK):
                left -= len(chunk)
                yield chunk
            if left != 0:
                raise ValueError(f"{member.name} is cut off")

    def _stored_at(self, member: Member) -> int | None:
        """Where in the file the content lies, if it is stored as it is."""
        info = self._archive.getinfo(f"{member.name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        self._file.seek(info.header_offset)
        _, name_bytes, extra_bytes = struct.unpack("<26sHH", self._file.read(30))
        return info.header_offset + 30 + name_bytes + extra_bytes + member.header_bytes

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever a damaged file makes zipfile and NumPy raise, as one kind of error."""
        where = printable(str(self.path))
        try:
            yield
        except zipfile.BadZipFile as error:
            raise ValueError(f"{where}: not an .npz file, or a damaged one ({printable(shown(str(error)))})") from error
        except KeyError:
            raise ValueError(f"{where}: no such array; it holds {self.names_text()}") from None
        except (ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error, struct.error) as error:
            reason = printable(shown(str(error)) or type(error).__name__)
            raise ValueError(f"{where}: {reason}") from error
