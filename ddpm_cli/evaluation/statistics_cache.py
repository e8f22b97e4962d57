"""Features and statistics of a reference, kept on disk and found again by what they are of.

KEY.npy holds features float32 `[N, D]`, and behind them the SHA-256 of all that and of the file's name; KEY.npz holds
mean and covariance. KEY stands for the pixels, the extractor and the number of images: of another pixel, other weights
or another resize it is another. Several processes may make the same file: each writes its own, and the last one stays.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddpm_cli.data import cache_files
from ddpm_cli.data.cache_limit import make_room
from ddpm_cli.evaluation import statistics_file
from ddpm_cli.evaluation.npz_file import NpzFile
from ddpm_cli.evaluation.statistics import FeatureSums, Statistics
from ddpm_cli.io import durable
from ddpm_cli.io.text import printable

FOLDER = "evaluation"  # in the cache directory
VERSION = 1  # part of the key: raise it when the same pixels and extractor would be turned to other features
_NAMES = re.compile(r"[0-9a-f]{32}\.np[yz]")
_CHUNK = 2**22  # bytes
_DIGEST = 32  # bytes
_ELSEWHERE = "set XDG_CACHE_HOME to another directory"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StatisticsCache:
    """What is kept in `directory` of images that a key stands for.

    It takes no more than `most` bytes (None: as many as it takes), or what is in use takes more.
    """

    directory: Path
    most: int | None = None

    @staticmethod
    def key(pixels_sha256: str, features: dict[str, object], count: int) -> str:
        """32 hex digits.

        Args:
            features: the identity of the extractor, which has its resize in it.
            count: of the images.
        """
        what = {"version": VERSION, "pixels": pixels_sha256, "features": features, "count": count}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def features(self, key: str, shape: tuple[int, int], make: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
        """Features float32 `[N, D]` of this shape, read from the disk as they are asked for.

        Args:
            make: gives them, one array after another; called where they are not here, or not what was put here.

        Raises:
            OSError: if they cannot be written; names the directory and what to do.
            ValueError: if what is made is of another shape, or not finite.
        """
        path = self.directory / f"{key}.npy"
        found = self._read(path, shape)
        if found is None:
            return self._written(path, shape, make())
        self._make_room(keep=path)
        return found

    def statistics(self, key: str, features: np.ndarray) -> Statistics:
        """Mean and covariance of features `[N, D]`. Raises as `features`."""
        path = self.directory / f"{key}.npz"
        known = self._read_statistics(path, key)
        if known is not None and known.mean.shape == features.shape[1:] and known.count == len(features):
            return known
        statistics = FeatureSums.of(features).statistics()
        with self._writing():
            content = io.BytesIO()
            statistics_file.write(content, statistics, {"key": key})
            cache_files.write(path, content.getvalue())
        return statistics

    def _read(self, path: Path, shape: tuple[int, int]) -> np.ndarray | None:
        header = _header(shape)
        try:
            with cache_files.opened(path) as file:
                cache_files.hold(file)
                digest, left = hashlib.sha256(path.name.encode()), len(header) + 4 * shape[0] * shape[1]
                begins = file.read(len(header))
                digest.update(begins)
                left -= len(begins)
                while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                    digest.update(chunk)
                    left -= len(chunk)
                if begins == header and left == 0 and file.read(_DIGEST + 1) == digest.digest():
                    return _mapped(file, shape)
        except FileNotFoundError:
            return None
        log.warning(f"cache    {printable(str(path))} is damaged: computing the features again")
        return None

    def _written(self, path: Path, shape: tuple[int, int], parts: Iterable[np.ndarray]) -> np.ndarray:
        """The features of `parts`, put on the disk; an error of making them is not one of writing."""
        digest, rows = hashlib.sha256(path.name.encode()), 0
        with ExitStack() as opened:
            with self._writing():
                cache_files.remove_abandoned(self.directory)
                self._make_room(needed=4 * shape[0] * shape[1])
                durable.check_space(self.directory, 4 * shape[0] * shape[1])
                file = opened.enter_context(cache_files.temporary(self.directory))
                file.write(_header(shape))
            digest.update(_header(shape))
            for part in parts:
                if part.ndim != 2 or part.shape[1] != shape[1] or not np.isfinite(part).all():
                    raise ValueError(f"features must be finite [B, {shape[1]}], got {list(part.shape)}")
                content = np.ascontiguousarray(part, "<f4").tobytes()
                digest.update(content)
                rows += len(part)
                with self._writing():
                    file.write(content)
            if rows != shape[0]:
                raise ValueError(f"features of {rows} images, expected {shape[0]}")
            with self._writing():
                file.write(digest.digest())
                cache_files.put_in_place(file, path)
            return _mapped(file, shape)  # whatever may happen to the name

    def _read_statistics(self, path: Path, key: str) -> Statistics | None:
        if not path.exists():
            return None
        try:
            with NpzFile(path) as file:
                known = statistics_file.load(file)
        except (OSError, ValueError) as error:
            log.warning(f"cache    {printable(str(error))}: computing the statistics again")
            return None
        return known.statistics if known is not None and known.features == {"key": key} else None

    def _make_room(self, *, needed: int = 0, keep: Path | None = None) -> None:
        if self.most is not None:
            keeps = [] if keep is None else [keep, keep.with_suffix(".npz")]
            make_room(self.directory, self.most, names=_NAMES, key="reference.cache_gb", needed=needed, keep=keeps)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The directory is there; an OSError inside says where it was, and what to do."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            where, reason = printable(str(self.directory)), error.strerror or error
            raise OSError(f"cannot write the cache of features in {where} ({reason}): {_ELSEWHERE}") from error


def _mapped(file: BinaryIO | FileIO, shape: tuple[int, int]) -> np.ndarray:
    return np.memmap(file, np.dtype("<f4"), mode="r", offset=len(_header(shape)), shape=shape)  # pyright: ignore


def _header(shape: tuple[int, int]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()
