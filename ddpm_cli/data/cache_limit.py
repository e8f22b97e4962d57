"""The size limit of a cache directory: files that were used least recently make room."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from ddpm_cli.data.cache_files import remove_unused
from ddpm_cli.io.text import printable

GIB = 2**30

log = logging.getLogger(__name__)


def make_room(
    directory: Path, most: int, *, names: re.Pattern[str], key: str, needed: int = 0, keep: Sequence[Path] = ()
) -> None:
    """Remove files in `directory` until they take no more than `most` bytes, with `needed` more to come.

    The least recently used go first, never those in `keep` or open in a process. Every removal is logged.

    Args:
        names: of the files that count, and may be removed.
        key: of the option that sets the limit, in GiB.
    """
    found = []
    for path in directory.iterdir():
        if names.fullmatch(path.name):
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
            limit = f"{key}={most / GIB:g}"
            log.warning(f"cache    removed {printable(str(path))} ({size / GIB:.2g} GiB), unused for longest: {limit}")
