"""The files of a checkpoint, and its description of itself."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

from ddpm_cli.checkpoint.migrate import upgrade
from ddpm_cli.checkpoint.stored_config import decode, encode
from ddpm_cli.config.errors import shown

FORMAT = 3  # written; 1 and 2 are read as well
EMA_FILE = "ema.safetensors"
TRAINING_FILE = "training.safetensors"
DESCRIPTION_FILE = "checkpoint.json"
MANIFEST_FILE = "manifest.json"
FILES = (EMA_FILE, TRAINING_FILE, DESCRIPTION_FILE)
HEADER_KEY = "ddpm_cli"
IMPORTED = "imported"  # in a configuration: what a network that another program trained was read from
OWN_KEY = "sha256"  # in a manifest: of the manifest itself

# A checkpoint may come from anywhere: nothing in it may ask for unlimited memory.
MOST_PIXELS = 2**24  # of one image, all channels
MOST_TEXT = 2**18  # bytes of JSON, of which Python makes up to 30 times as much in memory; ours has 3 kB
MOST_HEADER = 2**20  # bytes of a safetensors header: 8,000 tensors; a longer one only in a file that is far larger
SMALL_HEADER = 2 * MOST_TEXT  # a longer one only in a file whose tensors are as large; there is a description in it


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """A checkpoint's description of itself.

    Args:
        step: optimizer steps done.
        image_shape: (C, H, W) of its images.
        images: how many images its data has, including held-out ones.
        config: the run's configuration, with full paths; from a foreign checkpoint it must not be trusted before
            `validate.check_node`.
        versions: of the programs that wrote it.
        classes: names of the labels it was trained on, from 0 up; empty: without labels.
        data: digests of the images it was trained on, by what they are of; empty: not known, as in checkpoints of
            early versions.
    """

    step: int
    image_shape: tuple[int, int, int]
    images: int
    config: dict
    versions: dict[str, str]
    classes: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for impossible values: they may come from anywhere."""
        shape = self.image_shape
        if not (isinstance(shape, tuple) and len(shape) == 3 and all(_in_range(side, 1, 2**16) for side in shape)):
            raise ValueError(f"image_shape {shape!r}")
        if shape[0] * shape[1] * shape[2] > MOST_PIXELS:
            raise ValueError(f"image_shape {shape!r}: too large")
        for name in ("step", "images"):
            if not _in_range(getattr(self, name), 0, 2**53):
                raise ValueError(f"{name} {getattr(self, name)!r}")
        if not isinstance(self.classes, tuple) or not all(isinstance(name, str) for name in self.classes):
            raise ValueError("classes must be texts")
        if not isinstance(self.data, dict) or not all(_is_digest(value) for value in self.data.values()):
            raise ValueError("data must be SHA-256 digests")
        if not isinstance(self.config, dict) or not isinstance(self.versions, dict):
            raise ValueError("config and versions must be objects")

    @property
    def imported(self) -> bool:
        """Whether another program trained the network: then there are only weights, and no training state."""
        return IMPORTED in self.config

    def as_json(self) -> str:
        """The text that is written in a checkpoint, and that `parse` reads."""
        return json.dumps({"format": FORMAT} | asdict(self) | {"config": encode(self.config)}, indent=2)


def _in_range(value: object, least: int, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


class CheckpointError(ValueError):
    """A path that is no checkpoint, or a checkpoint that is damaged; the message names the file."""


def manifest_text(files: dict[str, dict]) -> str:
    """manifest.json: size and SHA-256 of `files` by name, and the SHA-256 of that list itself."""
    own = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return json.dumps(files | {OWN_KEY: own}, indent=2) + "\n"


def parse(text: str, path: Path) -> Metadata:
    """The description from its JSON, which may come from anywhere.

    Raises:
        CheckpointError: naming `path`.
    """
    if len(text) > MOST_TEXT:
        raise CheckpointError(f"{path}: its description is longer than {MOST_TEXT} bytes")
    try:
        found = json.loads(text)
        written = found.pop("format", None) if isinstance(found, dict) else None
        if not _in_range(written, 1, FORMAT):
            raise CheckpointError(f"{path} is of another checkpoint format; this version reads formats 1 to {FORMAT}")
        found["image_shape"] = tuple(found["image_shape"])
        if isinstance(found.get("classes"), list):
            found["classes"] = tuple(found["classes"])
        stored = Metadata(**found)
        return replace(stored, config=decode(upgrade(stored.config, written)))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = shown(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"{path}: its description is invalid: {reason}") from error
