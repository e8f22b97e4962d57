"""The interface of features, and how a network computes them for a batch."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.reading import WHITE, over

AT_ONCE = 16  # images that a network sees: always as many, so that what it makes of one does not depend on its batch


class Extractor(Protocol):
    """Turns images into vectors that can be compared.

    `name` is short: figures are called after it, as fd_classifier. `dimensions` is D.
    """

    @property
    def name(self) -> str: ...
    @property
    def dimensions(self) -> int: ...

    def identity(self) -> dict[str, object]:
        """Plain JSON of everything that the features depend on; final once `prepare` has been called."""
        ...

    def prepare(self, data: Callable[[], ImageSet] | None, device: torch.device) -> None:
        """Read or train what is needed, once, before anything else is called.

        Args:
            data: gives the images that the run was trained on, with their labels where these are to be had.

        Raises:
            ConfigError: if weights are missing or damaged, or the images do not do for training.
        """
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Features float32 `[B, D]` on the device, of uint8 `[B, C, H, W]`, grey, RGB or RGBA, of any size.

        Those of RGBA are of the pictures laid over white. Each image's features are a function of that image alone.

        Raises:
            ConfigError: if a feature is not a finite number.
        """
        ...

    def class_probabilities(self, features: Tensor, /) -> Tensor | None:
        """Class probabilities of features `[B, D]`, float64 `[B, classes]` on the CPU; None: there are none."""
        ...


@torch.no_grad()
def extract(network: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> Tensor:
    """float32 `[B, D]`: the features of uint8 `[B, C, H, W]` by `network`, called with AT_ONCE images at a time.

    It computes in float32, not in the fewer bits that a GPU may take for it, whatever the caller's precision is.

    Raises:
        ConfigError: if a feature is not a finite number.
    """
    check_images(images)
    images = opaque(images)
    features = []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), exact:
        for part in images.split(AT_ONCE):
            filled = torch.cat([part, part.new_zeros(AT_ONCE - len(part), *part.shape[1:])])
            features.append(network(filled.to(device))[: len(part)].float())
    return check_finite(torch.cat(features))


def check_images(images: Tensor) -> None:
    assert images.dtype == torch.uint8, images.dtype
    assert images.ndim == 4, images.shape
    assert images.shape[1] in (1, 3, 4), images.shape
    assert images.numel() > 0, images.shape


def opaque(images: Tensor) -> Tensor:
    """uint8 `[B, C, H, W]`: RGBA laid over white, as RGB; others unchanged."""
    if images.shape[1] != 4:
        return images
    return torch.from_numpy(over(images.cpu().numpy(), WHITE)).to(images.device)


def check_finite(features: Tensor) -> Tensor:
    """The same features. Raises ConfigError if one of them is not finite."""
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad > 0:
        raise ConfigError(f"features: those of {bad} of {len(features)} images are not finite: the weights are damaged")
    return features


def as_rgb(images: Tensor) -> Tensor:
    """`[B, 3, H, W]`: grey is repeated."""
    return images.expand(-1, 3, -1, -1)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 `[B, C, H, W]` as float32 from 0 to 255 at `size`: antialiased bicubic, the whole image, not rounded."""
    images = images.float()
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
