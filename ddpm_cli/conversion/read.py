"""`read_source`: recognises which program a model is from, and converts it to our terms."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ddpm_cli.config.errors import shown
from ddpm_cli.conversion import diffusers_files, ho, openai
from ddpm_cli.conversion.imported import ConversionError, Given, Imported
from ddpm_cli.conversion.tensor_file import PICKLED, SAFETENSORS, read_pickled, read_tensors, state_dict
from ddpm_cli.io.run_dir import CHECKPOINTS, step_of

if TYPE_CHECKING:
    from torch import Tensor

KNOWN = (
    "a directory of diffusers (model_index.json, unet/, scheduler/; or config.json beside its weights), or a file of "
    "tensors of Ho et al.'s networks as pesser/pytorch_diffusion has converted them, or of OpenAI's improved-diffusion "
    "or guided-diffusion"
)
_LUCIDRAINS = re.compile(r"(ema_model\.|online_model\.|model\.)*init_conv\.")  # names in denoising-diffusion-pytorch
_STEP = re.compile(r"(?:model-?|ema_[\d.]+_)(\d{4,9})")  # model-790000.ckpt, model500000.pt, ema_0.9999_500000.pt


class _Format(NamedTuple):
    """One of the programs whose networks are in a single file of tensors.

    Args:
        recognised: whether the names are its.
        read: the model, of its tensors by name, the file for messages, and what is given beside it.
    """

    recognised: Callable[[Mapping[str, object]], bool]
    read: "Callable[[dict[str, Tensor], str, Given], Imported]"


_FORMATS = (_Format(ho.recognised, ho.read), _Format(openai.recognised, openai.read))


def read_source(path: str | Path, given: Given | None = None) -> Imported:
    """A model that another program trained, in our terms.

    Args:
        path: a directory of diffusers; or a file of tensors: `.safetensors`, or `.pt`, `.pth`, `.bin`, `.ckpt` of
            torch.save, of which no code is run.
        given: what is said of the model beside its files; None: nothing.

    Raises:
        ConversionError: if there is none, or it is none that ours can be; names the file and what of it.
    """
    path, given = Path(path), Given() if given is None else given
    if not os.path.lexists(path):
        raise ConversionError(f"{path} does not exist")
    if path.is_dir():
        return _of_directory(path, given)
    step = _STEP.fullmatch(path.stem)
    tensors = _of_file(path)
    for known in _FORMATS:
        if known.recognised(tensors):
            found = known.read(tensors, str(path), given)
            return found if step is None or found.step else replace(found, step=int(step[1]))
    raise ConversionError(_unknown(path, tensors))


def _of_directory(path: Path, given: Given) -> Imported:
    if (path / CHECKPOINTS).is_dir() or step_of(path) is not None or path.name == CHECKPOINTS:
        raise ConversionError(f"{path} is a model of ddpm-cli already: use it with ckpt= or init=")
    if diffusers_files.is_directory_of_diffusers(path):
        return diffusers_files.read(path, given)
    raise ConversionError(f"{path} holds no known model; expected {KNOWN}")


def _of_file(path: Path) -> "dict[str, Tensor]":
    if path.suffix == SAFETENSORS:
        return read_tensors(path)
    if path.suffix not in PICKLED:
        beside = f"; give the directory {path.parent}" if path.suffix == ".json" else ""
        kinds = ", ".join((SAFETENSORS, *PICKLED))
        raise ConversionError(f"{path} is neither a file of tensors ({kinds}) nor a directory{beside}")
    found = read_pickled(path)
    _check_architecture(path, found)
    tensors = state_dict(found)
    if tensors is None:
        held = f"a dict of {shown(', '.join(map(str, found)))}" if isinstance(found, dict) else type(found).__name__
        raise ConversionError(f"{path} is not a state dict, which is tensors by name and nothing else: it is {held}")
    return tensors


def _check_architecture(path: Path, found: Any) -> None:
    """Raise ConversionError for a well-known program whose network is another one."""
    inner = found.get("model") if isinstance(found, dict) else None
    names = [*(found if isinstance(found, dict) else ()), *(inner if isinstance(inner, dict) else ())]
    if any(isinstance(name, str) and _LUCIDRAINS.match(name) for name in names):
        raise ConversionError(
            f"{path} is from denoising-diffusion-pytorch, whose network has another architecture: its blocks, "
            "attention and time embedding are not DDPM's, and its weights do not fit ours"
        )


def _unknown(path: Path, tensors: Mapping[str, object]) -> str:
    if any(name.startswith("down_blocks.") for name in tensors):
        return f"{path}: diffusers' weights do not describe their network; give the directory with config.json too"
    named = ", ".join(sorted(tensors)[:3])
    return f"{path} holds no known network (its tensors are {shown(named)}...); expected {KNOWN}"
