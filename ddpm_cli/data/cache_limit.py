"""What the decoded images in a cache directory may take together: those that were used least recently make room."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from ddpm_cli.data.cache_files import remove_unused
from ddpm_cli.io.text import printable

GIB = 2**30
_OURS = re.compile(r"\d+x\d+x[13]-[0-9a-f]{32}\.npy")

log = logging.getLogger(__name__)


def make_room(directory: Path, most: int, *, needed: int = 0, keep: Sequence[Path] = ()) -> None:
    """Remove decoded images in `directory` until they take no more than `most` bytes, with `needed` more to come.

    Those used least recently go first; never those of `keep`, or such as a process has open. Every removal is said.
    """
    found = []
    for path in directory.glob("*.npy"):
        if _OURS.fullmatch(path.name):
            try:
                status = path.stat()
            except OSError:  # just removed by another process
                continue
            found.append((status.st_mtime_ns, path, status.st_size))
    excess = sum(size for _, _, size in found) + needed - most
    for _, path, size in sorted(found):
        if excess <= 0:
            return
        if path not in keep and remove_unused(path):
            excess -= size
            limit = f"data.cache_gb={most / GIB:g}"
            log.warning(f"cache    removed {printable(str(path))} ({size / GIB:.2g} GiB), the longest unused: {limit}")
