"""Features that are the pixels of the image, scaled down: no network and no download, but they see little.

They tell whether brightness, colours and the coarse arrangement are those of the data. They are blind to whatever
is lost at 16 x 16, such as blur, noise and artefacts of large pictures, and see a shift by a pixel as another picture.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.features.extractor import as_rgb, extract, resized

SIDE = 16


class Pixels:
    """RGB from 0 to 1 at 16 x 16 (antialiased bicubic), flattened to `[768]`; grey is repeated."""

    name = "pixels"
    dimensions = 3 * SIDE * SIDE

    def __init__(self) -> None:
        self._device = torch.device("cpu")

    def identity(self) -> dict[str, object]:
        return {"name": self.name, "resize": f"bicubic, antialias, {SIDE} x {SIDE}", "range": [0, 1]}

    def prepare(self, data: Callable[[], ImageSet] | None, device: torch.device) -> None:
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        return extract(_flattened, images, self._device)

    def class_probabilities(self, features: Tensor) -> None:
        return None


def _flattened(images: Tensor) -> Tensor:
    return (resized(as_rgb(images), (SIDE, SIDE)) / 255).flatten(1)
