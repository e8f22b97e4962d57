"""What is kept of an evaluation: every figure with all that decides it, as JSON beside the run.

Two figures may be ranked if their names and their fingerprints are equal.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddpm_cli.config.errors import shown
from ddpm_cli.io import durable, plain_files

FORMAT = 1
WHOLE = 50_000  # images of the published protocols: the name of a figure of fewer says of how many
MOST_RECORD = 2**24  # bytes of JSON; ours has 10 kB, with the terms of a bound 50
INCEPTION = "inception"  # the features that alone may be called FID
_OF_INCEPTION = {"fd": "fid", "fd_inf": "fid_inf", "kd": "kid"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number, and what it may be compared with.

    Args:
        name: what it is called, with the number of images and the features.
        metric: what has been measured.
        standard_error: of the value; None: none is known.
        n: images that it was made of.
        fingerprint: of everything that decides whether another figure is comparable.
        of_class: the class whose images it is of alone; None: all.
    """

    name: str
    metric: str
    value: float
    standard_error: float | None
    n: int
    fingerprint: str
    of_class: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {("class" if key == "of_class" else key): value for key, value in vars(self).items()}

    @classmethod
    def parsed(cls, found: Mapping[str, Any]) -> "Figure":
        """Out of a record's JSON. Raises TypeError or ValueError where that is none."""
        figure = cls(**{("of_class" if key == "class" else key): value for key, value in found.items()})
        error = figure.standard_error
        if not isinstance(figure.value, int | float) or not isinstance(error, int | float | None):
            raise ValueError(f"no figure: {figure.value!r}")
        return figure


@dataclass(frozen=True, kw_only=True)
class Record:
    """An evaluation that is done; its fields are those of the JSON."""

    model: dict[str, Any] | None
    samples: dict[str, Any] | None
    features: dict[str, Any] | None
    reference: dict[str, Any] | None
    figures: tuple[Figure, ...]
    seconds: dict[str, float]
    images_per_second: float | None
    command: str
    versions: dict[str, str]
    remarks: tuple[str, ...] = ()  # what to know of the figures
    details: dict[str, Any] = field(default_factory=dict)  # by metric, what it has found beside its figures
    files: tuple[str, ...] = ()  # beside the record: pictures, samples
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def headline(self) -> Figure:
        """The figure that stands for all."""
        return self.figures[0]

    def write(self, path: Path) -> None:
        """Put it on the disk: all of it, or nothing."""
        found = {"format": FORMAT, "created": self.created} | vars(self)
        del found["figures"]
        found["metrics"] = [figure.as_json() for figure in self.figures]
        durable.replace(path, f"{json.dumps(found, indent=2)}\n".encode())


def read(path: Path) -> Record | None:
    """The record in a file; None if there is none.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        found = json.loads(plain_files.read(path, MOST_RECORD))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no record of an evaluation ({shown(str(error))})") from error
    try:
        if found.pop("format") != FORMAT:
            raise ValueError("of another format")
        figures = tuple(Figure.parsed(figure) for figure in found.pop("metrics"))
        record = Record(**found | {"figures": figures})
        if not figures:
            raise ValueError("without figures")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no record of an evaluation ({shown(str(error))})") from error
    return record


def digest(content: object, length: int = 16) -> str:
    """Hexadecimal digits of the SHA-256 of something's JSON, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def fingerprint(
    metric: str,
    *,
    settings: Mapping[str, object],
    features: Mapping[str, object] | None,
    reference: Mapping[str, object] | None,
    n: int,
    of_class: str | None = None,
) -> str:
    """16 digits that are equal only for figures that may be compared.

    Args:
        settings: of the metric.
        features: the extractor's identity; None: the metric takes none.
        reference: what of it decides; None: the metric compares with nothing.
        n: images of the samples.
    """
    decisive = {"metric": metric, "settings": dict(settings), "features": features, "reference": reference}
    return digest(decisive | {"n": n, "class": of_class})


def figure_name(metric: str, *, features: str | None, n: int) -> str:
    """What a figure is called: fid, fid10k, fd1k_classifier, precision_dinov2; without features as its metric.

    Args:
        n: images of the samples, whose thousands stand in the name if they are fewer than 50,000.
    """
    if features is None:
        return metric
    size = "" if n >= WHOLE else f"{n // 1000}k" if n >= 1000 else f"{n}"
    if features == INCEPTION:
        return f"{_OF_INCEPTION.get(metric, metric)}{size}"
    return f"{metric}{size}_{features}"
