"""The archives in which well-known data sets are published: found or downloaded, checked, and unpacked beside them.

torchvision's own code is not safe enough: it unpacks a tar file's members wherever their paths lead, leaves half a
download under the name of a complete one, and does not check MNIST's files.
"""

import contextlib
import gzip
import http.client
import io
import os
import platform
import secrets
import shutil
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ddpm_cli.io.text import printable
from ddpm_cli.runtime.logs import say_held

MOST_BYTES = 2**29  # of an archive, or of a file in it

Read = TypeVar("Read")


@dataclass(frozen=True)
class Archive:
    """A data set as published: the file's path here, its MD5, and the addresses to download it from."""

    path: Path
    md5: str
    urls: tuple[str, ...]


def read_unpacking(read: Callable[[], Read], archive: Archive, unpacked: Iterable[Path], download: bool) -> Read:
    """What `read` finds in the `unpacked` files; if that fails, what it finds once the archive is unpacked there.

    The archive is fetched first, if `download` and need be.

    Raises FileNotFoundError if it is absent or damaged and cannot be fetched, OSError or ValueError if it cannot be
    unpacked or leads elsewhere, and what `read` raises of what was unpacked.
    """
    for path in (archive.path, *unpacked):
        _check_file(path)
    # What torchvision raises for files that are absent, cut short or changed. Unpacking can have been interrupted.
    with contextlib.suppress(OSError, RuntimeError, ValueError, AssertionError, TypeError, KeyError):
        return read()
    _provide(archive, download)
    _unpack(archive.path)
    return read()


def _check_file(path: Path) -> None:
    """Raise OSError for anything but a plain file, which could block, and for one larger than any of our data sets."""
    try:
        status = path.stat()
    except OSError:
        return  # nothing there: whoever opens it says so
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{printable(str(path))} is not a regular file: remove it")
    if status.st_size > MOST_BYTES:
        raise OSError(f"{printable(str(path))} has {status.st_size:,} bytes, which is too large: remove it")


def _unpack(archive: Path) -> None:
    """Unpack a .tar.gz or .gz file beside itself, and nowhere else.

    Raises ValueError, before anything is unpacked, for an archive that holds anything but files and folders that belong
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
        raise ValueError(f"{archive} is not safe to unpack, nothing was unpacked: {error}") from error


def _unpack_gzip(archive: Path) -> None:
    partial = archive.with_suffix(f".{secrets.token_hex(4)}.part")  # its own: a second run may be doing the same
    try:
        with gzip.open(archive) as packed, open(partial, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        os.replace(partial, archive.with_suffix(""))
    finally:
        partial.unlink(missing_ok=True)


def _provide(archive: Archive, download: bool) -> None:
    """Make sure that a good archive is in its place, downloaded if `download` is true, or raise FileNotFoundError."""
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
        f"{archive.path} {state} and cannot be downloaded; put the file there by hand. Tried {'; '.join(failures)}"
    )


def _fetch(url: str, archive: Archive) -> None:
    """Download the archive; it gets its own name only once its MD5 is right."""
    from torchvision.datasets.utils import download_url

    say_held()
    partial = archive.path.with_name(f"{archive.path.name}.part")
    # torchvision shows a progress bar: welcome on a terminal, litter in a log.
    quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            download_url(url, str(partial.parent), filename=partial.name, md5=archive.md5)
        partial.replace(archive.path)
    finally:
        partial.unlink(missing_ok=True)
