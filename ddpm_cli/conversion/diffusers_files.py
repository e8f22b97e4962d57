"""A model in a directory of diffusers: nested as a pipeline is saved, or flat as a network or an early pipeline is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_cli.config.errors import shown
from ddpm_cli.conversion import diffusers_scheduler, diffusers_unet
from ddpm_cli.conversion.imported import ConversionError, Given, Imported
from ddpm_cli.conversion.tensor_file import read_pickled, read_tensors, state_dict
from ddpm_cli.io import plain_files

if TYPE_CHECKING:
    from torch import Tensor

INDEX_FILE = "model_index.json"
UNET, SCHEDULER = "unet", "scheduler"  # folders of a pipeline
WEIGHTS = "diffusion_pytorch_model"
MOST_JSON = 2**22  # bytes; the index of a network in many parts has hundreds of kilobytes
# What diffusers writes into the config of an average of a network's weights.
_OF_AVERAGES = ("decay", "min_decay", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
_STEP = "optimization_step"


def is_directory_of_diffusers(directory: Path) -> bool:
    """Whether a directory holds a model of diffusers."""
    return any((directory / name).is_file() for name in (INDEX_FILE, diffusers_unet.CONFIG_FILE)) or (
        (directory / UNET / diffusers_unet.CONFIG_FILE).is_file()
    )


def read(directory: Path, given: Given) -> Imported:
    """The network and the scheduler of a directory.

    Args:
        given: what counts instead of what the files say.

    Raises:
        ConversionError: if it holds another model, or one that ours cannot be; names the file and the key.
    """
    if given.preset is not None:
        raise ConversionError("preset= has no effect: diffusers' files say what their network is")
    _check_pipeline(directory)
    nested = directory / UNET
    place = nested if (nested / diffusers_unet.CONFIG_FILE).is_file() else directory
    file = place / diffusers_unet.CONFIG_FILE
    config = _read_json(file)
    step = config.get(_STEP)
    config = {key: value for key, value in config.items() if key not in (_STEP, *_OF_AVERAGES)}
    options = diffusers_unet.to_options(config, where=str(file), image_size=given.image_size)
    tensors = _weights(place)
    with_null = diffusers_unet.with_null_label(options, tensors)
    remarks = []
    if with_null != options:
        remarks.append(f'the last of {options["num_classes"]} labels is all zeros: it is "no label" here')
    scheduler = _scheduler(directory, place, given)
    return Imported(
        description=f"diffusers' {diffusers_unet.CLASS}",
        unet=with_null,
        tensors=diffusers_unet.to_ours(tensors, with_null),
        groups=scheduler.groups,
        step=step if isinstance(step, int) and 0 <= step < 2**53 else 0,
        remarks=(*remarks, *scheduler.remarks),
    )


def _check_pipeline(directory: Path) -> None:
    """Refuse pipelines in which the network makes not images, but latents from which another network makes images."""
    file = directory / INDEX_FILE
    if not file.is_file():
        return
    index = _read_json(file)
    further = sorted(key for key in index if not key.startswith("_") and key not in (UNET, SCHEDULER))
    if further:
        pipeline = shown(str(index.get("_class_name")))
        raise ConversionError(
            f"{file}: a {pipeline} also has {shown(', '.join(further))}; here a model is only a network and a schedule"
        )


def _scheduler(directory: Path, place: Path, given: Given) -> diffusers_scheduler.Scheduler:
    """The config of the pipeline, or of the one that a network's own directory belongs to; empty if there is none."""
    homes = [directory, directory / SCHEDULER]
    if place == directory:
        homes.append(directory.parent / SCHEDULER)
    for home in homes:
        file = home / diffusers_scheduler.CONFIG_FILE
        if file.is_file():
            return diffusers_scheduler.to_groups(_read_json(file), where=str(file), chosen=given.chosen)
    return diffusers_scheduler.Scheduler({}, ())


def _weights(place: Path) -> "dict[str, Tensor]":
    for suffix, read_file in ((".safetensors", read_tensors), (".bin", _pickled)):
        index, whole = place / f"{WEIGHTS}{suffix}.index.json", place / f"{WEIGHTS}{suffix}"
        if whole.is_file():
            return read_file(whole)
        if index.is_file():
            found = {}
            for part in _parts(index, suffix):
                tensors = read_file(place / part)
                if found.keys() & tensors.keys():
                    raise ConversionError(f"{place / part} holds tensors that another part of {index} also holds")
                found |= tensors
            return found
    there = sorted(path.name for path in place.iterdir())[:8] if place.is_dir() else []
    raise ConversionError(
        f"{place} has no {WEIGHTS}.safetensors or .bin; there {'are' if there else 'is'} "
        f"{shown(', '.join(there)) or 'nothing'}"
    )


def _pickled(file: Path) -> "dict[str, Tensor]":
    found = state_dict(read_pickled(file))
    if found is None:
        raise ConversionError(f"{file} is not a state dict: expected tensors by name, and nothing else")
    return found


def _parts(index: Path, suffix: str) -> list[str]:
    """The files of a network's weights, which are beside their index."""
    places = _read_json(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(suffix) for name in names):
        raise ConversionError(f"{index}: weight_map does not name a file beside it for each tensor")
    return names


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(plain_files.read(file, MOST_JSON))
    except OSError as error:
        raise ConversionError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error) if str(error).startswith(str(file)) else f"{file}: not JSON: {error}"
        raise ConversionError(shown(reason)) from error
    if not isinstance(found, dict):
        raise ConversionError(f"{file}: expected a JSON object")
    return found
