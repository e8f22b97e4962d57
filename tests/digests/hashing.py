"""SHA-256 of what runs leave: of numbers and pixels, not of files, whose headers hold more than is computed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

_METRICS = ("step", "loss/", "loss_by_t/", "train/")  # the others are a clock's


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_run(run: Path) -> dict[str, str]:
    """Of all checkpoints of a run, of its logged numbers, previews and averages.

    The training state has one digest for each kind of tensor, by what their names begin with.
    """
    checkpoints = sorted(run.glob("checkpoints/step_*"))
    if not checkpoints:
        raise ValueError(f"{run} holds no checkpoint")
    kinds: dict[str, dict[str, Tensor]] = {}
    for checkpoint in checkpoints:
        for name, tensor in load_file(checkpoint / "training.safetensors").items():
            kinds.setdefault(name.partition(".")[0], {})[f"{checkpoint.name}/{name}"] = tensor
    digests = {f"training/{kind}": of_tensors(tensors) for kind, tensors in kinds.items()}
    digests["ema"] = _of_files(checkpoint / "ema.safetensors" for checkpoint in checkpoints)
    digests["metrics"] = of_metrics(run / "metrics.jsonl")
    for name, digest in (("averages", _of_files), ("previews", of_pictures)):
        files = sorted(path for path in run.glob(f"{name}/step_*") if path.is_file())
        if files:
            digests[name] = digest(files)
    return digests


def of_samples(directory: Path) -> dict[str, str]:
    """Of the images that `ddpm-sample save=npz` has drawn, of their picture, and of the way there if it was kept."""
    with np.load(directory / "samples.npz") as archive:
        digests = {"images": of_tensors({"images": torch.from_numpy(archive["arr_0"])})}
    digests["picture"] = of_pictures([directory / "samples.png"])
    trajectory = directory / "steps.png"
    if trajectory.exists():
        digests["trajectory"] = of_pictures([trajectory])
    return digests


def of_metrics(file: Path) -> str:
    """Of the values in metrics.jsonl that no clock says."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kept = [{name: value for name, value in line.items() if name.startswith(_METRICS)} for line in lines]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def of_pictures(files: Iterable[Path]) -> str:
    """Of names and pixels."""
    return of_tensors({file.name: torch.from_numpy(np.array(Image.open(file))) for file in files})


def _of_files(files: Iterable[Path]) -> str:
    """Of the tensors in safetensors files, which are in directories of different names or have different names."""
    return of_tensors(
        {f"{file.parent.name}/{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}
    )
