"""Any folder of images as one `ImageSet`: decoded once, before training, into a cache that later runs map."""

import contextlib
import errno
import functools
import hashlib
import io
import math
import multiprocessing
import os
import secrets
import shutil
import signal
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm_cli.data.decode import decode_into
from ddpm_cli.data.image_set import ImageSet, check_channels, height_width

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
DECODE_VERSION = 1  # part of the cache's key: raise it when `decode` gives other pixels for the same file
CHUNK = 16  # images a worker decodes before it reports
FEW_IMAGES = 256  # decoded here: two workers take half a second to start
MIB = 2**20


def folder(
    path: str,
    *,
    image_size: int | Sequence[int] = 64,
    channels: int = 3,
    flip: bool = True,
    workers: int = -1,
    cache_dir: str | None = None,
    memory_mb: int = 2048,
) -> ImageSet:
    """Every image in `path` and the folders below it, covering `image_size` (int or [H, W]) and cropped to it.

    Images are decoded once, by `workers` processes (-1: one per CPU; 0: here), into a .npy file in `cache_dir`
    (default: ddpm-cli in $XDG_CACHE_HOME or ~/.cache), which is found again as long as names, sizes and times of the
    images stay the same. A set of at most `memory_mb` MiB is held in memory; a larger one is read from that file as it
    is needed.

    Raises FileNotFoundError or ValueError for a `path` that is no folder of images, ValueError listing the images that
    cannot be read, OSError if the cache cannot be written.
    """
    size = height_width(image_size)
    check_channels(channels)
    if workers < -1:
        raise ValueError(f"workers must be -1 (one per CPU), 0 (none) or a number of processes, got {workers}")
    if memory_mb < 0:
        raise ValueError(f"memory_mb must be 0 or more, got {memory_mb}")

    root = Path(os.path.abspath(os.path.expanduser(path)))
    files = _image_files(root)
    shape = (len(files), channels, *size)
    cache = _cache_dir(cache_dir) / f"{size[0]}x{size[1]}x{channels}-{_key(root, files)}.npy"
    pixels = _open_cache(cache, shape)
    if pixels is None:
        _write_cache(cache, root, files, shape, workers)
        pixels = _open_cache(cache, shape)
        assert pixels is not None, cache
    if pixels.nbytes <= memory_mb * MIB:
        pixels = np.array(pixels)
    return ImageSet(pixels, root.name, flip=flip)


def _image_files(root: Path) -> list[str]:
    """Relative POSIX paths of the images below `root`, hidden ones left out, in the same order on every machine."""
    if not root.exists():
        raise FileNotFoundError(f"no such folder of images: {root} (data.path)")
    if not root.is_dir():
        raise ValueError(f"data.path must be a folder of images, but {root} is a file")
    files = []
    for parent, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        here = Path(parent)
        # A link to a folder above itself would be walked in circles.
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and not ((here / name).is_symlink() and here.resolve().is_relative_to((here / name).resolve()))
        ]
        images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        files += [(here.relative_to(root) / name).as_posix() for name in images]
    if not files:
        raise ValueError(f"no images in {root}: none of its files ends in {', '.join(SUFFIXES)}")
    return sorted(files)


def _raise(error: OSError) -> None:
    raise error


def _key(root: Path, files: list[str]) -> str:
    """32 hex digits that change with the list of images, with any of the files, and with the way they are decoded."""
    # The place counts too: archives unpack with equal times, and equal names and sizes are common among frames.
    digest = hashlib.sha256(repr((DECODE_VERSION, str(root.resolve()))).encode())
    for file in files:
        stat = os.stat(f"{root}/{file}")
        digest.update(repr((file, stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:32]


def _cache_dir(cache_dir: str | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "ddpm-cli"


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of uint8 in this shape begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _open_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached pixels, read-only and on disk; None if there is no file, or one that does not hold such an array."""
    header = _npy_header(shape)
    try:
        with open(cache, "rb") as file:
            if file.read(len(header)) != header or os.fstat(file.fileno()).st_size != len(header) + math.prod(shape):
                return None
            return np.memmap(file, np.uint8, "r", offset=len(header), shape=shape)
    except OSError:
        return None


def _write_cache(cache: Path, root: Path, files: list[str], shape: tuple[int, int, int, int], workers: int) -> None:
    """Decode the images into `cache`: the whole file or, whatever goes wrong, none.

    Plain writes, not a memory map: on a full disk a map kills the process (SIGBUS) where a write raises.
    """
    temporary = cache.with_name(f"{cache.name}.{secrets.token_hex(4)}.tmp")
    header = _npy_header(shape)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        _check_free_space(cache.parent, math.prod(shape))
        with open(temporary, "xb") as file:
            file.write(header)
            file.truncate(len(header) + math.prod(shape))
            failures = _decode_all([f"{root}/{name}" for name in files], temporary, len(header), shape, workers)
            os.fsync(file.fileno())
        if failures:
            raise ValueError(_report(failures, root))
        os.replace(temporary, cache)
    except OSError as error:
        raise OSError(
            f"cannot write the image cache in {cache.parent} ({error.strerror or error}): choose another data.cache_dir"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check_free_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:  # better known now than after an hour of decoding
        raise OSError(errno.ENOSPC, f"it needs {needed // MIB} MiB, {free // MIB} MiB are free")


def _report(failures: list[str], root: Path) -> str:
    shown = [failure.removeprefix("cannot read image ") for failure in failures[:10]]
    more = [f"and {len(failures) - 10} more"] if len(failures) > 10 else []
    return "\n  ".join([f"{len(failures)} images in {root} cannot be read:", *shown, *more])


def _decode_all(paths: list[str], file: Path, start: int, shape: tuple[int, int, int, int], workers: int) -> list[str]:
    """Write the pixels of all images into `file` from byte `start` on; returns what cannot be read, in order."""
    _, channels, height, width = shape
    decode_chunk = functools.partial(decode_into, file, size=(height, width), channels=channels)
    firsts = range(0, len(paths), CHUNK)
    chunks = [paths[first : first + CHUNK] for first in firsts]
    offsets = [start + first * channels * height * width for first in firsts]
    workers = min(_cpus() if workers == -1 else workers, len(chunks))
    failures = []
    with contextlib.ExitStack() as stack:
        if workers == 0 or len(paths) < FEW_IMAGES:
            results = map(decode_chunk, offsets, chunks)
        else:
            results = stack.enter_context(_processes(workers)).map(decode_chunk, offsets, chunks)
        # disable=None: a progress bar on a terminal, nothing in a log.
        progress = stack.enter_context(tqdm(total=len(paths), desc="decoding", unit="image", disable=None))
        for chunk, unreadable in zip(chunks, results, strict=True):
            failures += unreadable
            progress.update(len(chunk))
    return failures


@contextlib.contextmanager
def _processes(workers: int) -> Generator[ProcessPoolExecutor, None, None]:
    """A pool of `workers` processes that drops what it has not begun when the block is left.

    Spawned, because forking a process in which torch has started threads can deadlock. They write pixels to the file
    themselves and send back only messages: a worker killed in the middle of a long answer would hang the pool.
    """
    # A terminal's Ctrl-C reaches the workers too: they leave the answer to this process.
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=signal.signal, initargs=ignore_interrupt)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process decoding images died: data.workers=0 decodes without processes "
            "(which a script that calls folder() outside `if __name__ == '__main__'` needs)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cpus() -> int:
    """CPUs this process may use; where the system does not tell (macOS), all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
