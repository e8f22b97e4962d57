"""The features of the original FID (Heusel et al. 2017): only figures of these are called FID."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.config.errors import naming
from ddpm_cli.config.extras import require
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.features.extractor import as_rgb, extract
from ddpm_cli.evaluation.features.weights import Published, provided, read_state

WEIGHTS = Published(
    name="weights-inception-2015-12-05-6726825d.pth",
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
LAYER = "2048"  # what torch-fidelity calls the pooled features


class Inception:
    """The 2048 pooled features of Inception v3 of 2015-12-05, with TensorFlow 1's resize to 299 x 299.

    Network and resize are torch-fidelity's, which compute what the original graph does. Grey is repeated.

    Args:
        weights: the file; None: it is in torch's hub cache.
        download: whether it may be fetched if it is not there.

    Raises:
        ValueError: if torch-fidelity is not installed.
    """

    name = "inception"
    dimensions = 2048

    def __init__(self, *, weights: str | None = None, download: bool = False):
        require("eval", "torch_fidelity")
        self.weights = weights
        self.download = download
        self._network: Any = None
        self._device = torch.device("cpu")

    def identity(self) -> dict[str, object]:
        return {"name": self.name, "weights_sha256": WEIGHTS.sha256, "resize": "bilinear of TensorFlow 1, 299 x 299"}

    def prepare(self, data: Callable[[], ImageSet] | None, device: torch.device) -> None:
        with naming("features.weights"):
            state = read_state(provided(WEIGHTS, self.weights, download=self.download))
            self._network = _network(state).to(device)
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        return extract(self._features, images, self._device)

    def class_probabilities(self, features: Tensor) -> Tensor:
        """Softmax of the logits without their bias, as is usual for the inception score."""
        logits = features.to(self._device) @ self._network.fc.weight.T
        return logits.cpu().double().softmax(1)

    def _features(self, images: Tensor) -> Tensor:
        (features,) = self._network(as_rgb(images))
        return features


def _network(state: dict[str, Tensor]) -> Any:
    """torch-fidelity's network with these weights, which it would unpickle by itself from a file, whatever that is.

    Raises:
        ValueError: if they are another network's.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    ours = io.BytesIO()
    torch.save(dict(state), ours)
    ours.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):  # it draws weights before it takes these
            # A file in memory is one to torch.load, to which it is handed.
            return FeatureExtractorInceptionV3(
                "inception-v3-compat",
                [LAYER],
                feature_extractor_weights_path=ours,  # pyright: ignore[reportArgumentType]
            )
    except RuntimeError as error:
        raise ValueError(f"{WEIGHTS.name} does not fit torch-fidelity's network: {error}") from error
