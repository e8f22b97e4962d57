"""Figures of how well images are foretold: against closed forms of Gaussian data, and whatever the batches are."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from entropy import EXACT, STD, rounded
from gaussian import GaussianDenoiser

from ddpm_cli.data.datasets import digits
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.prediction import Velocity
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.distributed.process_group import World
from ddpm_cli.evaluation.likelihood import bpd, bpd_calls, held_out_calls, held_out_loss
from ddpm_cli.evaluation.likelihood_plot import bound_plot
from ddpm_cli.io.images import to_uint8
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.device import choose_compute
from ddpm_cli.runtime.interruptible import finished

CPU = choose_compute("cpu", "fp32")


def gaussian_images(count: int) -> ImageSet:
    """Independent pixels N(0, STD^2), in the 256 levels that images have."""
    x_0 = rounded(STD * torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    return ImageSet(to_uint8(x_0).numpy(), "gaussian", flip="none")


def test_the_bound_of_gaussian_data_is_their_entropy():
    """log2(s 127.5 sqrt(2 pi e)) bits per dimension, with the exact denoiser and the exact variance."""
    schedule = linear(200, beta_start=1e-3, beta_end=0.09)
    ddpm = DDPM(GaussianDenoiser(schedule, 0.0, STD), schedule, variance=EXACT)
    found = finished(bpd(ddpm, gaussian_images(48), compute=CPU, seed=0, batch_size=20))
    entropy = math.log2(STD * 127.5 * math.sqrt(2 * math.pi * math.e))
    assert 0.002 < found.standard_error < 0.03
    assert found.total == pytest.approx(entropy, abs=4 * found.standard_error)
    assert found.images == 48
    assert len(found.terms) == 200
    assert found.total == pytest.approx(sum(found.terms) + found.prior, rel=1e-6)
    assert found.decoder == found.terms[0]


def test_the_loss_of_gaussian_data_is_what_is_left_open_of_the_noise():
    """With the exact denoiser the mean squared error of eps at t is alpha^2 s^2 / (alpha^2 s^2 + sigma^2)."""
    schedule = cosine(50)
    ddpm = DDPM(GaussianDenoiser(schedule, 0.0, STD), schedule)
    found = finished(held_out_loss(ddpm, gaussian_images(200), compute=CPU, seed=0, batch_size=64))
    signal, noise = STD**2 * schedule.alphas_cumprod, 1 - schedule.alphas_cumprod
    left_open = signal / (signal + noise)
    assert found.loss == pytest.approx(left_open.mean().item(), abs=4 * found.standard_error)
    assert found.standard_error < 0.02 * found.loss
    assert list(found.by_t) == [f"{5 * i:04d}" for i in range(10)]
    for i, value in enumerate(found.by_t.values()):
        assert value == pytest.approx(left_open[5 * i : 5 * i + 5].mean().item(), rel=0.05), i


@pytest.fixture(scope="module")
def network() -> DDPM:
    torch.manual_seed(0)
    unet = UNet(8, 1, 8, (1,), 1, (), 0.5, norm_groups=4, num_classes=10)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return DDPM(unet, cosine(12), prediction=Velocity())


@pytest.fixture(scope="module")
def images() -> ImageSet:
    whole = digits(image_size=8, num_classes=10)
    assert whole.labels is not None
    return ImageSet(np.asarray(whole.pixels[:7]), "few", "none", labels=whole.labels[:7], class_names=whole.class_names)


@pytest.mark.parametrize(("measure", "calls"), [(bpd, bpd_calls), (held_out_loss, held_out_calls)])
def test_neither_batches_nor_processes_change_a_figure(measure, calls, network, images, monkeypatch):
    whole = finished(measure(network, images, compute=CPU, seed=3, batch_size=7))
    yields = []
    parts = finished(measure(network, images, compute=CPU, seed=3, batch_size=3), lambda: yields.append(1))
    expected = calls(network, 7, 3) if measure is bpd else calls(7, 3)
    assert len(yields) == expected
    assert flat(parts) == pytest.approx(flat(whole), rel=1e-5)
    shared = as_two_ranks(measure, network, images, monkeypatch)
    assert flat(shared) == pytest.approx(flat(whole), rel=1e-5)
    other_noise = finished(measure(network, images, compute=CPU, seed=4, batch_size=7))
    assert flat(other_noise) != pytest.approx(flat(whole), rel=1e-5)
    unlabelled = replace(images, labels=None, class_names=())
    assert flat(finished(measure(network, unlabelled, compute=CPU, seed=3, batch_size=7))) != pytest.approx(flat(whole))
    assert network.model.training, "as it was"


def flat(figures) -> list[float]:
    values = vars(figures).values()
    return [
        number
        for value in values
        for number in (value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value])
    ]


def as_two_ranks(measure, network, images, monkeypatch):
    """What rank 1 of two returns. Both go as far as their gathers in turn, and are handed what both bring."""
    brought: dict[int, list] = {0: [], 1: []}
    together: list = []

    def gather(self, part):
        brought[self.rank].append(part)
        return torch.cat(together.pop(0)) if together else torch.cat([part, part])

    monkeypatch.setattr(World, "gather", gather)
    for rank in (0, 1):
        finished(measure(network, images, compute=CPU, seed=3, batch_size=2, world=World(rank, 2)))
    assert [part.shape for part in brought[0]] == [part.shape for part in brought[1]]
    together += [list(parts) for parts in zip(brought[0], brought[1], strict=True)]
    return finished(measure(network, images, compute=CPU, seed=3, batch_size=2, world=World(1, 2)))


def test_the_plot_shows_the_terms(network, images):
    figures = finished(bpd(network, images, compute=CPU, seed=0, batch_size=7))
    picture = bound_plot(figures)
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    flat_terms = replace(figures, terms=(figures.terms[0],) * 12)
    assert (bound_plot(flat_terms) != picture).any()
    bound_plot(replace(figures, terms=(0.0, 1e-30, -1e-9, 2.0), standard_error=math.nan))
    bound_plot(replace(figures, terms=(0.0,), prior=0.0))
