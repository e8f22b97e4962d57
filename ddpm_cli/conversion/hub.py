"""Models of the Hugging Face Hub: found in its cache on this machine, or downloaded if the user asks for it."""

import os
import re
from pathlib import Path

from ddpm_cli.config.errors import ConfigError, naming, shown
from ddpm_cli.config.extras import require

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# Of a repository, what a model of diffusers consists of; neither its pictures nor weights for other libraries.
FILES = (
    *("model_index.json", "config.json", "scheduler_config.json", "unet/config.json"),
    "scheduler/scheduler_config.json",
    *("diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"),
)
SECONDS = 20.0  # in which the Hub has to answer
_PICKLED = ("diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.bin")  # where there is no other


def local_source(source: str, *, download: bool) -> Path:
    """The directory or file of a model on this machine.

    Args:
        source: their place, or a model's name on the Hub: OWNER/NAME.
        download: download a model by its name.

    Raises:
        ConfigError: if there is no such place, and no such model in the cache or on the Hub; says how it can be got.
    """
    if os.path.lexists(source):
        if download:
            raise ConfigError(f"download: has no effect, {source} is on this machine")
        return Path(source)
    if not _NAME.fullmatch(source):
        if download:
            raise ConfigError(f"source: {shown(source)} is neither a path nor a model's name on the Hub, OWNER/NAME")
        raise ConfigError(f"source: {shown(source)} does not exist")
    if download:
        return _fetched(source)
    cached = _cached(source)
    if cached is None:
        raise ConfigError(_absent(source))
    return cached


def _cached(name: str) -> Path | None:
    """A model in the cache of the Hub's own library; None if it is not there, or the library is not installed."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=[*FILES, *_PICKLED]))
    except (OSError, ValueError):
        return None


def _fetched(name: str) -> Path:
    with naming("download"):
        require("hub", "huggingface_hub")
    from huggingface_hub import HfApi, snapshot_download

    try:
        there = {sibling.rfilename for sibling in HfApi().model_info(name, timeout=SECONDS).siblings or ()}
        wanted = [file for file in FILES if file in there]
        if not any(file.endswith(".safetensors") for file in wanted):
            wanted += [file for file in _PICKLED if file in there]
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # whatever a network may do
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"download: cannot download {name}: {shown(reason.strip())}. {_by_hand(name)}") from error


def _absent(name: str) -> str:
    return (
        f"source: {name} does not exist on this machine, and is not in the Hub's cache; set download=true "
        f"(pip install 'ddpm-cli[hub]'). {_by_hand(name)}"
    )


def _by_hand(name: str) -> str:
    return (
        f"Without a network: copy from https://huggingface.co/{name}/tree/main config.json, scheduler_config.json and "
        "diffusion_pytorch_model.safetensors or .bin, with unet/ and scheduler/ if it has them, to a directory DIR; "
        "then use source=DIR"
    )
