"""Which images a folder holds, and what in it should be an image but is none: told without opening a file.

Standard library only: the processes that decode import this.
"""

import errno
import heapq
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ddpm_cli.io.text import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class ImageFile(NamedTuple):
    """A file to be decoded, and what tells it from a later version of itself."""

    name: str  # path relative to the folder of images, with /
    size: int  # bytes
    mtime_ns: int


class BadImage(NamedTuple):
    """A file that should be an image and cannot be used, or a folder that cannot be searched for images."""

    name: str  # path relative to the folder of images, with /
    reason: str
    lasting: bool = True  # the fault is in the file: a verdict that holds until the file changes

    def line(self, root: str) -> str:
        """ "path: reason" on one line, whatever characters are in the name."""
        return f"{printable(f'{root}/{self.name}')}: {printable(self.reason)}"


def find_images(root: str) -> tuple[list[ImageFile], list[BadImage]]:
    """The images below `root`, hidden ones left out, and what should be an image but cannot be one; each by name.

    The order is the same on every machine. Links are followed as long as they stay inside `root` (which may be a link
    itself). However many links lead to it, a folder is searched once: under its own name if that can be reached, else
    under the first of the links.
    """
    scan = _Scan(root)
    while scan.folders or scan.links:
        scan.list_folder(*(scan.folders.pop() if scan.folders else heapq.heappop(scan.links)))
    return sorted(scan.images), sorted(scan.bad)


def without(files: Sequence[ImageFile], bad: Sequence[BadImage]) -> list[ImageFile]:
    """Those of `files` that are not among `bad`, in their order."""
    names = {image.name for image in bad}
    return [file for file in files if file.name not in names]


class _Scan:
    """What has been found so far, and where to look next: folders as (name, real path)."""

    def __init__(self, root: str):
        self.root = root
        self.real_root = os.path.realpath(root)
        self.images: list[ImageFile] = []
        self.bad: list[BadImage] = []
        self.folders = [("", self.real_root)]
        self.links: list[tuple[str, str]] = []  # a heap: links to folders, whose turn comes when no folder is left
        self.listed: set[str] = set()  # real paths

    def list_folder(self, name: str, real: str) -> None:
        """Sort the entries of one folder, unless that has been done before."""
        if real in self.listed:
            return
        self.listed.add(real)
        try:
            with os.scandir(f"{self.root}/{name}") as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:  # no permission, a path too long for the system, a failing disk
            self.bad.append(BadImage(name or ".", f"the folder cannot be listed: {error.strerror}"))
            return
        for entry in found:
            self._sort(entry, f"{name}/{entry.name}" if name else entry.name, f"{real}/{entry.name}")

    def _sort(self, entry: os.DirEntry[str], name: str, real: str) -> None:
        """Note the folder, the link to one, the image, or the bad image that an entry is, if it is any."""
        is_image = name.lower().endswith(SUFFIXES)
        link = ""
        try:
            if entry.is_symlink():
                link = f"link to {os.readlink(entry.path)}"
                real = os.path.realpath(entry.path, strict=True)
                is_folder = os.path.isdir(real)
                if (is_folder or is_image) and not Path(real).is_relative_to(self.real_root):
                    self.bad.append(BadImage(name, f"{link}, outside the folder"))
                    return
                if is_folder:
                    heapq.heappush(self.links, (name, real))
                    return
            elif entry.is_dir(follow_symlinks=False):
                self.folders.append((name, real))
                return
            if is_image:
                self._add_file(entry.path, name)
        except OSError as error:
            # What cannot be reached, and has no suffix, may be a folder on a disk that is not mounted.
            if is_image or "." not in entry.name:
                self.bad.append(BadImage(name, ": ".join(filter(None, [link, error.strerror]))))

    def _add_file(self, path: str, name: str) -> None:
        """Note a file as an image, or as a bad one. Raises OSError if it cannot be reached."""
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # to open a FIFO is to wait for somebody to write to it
            self.bad.append(BadImage(name, "not a regular file"))
        elif not os.access(path, os.R_OK):
            self.bad.append(BadImage(name, os.strerror(errno.EACCES)))
        else:
            self.images.append(ImageFile(name, status.st_size, status.st_mtime_ns))
