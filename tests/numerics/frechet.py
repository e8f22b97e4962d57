"""Frechet distance between two sets of digits, of their pixels and of a small classifier's features."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.data.datasets import digits
from ddpm_cli.io.images import from_uint8

SIZE = 8  # pixels: as the digits are
FEATURES = 32


def frechet(one: Tensor, other: Tensor) -> float:
    """Of the Gaussians fitted to `[N, D]` and `[M, D]` (Dowson & Landau 1982; Heusel et al. 2017, eq. 6)."""
    (mean, covariance), (other_mean, other_covariance) = (_moments(x) for x in (one, other))
    # The trace of the root of a product: its eigenvalues are those of a product of two such matrices, real and >= 0.
    crossed = torch.linalg.eigvals(covariance @ other_covariance).real.clamp(min=0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * crossed
    return distance.item()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    return x.mean(0), torch.cov(x.T)


class Classifier(nn.Module):
    """Digits from 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@functools.cache
def reference() -> tuple[Tensor, Classifier, float]:
    """The digits `[1797, 1, 8, 8]` in [-1, 1], a classifier of them, and its accuracy on a fifth it has not seen."""
    images = digits(image_size=SIZE, num_classes=10)
    assert images.labels is not None
    x, labels = from_uint8(torch.from_numpy(images.pixels)), torch.from_numpy(images.labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, used = order[: len(x) // 5], order[len(x) // 5 :]
    torch.manual_seed(0)
    classifier = Classifier()
    optimizer = torch.optim.Adam(classifier.parameters(), 2e-3)
    for _ in range(30):
        for part in used[torch.randperm(len(used))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(classifier(x[part]), labels[part]).backward()
            optimizer.step()
    classifier.eval().requires_grad_(False)
    accuracy = (classifier(x[held]).argmax(1) == labels[held]).float().mean().item()
    return x, classifier, accuracy


def distances(samples: Tensor) -> tuple[float, float]:
    """Frechet distance of samples `[N, 1, 8, 8]` in [-1, 1] to all digits: of pixels, of features."""
    x, classifier, _ = reference()
    return frechet(samples.flatten(1), x.flatten(1)), frechet(classifier.body(samples), classifier.body(x))
