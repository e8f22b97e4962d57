"""Features of any pretrained network of the timm package, such as DINOv2."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.config.errors import naming, nearest, shown
from ddpm_cli.config.extras import require
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.features.extractor import as_rgb, extract
from ddpm_cli.evaluation.features.weights import State, hub_checkpoints, read_state, sha256_of
from ddpm_cli.io.text import printable

# Networks and sizes that papers have a name for. Stein et al. 2023, "Exposing flaws of generative model evaluation
# metrics and their unfair treatment of diffusion models": FD_DINOv2.
PUBLISHED = {("vit_large_patch14_dinov2", 224): "dinov2"}
FILES = ("model.safetensors", "pytorch_model.bin")  # of a network on the Hugging Face hub: the first that is there


class Timm:
    """The pooled features of a pretrained network of timm, after timm's own preprocessing for it. Grey is repeated.

    Figures are called after the network, without the tag of its weights (resnet50.a1_in1k: fd_resnet50), but
    fd_dinov2 for vit_large_patch14_dinov2 at 224.

    Args:
        model: as timm calls it.
        image_size: side in pixels of what the network gets; None: as it was pretrained.
        weights: safetensors, or a file of torch.save that holds tensors alone; None: timm's cache.
        download: whether they may be fetched if they are not there.

    Raises:
        ValueError: if timm is not installed, or the size is none.
    """

    def __init__(
        self, *, model: str, image_size: int | None = None, weights: str | None = None, download: bool = False
    ):
        require("eval", "timm")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        self.model = model
        self.image_size = image_size
        self.weights = weights
        self.download = download
        self.dimensions = 0  # known when the network is
        self._identity: dict[str, object] = {}
        self._network: Any = None
        self._preprocess: Callable[[Tensor], Tensor] | None = None
        self._device = torch.device("cpu")

    @property
    def name(self) -> str:
        architecture = self.model.partition(".")[0]
        return PUBLISHED.get((architecture, self.image_size or 0), architecture)

    def identity(self) -> dict[str, object]:
        return self._identity

    def prepare(self, data: Callable[[], ImageSet] | None, device: torch.device) -> None:
        import timm
        from timm.data.config import resolve_model_data_config

        with naming("features.model"):
            published = _published(self.model)
        with naming("features.weights"):
            path = _found(published, download=self.download) if self.weights is None else Path(self.weights)
            path = path.expanduser()
            sha256 = _checked_sha256(path)
            network = self._built(published, read_state(path), path)
        size = None if self.image_size is None else {"input_size": (3, self.image_size, self.image_size)}
        preprocessing = resolve_model_data_config(network, args=size)
        self._network, self._device = network.to(device), device
        self._preprocess = _preprocess(preprocessing)
        self.dimensions = self._features(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device)).shape[1]
        self._identity = {
            "name": self.name,
            "model": self.model,
            "weights_sha256": sha256,
            "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in preprocessing.items()},
            "timm": timm.__version__,
        }

    def __call__(self, images: Tensor) -> Tensor:
        return extract(self._features, images, self._device)

    def class_probabilities(self, features: Tensor) -> None:
        return None  # an inception score is one of Inception

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        assert self._preprocess is not None
        return self._network(self._preprocess(as_rgb(images))).flatten(1)

    def _built(self, published: Any, state: State, path: Path) -> Any:
        """The network with these weights and without its classes.

        Raises:
            ValueError: if they are another network's.
        """
        import timm

        # A transformer's positions are made for one size; a convolutional network takes any.
        size: dict[str, Any] = (
            {"img_size": self.image_size} if self.image_size is not None and published.fixed_input_size else {}
        )
        try:
            with torch.random.fork_rng(devices=[]):  # it draws weights before it takes these
                # With its classes: only so timm insists that every tensor is there.
                network: Any = timm.create_model(
                    self.model, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, **size
                )
        except (RuntimeError, AssertionError, KeyError, TypeError, ValueError) as error:
            reason = shown(printable(" ".join(str(error).split())))
            raise ValueError(f"{printable(str(path))} does not fit {self.model}: {reason}") from error
        network.reset_classifier(0)
        return network.eval().requires_grad_(False)


def _published(model: str) -> Any:
    """timm's description of pretrained weights. Raises ValueError for a network or weights that it does not have."""
    import timm

    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(f"timm has no network {shown(printable(model))!r}{nearest(architecture, timm.list_models())}")
    try:
        return timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        known = [name for name in timm.list_pretrained() if name.partition(".")[0] == architecture]
        raise ValueError(f"timm has no weights {printable(model)!r}; choose from {', '.join(known)}") from error


def _found(published: Any, *, download: bool) -> Path:
    """The path of a network's weights on this machine, downloaded if missing and allowed.

    Raises:
        FileNotFoundError: if they are not here; says which they are, and how they get here.
        ValueError: if they cannot be fetched.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = (published.hf_hub_id or "").partition("@")
    files = (published.hf_hub_filename,) if published.hf_hub_filename else FILES
    for file in files if repository else ():
        found = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    url = published.url if isinstance(published.url, str) else ""
    in_hub = hub_checkpoints() / url.rpartition("/")[2]
    if url and in_hub.is_file():
        return in_hub
    if not repository:
        raise FileNotFoundError(
            f"timm has no address for them: set features.weights=PATH{f', as of {url}' * bool(url)}"
        )
    place = f"{files[0]} of https://huggingface.co/{repository}"
    if not download:
        raise FileNotFoundError(
            f"{place} is not in {printable(constants.HF_HUB_CACHE)}: set features.download=true, "
            f"or set features.weights=PATH"
        )
    for file in files:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise ValueError(f"{place} cannot be downloaded: {shown(str(error).partition(chr(10))[0])}") from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # of whatever library it makes its requests with
            raise ValueError(f"{place} cannot be downloaded: {shown(str(error).partition(chr(10))[0])}") from error
    raise ValueError(f"https://huggingface.co/{repository} has none of {', '.join(files)}")


def _checked_sha256(path: Path) -> str:
    """SHA-256 of a file of weights. Raises ValueError if it is not that of the downloaded file."""
    sha256 = sha256_of(path)
    blob = path.resolve().name  # the hub's cache calls a file by its SHA-256, and links to it
    if re.fullmatch("[0-9a-f]{64}", blob) and blob != sha256:
        raise ValueError(f"{printable(str(path))} is damaged, its SHA-256 is {sha256}: remove {printable(blob)}")
    return sha256


def _preprocess(config: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """timm's own resizing and cropping of uint8 `[B, 3, H, W]`, and the scaling that the network was trained with."""
    from timm.data.transforms_factory import create_transform

    # As published it takes pictures of PIL; without the scaling it takes tensors, also many at once.
    resize_and_crop: Any = create_transform(**config, is_training=False, normalize=False)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def preprocess(images: Tensor) -> Tensor:
        x = resize_and_crop(images).float() / 255
        return (x - mean.to(x.device)) / std.to(x.device)

    return preprocess
