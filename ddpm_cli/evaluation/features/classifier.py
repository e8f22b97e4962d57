"""Features of a small classifier that is trained here, on the labels of the reference data."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ddpm_cli.checkpoint.write import as_safetensors
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.data import cache_files
from ddpm_cli.data.fingerprint import fingerprint, image_checksums
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.features.classifier_network import RECIPE, WIDTHS, Network, from_state, train
from ddpm_cli.evaluation.features.extractor import extract
from ddpm_cli.io.text import printable

MOST_BYTES = 2**26  # of a trained classifier: that of a thousand classes has one million
CHUNK = 1024  # images whose checksums are taken at a time
PATIENCE_SECONDS = 300  # with another process that is training the same one
LITTLE = 0.1  # of what guessing gets wrong: who gets no more of it right has learnt hardly anything
CURE = "choose features=pixels or features=efficientnet_lite0, or evaluate with labelled data"

log = logging.getLogger("ddpm_cli")


class Classifier:
    """The 128 features before the last layer of a small network trained to classify the data.

    Made for data that networks of photographs know nothing of, such as digits. It is trained once, in seconds, and kept
    in ~/.cache/ddpm-cli/evaluation by the data's content. Figures of different classifiers are not to be compared: the
    same data make the same one on the same kind of processor.

    Args:
        weights: the file of one that was trained before, also elsewhere; None: that of the data.
    """

    name = "classifier"
    dimensions = WIDTHS[-1]

    def __init__(self, *, weights: str | None = None):
        self.weights = weights
        self._sha256 = ""
        self._network: Network | None = None
        self._device = torch.device("cpu")

    def identity(self) -> dict[str, object]:
        return {"name": self.name, "weights_sha256": self._sha256, "recipe": RECIPE}

    def prepare(self, data: Callable[[], ImageSet] | None, device: torch.device) -> None:
        if self.weights is not None:
            with naming("features.weights"):
                network, self._sha256 = _read(Path(self.weights).expanduser())
        elif data is None:
            raise ConfigError(f"features: no labelled data to train a classifier on: {CURE}")
        else:
            network, self._sha256 = _of(data())
        self._network, self._device = network.to(device), device

    def __call__(self, images: Tensor) -> Tensor:
        assert self._network is not None
        return extract(self._network.features, images, self._device)

    def class_probabilities(self, features: Tensor) -> None:
        return None  # an inception score is one of Inception


def _of(images: ImageSet) -> tuple[Network, str]:
    """The classifier of these images and the SHA-256 of its file, from the cache or trained now."""
    if images.labels is None:
        raise ConfigError(f"features: a classifier is trained on labels, and {images.name} has none: {CURE}")
    directory = cache_files.cache_directory(None) / "evaluation"
    key = _key(images)
    kept = _kept(directory, key)
    if kept is not None:
        return kept
    with _alone(directory / f"classifier_{key}.lock"):
        kept = _kept(directory, key)  # another process may just have trained it
        if kept is not None:
            return kept
        begun = time.monotonic()
        with naming("features"):
            network = train(images)
        _say(network, images, time.monotonic() - begun)
        content = b"".join(as_safetensors(network.state_dict(), {}))
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            cache_files.remove_abandoned(directory)
            cache_files.write(directory / f"classifier_{key}_{sha256}.safetensors", content)
        except OSError as error:
            log.warning(
                f"cache    cannot keep the classifier in {printable(str(directory))}: {error.strerror or error}"
            )
    return network, sha256


def _key(images: ImageSet) -> str:
    """16 hexadecimal digits that depend on the pixels in their order, the labels, and the training of the network."""
    checksums = images.checksums
    if checksums is None:
        parts = (np.arange(at, min(at + CHUNK, len(images))) for at in range(0, len(images), CHUNK))
        checksums = np.concatenate([image_checksums(images.pixels[part]) for part in parts])
    of_images = fingerprint(images.shape, checksums, images.labels, None)
    what = (RECIPE, len(images.class_names), of_images["images"], of_images["labels"])
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _kept(directory: Path, key: str) -> tuple[Network, str] | None:
    """The classifier in the cache under a key, if it exists and is undamaged; the file's name has its SHA-256."""
    for path in sorted(directory.glob(f"classifier_{key}_{'[0-9a-f]' * 64}.safetensors")):
        try:
            network, sha256 = _read(path)
        except (OSError, ValueError) as error:
            log.warning(f"cache    {printable(str(error))}: the classifier is trained again")
            continue
        if path.stem.endswith(sha256):
            return network, sha256
        log.warning(f"cache    {printable(str(path))} is damaged: the classifier is trained again")
    return None


def _read(path: Path) -> tuple[Network, str]:
    """A classifier and the SHA-256 of its file. Raises OSError if it cannot be read, ValueError if it is not one."""
    content = cache_files.read(path, MOST_BYTES)
    if content is None:
        raise FileNotFoundError(f"{printable(str(path))} does not exist, or is larger than a classifier")
    try:
        network = from_state(safetensors.torch.load(content))
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{printable(str(path))} is not usable: {printable(str(error))}") from error
    return network, hashlib.sha256(content).hexdigest()


def _say(network: Network, images: ImageSet, seconds: float) -> None:
    right, of = network.held_out.tolist()
    learnt = f": {100 * right / of:.1f} % of {of:,} held-out images are recognised" if of > 0 else ""
    log.info(f"features a classifier of {images.name}, trained in {seconds:.0f} s{learnt}")
    assert images.labels is not None
    guessed = np.bincount(images.labels).max() / len(images)  # by who always says the most frequent class
    if of > 0 and right / of - guessed < LITTLE * (1 - guessed):
        log.warning(
            f"features guessing the most frequent class gets {100 * guessed:.1f} % right: the classifier has learnt "
            f"little; choose features=efficientnet_lite0"
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Inside, this is the only process on the machine; without locks, several may do the same work at once."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE_SECONDS)
    except (Timeout, OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
