"""The network of the classifier features, small and for images of any size, and its training, which takes seconds.

It is trained on the CPU by one thread, whatever machine that is in, and draws nothing from torch's own generator: the
same images make the same weights. (Another kind of processor rounds otherwise and makes slightly different ones.)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.data.datasets import with_channels
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.features.extractor import opaque, resized
from ddpm_cli.runtime.seeds import generator

RECIPE = 1  # part of the cache's key: raise it when a change here gives other weights for the same images
LARGEST = 64  # pixels of a side; larger images are made smaller first
GRID = 16  # positions on a side at most, behind the first convolution: so all sizes of images cost about the same
WIDTHS = (32, 32, 64, 128)
BATCH = 32
EPOCHS = 8
FEWEST, MOST = 6_000, 50_000  # images seen in training, of however many: from a few seconds to half a minute
LEARNING_RATE = 3e-3
WARMUP_STEPS = 20
HELD_OUT, MOST_HELD_OUT = 0.1, 2_000  # share of the images, and how many at most, that show what has been learnt
_LARGEST_SIDE, _MOST_CLASSES = 2**16, 2**20  # of a file that comes from elsewhere


class Network(nn.Module):
    """Four convolutions, the average of each of their 128 channels, and one linear layer.

    Args:
        image_shape: (C, H, W) of the images that it is trained on; others are brought to that.
        classes: how many there are.
    """

    image_shape: Tensor
    held_out: Tensor

    def __init__(self, image_shape: tuple[int, int, int], classes: int):
        super().__init__()
        channels, height, width = image_shape
        self.channels = channels
        self.size = (min(height, LARGEST), min(width, LARGEST))
        strides = [(math.ceil(self.size[0] / GRID), math.ceil(self.size[1] / GRID)), (1, 1), (2, 2), (1, 1)]
        layers = zip(pairwise((channels, *WIDTHS)), strides, strict=True)
        self.convolutions = nn.Sequential(*(_convolution(*widths, stride) for widths, stride in layers))
        self.head = nn.Linear(WIDTHS[-1], classes)
        # What travels with the weights: of what they are, and how many of how many images held out they recognise.
        self.register_buffer("image_shape", torch.tensor(image_shape))
        self.register_buffer("held_out", torch.zeros(2, dtype=torch.int64))

    def features(self, images: Tensor) -> Tensor:
        """float32 `[B, 128]` of uint8 `[B, C, H, W]`."""
        if images.shape[1] != self.channels:
            images = torch.from_numpy(with_channels(images.cpu().numpy(), self.channels)).to(images.device)
        x = resized(images, self.size) / 127.5 - 1
        return self.convolutions(x).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, classes]` of uint8 `[B, C, H, W]`."""
        return self.head(self.features(images))


def _convolution(inputs: int, outputs: int, stride: tuple[int, int]) -> nn.Module:
    kernel = (2 * stride[0] + 1, 2 * stride[1] + 1) if max(stride) > 2 else (3, 3)
    padding = (kernel[0] // 2, kernel[1] // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def from_state(state: dict[str, Tensor]) -> Network:
    """The network with these tensors as its state, which may come from anywhere.

    Raises:
        ValueError: if they are not.
    """
    shape, weight = state.get("image_shape"), state.get("head.weight")
    if shape is None or weight is None or shape.shape != (3,) or shape.dtype != torch.int64 or weight.ndim != 2:
        raise ValueError("is not a classifier of ddpm-cli")
    channels, height, width = shape.tolist()
    if channels not in (1, 3) or not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE):
        raise ValueError(f"is a classifier of images of an impossible shape, {shape.tolist()}")
    with torch.device("meta"):
        network = Network((channels, height, width), min(len(weight), _MOST_CLASSES))
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} != expected:
        raise ValueError("is a different classifier than this version of ddpm-cli trains")
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def train(images: ImageSet) -> Network:
    """Train a network on the labels of `images`; it records how many held-out images it recognises.

    Raises:
        ValueError: if there are no labels, or of one class alone.
    """
    if images.labels is None:
        raise ValueError(f"the images of {images.name} have no labels to train a classifier on")
    if len(np.unique(images.labels)) < 2:
        raise ValueError(f"all images of {images.name} are of one class: there is nothing to train a classifier on")
    order = torch.randperm(len(images), generator=generator("classifier", "held out")).numpy()
    channels, height, width = images.shape
    held_out, seen = np.split(order, [min(int(HELD_OUT * len(images)), MOST_HELD_OUT)])
    with _one_thread():
        network = _initialized((min(channels, 3), height, width), len(images.class_names))
        _fit(network, images, seen)
        network.eval().requires_grad_(False)
        right = sum(
            int(_right(network, images, part)) for part in np.split(held_out, range(BATCH, len(held_out), BATCH))
        )
    network.held_out.copy_(torch.tensor([right, len(held_out)]))
    return network


def _fit(network: Network, images: ImageSet, seen: np.ndarray) -> None:
    steps = min(max(EPOCHS * len(seen), FEWEST), MOST) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, foreach=False)
    for step in range(steps):
        drawn = torch.randint(len(seen), (BATCH,), generator=generator("classifier", "batch", step)).numpy()
        pixels, labels = _batch(images, seen[drawn])
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
        optimizer.zero_grad()
        F.cross_entropy(network(pixels), labels).backward()
        optimizer.step()


def _right(network: Network, images: ImageSet, indices: np.ndarray) -> Tensor:
    pixels, labels = _batch(images, indices)
    return (network(pixels).argmax(1) == labels).sum()


def _batch(images: ImageSet, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    assert images.labels is not None
    pixels = opaque(torch.from_numpy(np.ascontiguousarray(images.pixels[indices])))
    return pixels, torch.from_numpy(images.labels[indices])


def _initialized(image_shape: tuple[int, int, int], classes: int) -> Network:
    """He et al. 2015 for the convolutions, zeros for the linear layer."""
    with torch.device("meta"):  # where torch's own initialization draws nothing
        network = Network(image_shape, classes)
    network.to_empty(device="cpu")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator("classifier", name))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    network.image_shape.copy_(torch.tensor(image_shape))
    network.held_out.zero_()
    return network


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, gradients are on, in float32, with one CPU thread: several threads would add in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)
