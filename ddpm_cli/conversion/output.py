"""The output directory of a conversion: complete, or absent, whatever the disk does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_cli.config.errors import naming
from ddpm_cli.io.whole_directory import made_whole
from ddpm_cli.runtime.exit_codes import RunError


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Inside, a directory to write to, which is renamed to `out` afterwards; files in it must be flushed.

    Raises:
        ConfigError: if there is something of that name, or no such directory can be made.
        RunError: if what is inside fails for want of room, or as the disk fails.
    """
    with naming("out"), made_whole(out) as directory:
        try:
            yield directory
        except OSError as error:
            where = out if error.filename is None else error.filename
            raise RunError(f"{where}: {error.strerror or error}. Nothing has been written") from error
