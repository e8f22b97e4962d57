"""Checkpoints: a directory per step, saved all or nothing, checked before it is used, holding data and no code.

checkpoints/step_00005000/
    ema.safetensors        the EMA weights and, in the header, the description: all that sampling needs
    training.safetensors   the network's own weights, optimizer moments, counters
    checkpoint.json        the description: format, step, configuration, image shape, versions
    manifest.json          size and SHA-256 of the three; written last
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_cli import __version__

FORMAT = 1
EMA_FILE = "ema.safetensors"
TRAINING_FILE = "training.safetensors"
DESCRIPTION_FILE = "checkpoint.json"
MANIFEST_FILE = "manifest.json"
_HEADER_KEY = "ddpm_cli"
MOST_PIXELS = 2**26  # of one image, all channels: a description may not ask for memory without bound


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint says of itself.

    Args:
        step: optimizer steps done.
        image_shape: (C, H, W) of its images.
        images: how many it was trained on.
        config: the run's configuration; from a foreign checkpoint not to be trusted before `config.check_untrusted`.
        versions: of what wrote it.
    """

    step: int
    image_shape: tuple[int, int, int]
    images: int
    config: dict
    versions: dict[str, str]

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be: the numbers may come from anywhere."""
        shape = self.image_shape
        if not (isinstance(shape, tuple) and len(shape) == 3 and all(_in_range(side, 1, 2**16) for side in shape)):
            raise ValueError(f"image_shape {shape!r}")
        if shape[0] * shape[1] * shape[2] > MOST_PIXELS:
            raise ValueError(f"image_shape {shape!r}: too large")
        for name in ("step", "images"):
            if not _in_range(getattr(self, name), 0, 2**53):
                raise ValueError(f"{name} {getattr(self, name)!r}")
        if not isinstance(self.config, dict) or not isinstance(self.versions, dict):
            raise ValueError("config and versions must be objects")

    def as_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self), indent=2)


def _in_range(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


class CheckpointError(ValueError):
    """A path that is no checkpoint, or a checkpoint that is damaged; the message names the file."""


def save(
    directory: Path, *, ema: dict[str, Tensor], training: dict[str, Tensor], description: Description, keep_last: int
) -> Path:
    """Write `directory/step_<step>` durably, then remove all but the newest `keep_last`.

    The files are written to a hidden directory, flushed to the disk, and renamed into place: whatever happens on the
    way, what stands under the final name is whole.

    Args:
        directory: the run's `checkpoints/`; made if missing.

    Raises:
        OSError: if the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    final = directory / f"step_{description.step:08d}"
    temporary, replaced = directory / f".{final.name}.tmp", directory / f".{final.name}.replaced"
    directory.mkdir(parents=True, exist_ok=True)
    for left_over in (temporary, replaced):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir()
    try:
        text = description.as_json()
        _save_tensors(ema, temporary / EMA_FILE, text)
        _save_tensors(training, temporary / TRAINING_FILE, None)
        (temporary / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")
        files = (EMA_FILE, TRAINING_FILE, DESCRIPTION_FILE)
        manifest = {name: _fingerprint(temporary / name) for name in files}
        (temporary / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for name in (*files, MANIFEST_FILE):
            _fsync(temporary / name)
        _fsync(temporary)
        if final.exists():  # a resumed run has come to this step again
            final.rename(replaced)
        temporary.rename(final)
        _fsync(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    for old in _all(directory)[:-keep_last]:
        shutil.rmtree(old)
    return final


def newest(run_directory: Path) -> Path:
    """The checkpoint of the highest step in a run.

    Raises:
        CheckpointError: if there is none.
    """
    found = _all(run_directory / "checkpoints")
    if not found:
        raise CheckpointError(f"{run_directory} holds no checkpoint")
    return found[-1]


def find(path: str | Path) -> Path:
    """What `ckpt=` means: the newest checkpoint of a run directory, a checkpoint directory, or its EMA file.

    Returns:
        A checkpoint directory, or a single `.safetensors` file.

    Raises:
        CheckpointError: if the path is none of these.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist")
    if path.is_file():
        if path.parent.joinpath(MANIFEST_FILE).is_file() and path.name == EMA_FILE:
            return path.parent
        if path.suffix == ".safetensors":
            return path
    elif (path / MANIFEST_FILE).is_file():
        return path
    elif (path / "checkpoints").is_dir():
        return newest(path)
    elif path.name == "checkpoints":
        return newest(path.parent)
    raise CheckpointError(f"{path} is neither a run directory nor a checkpoint nor an EMA file ({EMA_FILE})")


def load_ema(checkpoint: Path) -> tuple[dict[str, Tensor], Description]:
    """EMA weights on the CPU and the description, from what `find` returned.

    Raises:
        CheckpointError: if it is damaged or not ours.
    """
    if checkpoint.is_dir():
        verify(checkpoint, EMA_FILE)
        checkpoint = checkpoint / EMA_FILE
    try:
        with safetensors.safe_open(checkpoint, "pt") as file:
            header = file.metadata() or {}
            description = _parse(header[_HEADER_KEY], checkpoint)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except (safetensors.SafetensorError, KeyError) as error:
        raise CheckpointError(f"{checkpoint} is no EMA file of ddpm-cli: {type(error).__name__}: {error}") from error
    return tensors, description


def load_training(checkpoint: Path) -> tuple[dict[str, Tensor], Description]:
    """Training state on the CPU and the description, from a checkpoint directory.

    Raises:
        CheckpointError: if it is damaged, not ours, or only an EMA file.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} holds the EMA weights alone; this needs a whole checkpoint directory")
    verify(checkpoint, TRAINING_FILE, DESCRIPTION_FILE)
    description = _parse((checkpoint / DESCRIPTION_FILE).read_text(encoding="utf-8"), checkpoint)
    return load_file(checkpoint / TRAINING_FILE), description


def verify(checkpoint: Path, *names: str) -> None:
    """Compare files of a checkpoint with its manifest.

    Raises:
        CheckpointError: naming the first file that is missing or differs.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        expected = {name: (manifest[name]["bytes"], manifest[name]["sha256"]) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / MANIFEST_FILE} is damaged: {type(error).__name__}: {error}") from error
    for name, (size, sha256) in expected.items():
        file = checkpoint / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} is damaged: {file.stat().st_size} bytes, should be {size}")
        if _sha256(file) != sha256:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {MANIFEST_FILE}")


def size(ema: dict[str, Tensor], training: dict[str, Tensor]) -> int:
    """Bytes that a checkpoint of these tensors takes, without its few kilobytes of text."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*ema.values(), *training.values()))


def versions() -> dict[str, str]:
    """What wrote a checkpoint, for whoever has to find out later."""
    return {"ddpm_cli": __version__, "torch": str(torch.__version__)}


def _all(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step_*") if (path / MANIFEST_FILE).is_file())


def _save_tensors(tensors: dict[str, Tensor], file: Path, description: str | None) -> None:
    metadata = {"format": "pt"} if description is None else {"format": "pt", _HEADER_KEY: description}
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from error


def _parse(text: str, path: Path) -> Description:
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise CheckpointError(f"{path} is of another checkpoint format; this version reads format {FORMAT}")
        found["image_shape"] = tuple(found["image_shape"])
        return Description(**found)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description cannot be: {type(error).__name__}: {error}") from error


def _fingerprint(file: Path) -> dict[str, int | str]:
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
