"""What samples are compared with: the images of a run, or others, or statistics that somebody has made of some."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.data.cache_files import cache_directory
from ddpm_cli.data.cache_limit import GIB
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation import statistics_cache, statistics_file
from ddpm_cli.evaluation.content import content_sha256
from ddpm_cli.evaluation.features.extractor import Extractor
from ddpm_cli.evaluation.image_files import PIXELS, images_in, open_images
from ddpm_cli.evaluation.metrics import Side
from ddpm_cli.evaluation.npz_file import NpzFile
from ddpm_cli.evaluation.record import INCEPTION
from ddpm_cli.evaluation.run_data import RunImages
from ddpm_cli.evaluation.statistics import Statistics
from ddpm_cli.evaluation.statistics_cache import StatisticsCache
from ddpm_cli.evaluation.statistics_file import KnownStatistics
from ddpm_cli.io.text import printable


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """A reference that has been opened.

    Args:
        name: what it is called.
        split: of a run's data.
        pixels_of: the images; None: only statistics of them are known.
        known: statistics that came with it.
        save: where to write its statistics to.
        cache_bytes: what the features of all references may take on the disk.
    """

    name: str
    split: str | None = None
    pixels_of: ImageSet | None
    known: KnownStatistics | None = None
    save: Path | None = None
    cache_bytes: int | None = None

    @property
    def n(self) -> int | None:
        """How many images it has; None: that is not known."""
        if self.known is not None and self.known.statistics.count is not None:
            return self.known.statistics.count
        return None if self.pixels_of is None or self.known is not None else len(self.pixels_of)

    @property
    def labels(self) -> np.ndarray | None:
        """int64 `[N]`."""
        return None if self.pixels_of is None else self.pixels_of.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the labels."""
        return () if self.pixels_of is None else self.pixels_of.class_names

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of its images; None: it has none."""
        return None if self.pixels_of is None else self.pixels_of.shape

    @property
    def statistics_alone(self) -> bool:
        """Whether it has no images, so that some metrics cannot be had."""
        return self.pixels_of is None

    @cached_property
    def _pixels_sha256(self) -> str:
        assert self.pixels_of is not None
        return content_sha256(self.pixels_of.pixels)

    @cached_property
    def sha256(self) -> str:
        """Of all that it holds, wherever it lies."""
        if self.known is None:
            return self._pixels_sha256
        digest = hashlib.sha256(json.dumps(self.known.features, sort_keys=True).encode())
        for array in (self.known.statistics.mean, self.known.statistics.covariance):
            digest.update(np.ascontiguousarray(array).data)
        if self.pixels_of is not None:
            digest.update(self._pixels_sha256.encode())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a record says of it, and what figures must have in common to be compared."""
        resize = None if self.image_shape is None else f"{self.image_shape[1]} x {self.image_shape[2]}"
        return {"name": self.name, "split": self.split, "n": self.n, "sha256": self.sha256, "resize": resize}

    def images(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """uint8 `[len(indices), C, H, W]`."""
        assert self.pixels_of is not None
        return torch.from_numpy(np.ascontiguousarray(self.pixels_of.pixels[np.asarray(indices, np.int64)]))

    def check(self, extractor: Extractor) -> None:
        """Raise ConfigError where its statistics are of other features than these, and it has no images instead."""
        if self.known is None or self._known_of(extractor) is not None or self.pixels_of is not None:
            return
        said = self.known.features
        if said is not None and said != extractor.identity():
            what = f"were made with other features than features={extractor.name}, or other weights of them"
        elif self.known.statistics.dimensions != extractor.dimensions:
            have = self.known.statistics.dimensions
            what = f"have {have} dimensions, features={extractor.name} {extractor.dimensions}"
        else:
            what = f"do not name their features: they are taken for Inception's, not {extractor.name}'s"
        raise ConfigError(f"reference.path: the statistics in {self.name} {what}")

    def side(self, extractor: Extractor, batch_size: int) -> Side:
        """Its features and their statistics, made now or found in the cache; written to `save` if that is given.

        Raises:
            ConfigError: as `check`.
            OSError: if the cache, or `save`, cannot be written.
        """
        self.check(extractor)
        statistics, features = self._known_of(extractor), None
        if self.pixels_of is not None:
            cache = StatisticsCache(cache_directory(None) / statistics_cache.FOLDER, most=self.cache_bytes)
            count = len(self.pixels_of)
            key = cache.key(self._pixels_sha256, extractor.identity(), count)
            shape = (count, extractor.dimensions)
            features = cache.features(key, shape, lambda: _extracted(extractor, self.images, count, batch_size))
            if statistics is None:
                statistics = cache.statistics(key, features)
        if self.save is not None:
            assert statistics is not None
            statistics_file.save(self.save, statistics, extractor.identity())
        return Side(features=features, known=statistics, labels=self.labels)

    def _known_of(self, extractor: Extractor) -> Statistics | None:
        """The statistics that came with it, where they are of these features.

        Those of other programs do not say so: they are of Inception, and are compared with by everybody.
        """
        if self.known is None or self.known.statistics.dimensions != extractor.dimensions:
            return None
        said = self.known.features
        fits = extractor.name == INCEPTION if said is None else said == extractor.identity()
        return self.known.statistics if fits else None


def _extracted(
    extractor: Extractor, images: Callable[[np.ndarray], Tensor], count: int, batch_size: int
) -> Iterator[np.ndarray]:
    with tqdm(total=count, desc="reference", unit="image", disable=None, dynamic_ncols=True) as bar:
        for start in range(0, count, batch_size):
            batch = images(np.arange(start, min(start + batch_size, count)))
            yield extractor(batch).float().cpu().numpy()
            bar.update(len(batch))


# Options -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The images of the run: those it was trained on, or others of the same data."""

    split: Literal["train", "test", "holdout"] = "train"
    save: str | None = None
    cache_gb: float = 20.0

    def __post_init__(self) -> None:
        _check_size(self.cache_gb)

    def open(self, run_images: Callable[[], RunImages], test_images: Callable[[], ImageSet]) -> Reference:
        """Read what it is.

        Args:
            run_images, test_images: read the images of the run; they raise ConfigError where there are none.

        Raises:
            ConfigError: if there is no such split, or no such place as `save`.
        """
        save = _place(self.save)
        if self.split == "test":
            images = test_images()
        else:
            of_run = run_images()
            images = of_run.trained_on if self.split == "train" else of_run.held_out
        if images is None:
            raise ConfigError("reference.split=holdout: the run held out no images (data.holdout=N)")
        unflipped = replace(images, flip="none")
        most = int(self.cache_gb * GIB)
        return Reference(name=images.name, split=self.split, pixels_of=unflipped, save=save, cache_bytes=most)


@dataclass(frozen=True)
class Images:
    """Images from anywhere, or statistics of such: see `open_images` and `statistics_file`."""

    path: str
    save: str | None = None
    cache_gb: float = 20.0

    def __post_init__(self) -> None:
        _check_size(self.cache_gb)

    def open(self, run_images: Callable[[], RunImages], test_images: Callable[[], ImageSet]) -> Reference:
        """As `Data.open`; nothing of the run is asked for."""
        del run_images, test_images
        save = _place(self.save)
        path = Path(os.path.abspath(os.path.expanduser(self.path)))
        known = None
        with naming("reference.path"):
            if path.is_dir():
                images = open_images(path).images
            else:
                with NpzFile(path) as file:
                    known = statistics_file.load(file)
                    # The evaluator of guided-diffusion takes mu and sigma from such a file, and precision and recall
                    # from the images beside them, which are fewer.
                    images = images_in(file).images if known is None or PIXELS in file.names else None
        if save is not None and known is not None:
            raise ConfigError("reference.save: has no effect, as the reference is already a file of mu and sigma")
        most = int(self.cache_gb * GIB)
        return Reference(name=printable(path.name), pixels_of=images, known=known, save=save, cache_bytes=most)


def _check_size(cache_gb: float) -> None:
    if not 0 <= cache_gb < math.inf:
        raise ValueError(f"cache_gb must be a number of GiB from 0 on, got {cache_gb:g}")


def _place(save: str | None) -> Path | None:
    """Where statistics can be written to. Raises ConfigError if they cannot."""
    if save is None:
        return None
    path = Path(os.path.abspath(os.path.expanduser(save)))
    with naming("reference.save"):
        if path.suffix != ".npz":
            raise ValueError(f"must end in .npz, got {printable(save)}")
        if path.is_dir() or not path.parent.is_dir():
            cause = "is a directory" if path.is_dir() else "is in a directory that does not exist"
            raise ValueError(f"{printable(str(path))} {cause}")
        with TemporaryFile(dir=path.parent):  # better known before than after sampling
            return path
