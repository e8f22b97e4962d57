"""A file of a folder of images: one to be decoded, or one that cannot be.

Standard library only: the processes that decode import this.
"""

from typing import NamedTuple

from ddpm_cli.io.text import printable


class ImageFile(NamedTuple):
    """A file to be decoded, with the size and time that identify its version."""

    name: str  # path relative to the folder of images, with /
    size: int  # bytes
    mtime_ns: int


class BadImage(NamedTuple):
    """A file that should be an image and cannot be used, or a folder that cannot be searched for images."""

    name: str  # path relative to the folder of images, with /
    reason: str
    lasting: bool = True  # the fault is in the file, and stays until the file changes

    def line(self, root: str) -> str:
        """ "path: reason" on one line, whatever characters are in the name."""
        return f"{printable(f'{root}/{self.name}')}: {printable(self.reason)}"
