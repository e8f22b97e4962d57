"""Which images a folder holds, what in it should be an image but is none, and what is left out.

Names decide, and the first bytes of a file whose name does not tell.
"""

import errno
import heapq
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ddpm_cli.data.formats import EXTENSIONS, READABLE, has_extension, is_image_inside, kind_of
from ddpm_cli.data.image_file import BadImage, ImageFile
from ddpm_cli.io.own_output import own_output

KINDS_SHOWN = 8  # of what was left out


class Found(NamedTuple):
    """What there is below a folder."""

    images: list[ImageFile]  # by name
    bad: list[BadImage]  # what should be an image but cannot be one, by name
    left_out: Counter[str]  # everything else, by kind
    folders: list[str]  # directly in it, by name


def find_images(root: str, *, extensions: Sequence[str] | None = EXTENSIONS, follow_links: bool = False) -> Found:
    """The images below `root`, and everything that is none; hidden ones and our own output are left out.

    Images are files whose names end in one of `extensions`; with None, in that of any format the decoder reads, and
    files of other names that hold an image of such a format.

    The order is the same on every machine. Links are followed as long as they stay inside `root` (which may be a link
    itself), with `follow_links` wherever they lead. However many links lead to it, a folder is searched once: under its
    own name if that can be reached, else under the first of the links.
    """
    scan = _Scan(root, extensions, follow_links)
    while scan.folders or scan.links:
        scan.list_folder(*(scan.folders.pop() if scan.folders else heapq.heappop(scan.links)))
    return Found(sorted(scan.images), sorted(scan.bad), scan.left_out, sorted(scan.top))


def kinds_text(left_out: Counter[str]) -> str:
    """ "6 .heic, 3 .txt": the commonest kinds first."""
    kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))
    shown = [f"{count:,} {kind}" for kind, count in kinds[:KINDS_SHOWN]]
    rest = sum(count for _, count in kinds[KINDS_SHOWN:])
    return ", ".join([*shown, *([f"{rest:,} of other kinds"] if rest else [])])


def without(files: Sequence[ImageFile], bad: Sequence[BadImage]) -> list[ImageFile]:
    """Those of `files` that are not among `bad`, in their order."""
    names = {image.name for image in bad}
    return [file for file in files if file.name not in names]


class _Scan:
    """What has been found so far, and where to look next: folders as (name, real path)."""

    def __init__(self, root: str, extensions: Sequence[str] | None, follow_links: bool):
        self.root = root
        self.real_root = os.path.realpath(root)
        self.by_content = extensions is None
        self.extensions = READABLE if extensions is None else tuple(extension.lower() for extension in extensions)
        self.follow_links = follow_links
        self.images: list[ImageFile] = []
        self.bad: list[BadImage] = []
        self.left_out: Counter[str] = Counter()
        self.top: list[str] = []
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
                found = list(entries)
        except OSError as error:  # no permission, a path too long for the system, a failing disk
            self.bad.append(BadImage(name or ".", f"the folder cannot be listed: {error.strerror}"))
            return
        ours = own_output(f"{self.root}/{name}", {entry.name for entry in found})
        for entry in found:
            if entry.name in ours:
                self.left_out["outputs of ddpm-cli"] += 1
            elif entry.name.startswith("."):
                self.left_out["hidden"] += 1
            else:
                self._sort(entry, f"{name}/{entry.name}" if name else entry.name, f"{real}/{entry.name}")

    def _sort(self, entry: os.DirEntry[str], name: str, real: str) -> None:
        """Note the folder, the link to one, the image, the bad image, or what else an entry is."""
        is_image = has_extension(name, self.extensions)
        link = ""
        try:
            if entry.is_symlink():
                link = f"link to {os.readlink(entry.path)}"
                real = os.path.realpath(entry.path, strict=True)
                is_folder = os.path.isdir(real)
                outside = not (self.follow_links or Path(real).is_relative_to(self.real_root))
                if outside and (is_folder or is_image):
                    self.bad.append(BadImage(name, f"{link}, outside the folder (data.follow_links=true follows it)"))
                    return
                if is_folder:
                    self._note_top(name)
                    heapq.heappush(self.links, (name, real))
                    return
                if outside:
                    self.left_out[kind_of(entry.name)] += 1
                    return
            elif entry.is_dir(follow_symlinks=False):
                self._note_top(name)
                self.folders.append((name, real))
                return
            self._sort_file(entry.path, name, is_image)
        except OSError as error:
            # What cannot be reached, and has no suffix, may be a folder on a disk that is not mounted.
            if is_image or "." not in entry.name:
                self.bad.append(BadImage(name, ": ".join(filter(None, [link, error.strerror]))))
            else:
                self.left_out[kind_of(entry.name)] += 1

    def _note_top(self, name: str) -> None:
        if "/" not in name:
            self.top.append(name)

    def _sort_file(self, path: str, name: str, is_image: bool) -> None:
        """Note a file as an image, a bad one, or none. Raises OSError if it cannot be reached."""
        status = os.stat(path) if is_image or self.by_content else None
        regular = status is not None and stat.S_ISREG(status.st_mode)
        if status is None or not (is_image or (regular and is_image_inside(path, os.path.basename(name)))):
            self.left_out[kind_of(name)] += 1
        elif not regular:  # to open a FIFO is to wait for somebody to write to it
            self.bad.append(BadImage(name, "not a regular file"))
        elif not os.access(path, os.R_OK):
            self.bad.append(BadImage(name, os.strerror(errno.EACCES)))
        else:
            self.images.append(ImageFile(name, status.st_size, status.st_mtime_ns))
