"""How well a model predicts images: the variational bound in bits per dimension, and the denoising loss.

Noise and timesteps are functions of (seed, place of the image in its set): figures of two checkpoints differ by their
weights alone, and none depends on the size of batches. Each function is a generator that yields after every call of the
network, for a progress bar or to be stopped, and returns its figures: see `runtime.interruptible`.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.diffusion import bound
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.distributed.process_group import World
from ddpm_cli.evaluation.shares import ALONE, gathered, share_of
from ddpm_cli.evaluation.timestep_bins import mean_by_t
from ddpm_cli.io.images import from_uint8
from ddpm_cli.runtime.device import Compute
from ddpm_cli.runtime.seeds import ImageNoise, derive_seed, generator

DRAWS = 10  # timesteps at which the loss of each image is looked at, one in every tenth of them
_GOLDEN = (math.sqrt(5) - 1) / 2  # a step of which any number of multiples, modulo 1, are evenly spread


@dataclass(frozen=True, kw_only=True)
class Bpd:
    """The variational bound on -log p(x_0) (DDPM eq. 5) in bits per dimension: means over images.

    Args:
        total: the sum of `terms` and `prior`.
        standard_error: of `total`, by the scatter of the images; NaN for one image.
        terms: L_t for t = 0 .. T-1; at 0 the decoder's.
        prior: L_T.
        images: how many.
    """

    total: float
    standard_error: float
    terms: tuple[float, ...]
    prior: float
    images: int

    @property
    def decoder(self) -> float:
        """L_0."""
        return self.terms[0]


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """The training loss on held-out images: over uniform t, without dropout and flips.

    Args:
        loss: mean over images.
        standard_error: of `loss`, by the scatter of the images; NaN for one image.
        by_t: means in ten equal bins of t, by their first timestep ("0100"), as in a run's metrics.
        images: how many.
    """

    loss: float
    standard_error: float
    by_t: dict[str, float]
    images: int


def bpd_calls(ddpm: DDPM, images: int, batch_size: int, world: World = ALONE) -> int:
    """How often `bpd` yields."""
    return len(share_of(world, images, batch_size)) * ddpm.schedule.timesteps


def bpd(
    ddpm: DDPM, images: ImageSet, *, compute: Compute, seed: int, batch_size: int, world: World = ALONE
) -> Generator[None, None, Bpd]:
    """The variational bound of all images of a set, with one draw of x_t for every t and x_0 clipped.

    Args:
        ddpm: on the device of `compute`; asked for the images' labels if it knows labels and they have some.
        batch_size: images at a time, of each rank.
        world: ranks that share the images; every one returns all figures.
    """
    count = len(images)
    sums = torch.zeros(ddpm.schedule.timesteps + 1, dtype=torch.float64)  # L_0 .. L_{T-1}, and the prior's
    totals = []
    for places in share_of(world, count, batch_size):
        x_0, labels = _batch(ddpm, images, places, compute)
        counted = torch.tensor([place < count for place in places])
        total = bound.prior(ddpm.schedule, x_0).cpu().double()
        sums[-1] += total[counted].sum()
        noise = ImageNoise(derive_seed(seed, "bpd"), places, images.shape, compute.device)
        with compute.autocast():
            for t, term in enumerate(ddpm.bound_terms(x_0, labels, noise=noise)):
                of_images = term.cpu().double()
                sums[t] += of_images[counted].sum()
                total = total + of_images
                yield
        totals.append(total)
    means = (world.gather(sums[None]).sum(0) / count).tolist()
    total, error = _mean_and_error(gathered(world, totals, count))
    return Bpd(total=total, standard_error=error, terms=tuple(means[:-1]), prior=means[-1], images=count)


def held_out_calls(images: int, batch_size: int, world: World = ALONE) -> int:
    """How often `held_out_loss` yields."""
    return len(share_of(world, images, batch_size)) * DRAWS


def held_out_loss(
    ddpm: DDPM, images: ImageSet, *, compute: Compute, seed: int, batch_size: int, world: World = ALONE
) -> Generator[None, None, HeldOutLoss]:
    """The loss `ddpm.losses` of all images of a set, each at `DRAWS` timesteps that are evenly spread.

    Image i is at t = T (u_i + k) / DRAWS for k = 0, 1, ..., with u_i in [0, 1) evenly spread over the images: every t
    has the same share. Arguments as of `bpd`.
    """
    count, timesteps = len(images), ddpm.schedule.timesteps
    losses, drawn = [], []
    for places in share_of(world, count, batch_size):
        x_0, labels = _batch(ddpm, images, places, compute)
        noise = ImageNoise(derive_seed(seed, "heldout"), places, images.shape, compute.device)
        of_draws, at = [], []
        for t in _timesteps(timesteps, seed, places):
            of_draws.append(_losses(ddpm, x_0, t.to(compute.device), noise(), labels, compute))
            at.append(t)
            yield
        losses.append(torch.stack(of_draws, dim=1))
        drawn.append(torch.stack(at, dim=1))
    of_images, t = gathered(world, losses, count), gathered(world, drawn, count)
    loss, error = _mean_and_error(of_images.mean(1))
    by_t = mean_by_t(of_images.flatten(), t.flatten(), timesteps)
    return HeldOutLoss(loss=loss, standard_error=error, by_t=by_t, images=count)


def _batch(ddpm: DDPM, images: ImageSet, places: range, compute: Compute) -> tuple[Tensor, Tensor | None]:
    """x_0 of the images at these indices, filled up with the last image, and their labels."""
    indices = np.minimum(np.array(places, np.int64), len(images) - 1)
    x_0 = from_uint8(torch.from_numpy(np.asarray(images.pixels[indices])).to(compute.device))
    if images.labels is None or ddpm.num_classes is None:
        return x_0, None
    return x_0, torch.from_numpy(images.labels[indices]).to(compute.device)


def _timesteps(timesteps: int, seed: int, places: range) -> list[Tensor]:
    """DRAWS times t `[B]`, of the images at these places."""
    first = torch.rand((), generator=generator(seed, "heldout t"), dtype=torch.float64)
    u = (first + torch.tensor(places, dtype=torch.float64) * _GOLDEN) % 1
    return [(timesteps * (u + k) / DRAWS).long().clamp(max=timesteps - 1) for k in range(DRAWS)]


@torch.no_grad()
def _losses(ddpm: DDPM, x_0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None, compute: Compute) -> Tensor:
    """`[B]` in float64, on the CPU."""
    with ddpm.evaluating(), compute.autocast():
        return ddpm.losses(x_0, t, noise, labels).cpu().double()


def _mean_and_error(of_images: Tensor) -> tuple[float, float]:
    """The mean of `[N]` numbers, and its standard error."""
    error = of_images.std().item() / math.sqrt(len(of_images)) if len(of_images) > 1 else math.nan
    return of_images.mean().item(), error
