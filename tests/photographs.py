"""Real photographs, those that come with scikit-learn, in patches, and what harms them."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images

PATCH = 64


def patches(stride: int) -> torch.Tensor:
    """uint8 `[N, 3, 64, 64]`, from two photographs, every `stride` pixels."""
    found = []
    for picture in load_sample_images().images:
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)
        windows = pixels.unfold(1, PATCH, stride).unfold(2, PATCH, stride)  # [3, rows, columns, 64, 64]
        found.append(windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, PATCH, PATCH))
    return torch.cat(found).contiguous()


def noisy(images: torch.Tensor, deviation: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).round().clamp(0, 255).byte()


def blurred(images: torch.Tensor, deviation: float) -> torch.Tensor:
    at = torch.arange(-12, 13).float()
    kernel = torch.exp(-(at**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images.float(), (12, 12, 12, 12), mode="reflect")
    blurred = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return blurred.round().clamp(0, 255).byte()


def compressed(images: torch.Tensor, quality: float) -> torch.Tensor:
    """As JPEG of this quality, 1 to 95."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=int(quality))
        found.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
