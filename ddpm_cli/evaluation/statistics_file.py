"""Statistics of features in files: `mu` and `sigma`, as the tools of EDM, pytorch-fid and guided-diffusion do."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddpm_cli.evaluation.npz_file import NpzFile
from ddpm_cli.evaluation.statistics import Statistics
from ddpm_cli.io import durable
from ddpm_cli.io.text import printable

MOST_DIMENSIONS = 2**13
_MOST_IDENTITY = 2**18  # bytes of JSON, four to a character
_ASYMMETRY = 1e-5  # of the largest variance: sigma is float32 in some files


@dataclass(frozen=True, eq=False)
class KnownStatistics:
    """Statistics out of a file.

    Attributes:
        statistics: `count` is None where the file does not say it.
        features: the identity of the extractor they are of; None where the file does not say it.
    """

    statistics: Statistics
    features: dict[str, Any] | None


def save(path: Path, statistics: Statistics, features: dict[str, object]) -> None:
    """Write them to a file, durably, as `write`."""
    content = io.BytesIO()
    write(content, statistics, features)
    durable.replace(path, content.getvalue())


def write(file: BinaryIO, statistics: Statistics, features: dict[str, object]) -> None:
    """Write `mu` float64 `[D]` and `sigma` float64 `[D, D]`, and beside them `features` and `count`, which we read.

    Args:
        features: the identity of the extractor.
    """
    said = np.array(json.dumps(features, sort_keys=True))
    if statistics.count is None:
        np.savez(file, mu=statistics.mean, sigma=statistics.covariance, features=said)
    else:
        count = np.array(statistics.count, np.int64)
        np.savez(file, mu=statistics.mean, sigma=statistics.covariance, features=said, count=count)


def load(file: NpzFile) -> KnownStatistics | None:
    """The statistics in a file; None if it has none. Raises ValueError where they cannot be those of any features."""
    if not {"mu", "sigma"} <= set(file.names):
        return None
    where = printable(str(file.path))
    mean = _numbers(file, "mu", 8 * MOST_DIMENSIONS)
    covariance = _numbers(file, "sigma", 8 * MOST_DIMENSIONS**2)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or len(mean) == 0:
        shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
        raise ValueError(f"{where}: mu and sigma must be [D] and [D, D], got {shapes}")
    variances = np.diagonal(covariance)
    asymmetry = np.abs(covariance - covariance.T).max()
    if variances.min() < 0 or asymmetry > _ASYMMETRY * variances.max():
        raise ValueError(f"{where}: sigma is not a covariance: it must be symmetric, with no variance below 0")
    statistics = Statistics(_count(file), mean, (covariance + covariance.T) / 2)
    return KnownStatistics(statistics, _features(file))


def _numbers(file: NpzFile, name: str, most: int) -> np.ndarray:
    found = file.read(name, most=most)
    if found.dtype.kind != "f" or not np.isfinite(found).all():
        raise ValueError(f"{printable(str(file.path))}: {name} must be finite floating-point numbers")
    return found.astype(np.float64)


def _count(file: NpzFile) -> int | None:
    if "count" not in file.names:
        return None
    found = file.read("count", most=8)
    if found.shape != () or found.dtype.kind not in "iu" or found < 2:
        raise ValueError(f"{printable(str(file.path))}: count must be one whole number, at least 2")
    return int(found)


def _features(file: NpzFile) -> dict[str, Any] | None:
    if "features" not in file.names:
        return None
    found = file.read("features", most=_MOST_IDENTITY)
    try:
        features = json.loads(str(found))
    except (ValueError, RecursionError):
        features = None
    if not isinstance(features, dict):
        raise ValueError(f"{printable(str(file.path))}: features must be the JSON that reference.save writes")
    return features
