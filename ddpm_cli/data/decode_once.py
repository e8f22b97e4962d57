"""Images that are decoded once, before training: found in the cache, or decoded into it by several processes."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_cli.data.decode import DecodingError, Written
from ddpm_cli.data.decoded_cache import Cached, DecodedCache
from ddpm_cli.data.decoding_memory import most_at_a_time
from ddpm_cli.data.image_file import BadImage, ImageFile
from ddpm_cli.data.image_set import Pixels
from ddpm_cli.data.scan import without
from ddpm_cli.data.windows import Windows
from ddpm_cli.data.worker_pool import WorkerDiedError, WorkerPool
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.cgroup import cpus
from ddpm_cli.runtime.logs import say_held

CHUNK = 16  # images a process decodes before it reports
MIB = 2**20
FEW_IMAGES = 256  # decoded here: two processes take half a second to start

# As `decode.decode_into`, whose second argument says where the images are.
Decode = Callable[..., Written]


def read_or_decode(
    cache: DecodedCache, files: list[ImageFile], decode: Decode, source: Any, *, workers: int, memory: int, called: str
) -> tuple[Cached | None, list[BadImage]]:
    """The `files` that can be decoded (None if none can), in memory if they fit into `memory` bytes, and the others.

    Args:
        decode, source: the function that decodes them, and where they are; both are sent to other processes.
        called: the name of their place in messages.

    Raises OSError if the written file cannot be read back, DecodingError if decoding cannot continue.
    """
    bad = cache.read_bad(files)
    good = without(files, bad)
    cached = cache.read(good, memory) if good else None
    if cached is None and good:
        names = [file.name for file in files]
        bad = cache.write(
            files, functools.partial(_decode_all, cache, names, decode, source, workers=workers, called=called)
        )
        good = without(files, bad)
        cached = cache.read(good, memory) if good else None
        if cached is None and good:
            where = printable(str(cache.directory))
            raise OSError(f"{where} does not return what was written to it: choose another data.cache_dir")
    return cached, bad


def pixels_of(cached: Cached, cache: DecodedCache) -> Pixels:
    """The images in the form that training takes."""
    if cache.reading.crop == "random":
        return Windows(cached.pixels, cache.channels, cache.size)
    return cached.pixels


def _decode_all(
    cache: DecodedCache,
    names: list[str],
    decode: Decode,
    source: Any,
    file: str,
    start: int,
    *,
    workers: int,
    called: str,
) -> tuple[np.ndarray, list[BadImage]]:
    """Write the pixels of all images into `file` from byte `start` on.

    The processes write to the file themselves and send back only messages. Raises DecodingError, or OSError where
    the file cannot be written.

    Returns:
        The checksums of all images, uint32 `[N]`, and those that cannot be decoded.
    """
    workers = 0 if len(names) < FEW_IMAGES else cpus() if workers == -1 else workers
    if len(names) >= FEW_IMAGES:
        say_held()
    checksums, bad, large = np.zeros(len(names), np.uint32), [], []
    chunks = [range(first, min(first + CHUNK, len(names))) for first in range(0, len(names), CHUNK)]
    image_bytes = cache.image_bytes
    # disable=None: a progress bar on a terminal, nothing in a log.
    with tqdm(total=len(names), desc="decoding", unit="image", disable=None) as progress:
        # Large images are decoded afterwards, one at a time: several at once might take more memory than there is.
        for places, processes in ((chunks, workers), (large, min(workers, 1))):
            decode_chunk = functools.partial(
                decode,
                file,
                source,
                cache.size,
                cache.channels,
                most=most_at_a_time(processes),
                reading=cache.reading,
            )
            tasks = [(start + chunk[0] * image_bytes, names[chunk[0] : chunk[-1] + 1]) for chunk in places]
            with WorkerPool(decode_chunk, processes) as pool:
                try:
                    for (offset, chunk), written in pool.map(tasks):
                        first = (offset - start) // image_bytes
                        checksums[first : first + len(chunk)] = written.checksums
                        bad += written.bad
                        large += [[first + place] for place in written.large]
                        progress.update(len(chunk) - len(written.large))
                except WorkerDiedError as death:
                    raise DecodingError(_explain(death, called)) from death
    return checksums, bad


def _explain(death: WorkerDiedError, called: str) -> str:
    _, names = death.task
    return (
        f"a process decoding images {death}, at one of {len(names)} images from {printable(f'{called}/{names[0]}')} "
        "on. When memory runs out, the system kills processes: use fewer data.workers. data.workers=0 decodes "
        "without processes (which a script that reads images outside `if __name__ == '__main__'` needs)"
    )


def report(bad: Sequence[BadImage], called: str, kept: Path, *, all_bad: bool) -> str:
    """The message on images that cannot be used, which are listed in the file `kept`."""
    hint = "all of them" if all_bad else "data.on_bad=skip leaves them out"
    if kept.exists():
        hint += f"; listed in {kept}"
    lines = [image.line(called) for image in bad]
    return "\n  ".join([f"{len(bad)} images in {printable(called)} ({hint}) cannot be read:", *lines])
