"""scripts/bench --quality: peers are drawn as they draw themselves, times are equal, a tiny run of everybody."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.cases import CASES, Place
from quality import commands, equal_time, figures, peers, sets

from ddpm_cli.data.datasets import mnist


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    place = Place(CASES["tiny"], "cpu", "fp32", tmp_path_factory.mktemp("quality"))
    place.write_pictures()
    return place


def test_marks_are_parts_of_the_time():
    assert equal_time.PARTS == (4, 2, 1)
    assert equal_time._marks(5.8, 120) == (174, 348, 696)
    assert equal_time._marks(0.001, 120) == (1, 2, 4)


def test_seeds_are_told_by_mean_and_interval():
    assert figures.over_seeds([1.0, 2.0, 6.0]) == "3.00 (1.00 to 6.00)"


def test_diffusers_network_is_asked_as_its_scheduler_asks_it(place: Place):
    peer = peers.OfDiffusers(place)
    peer.train(2)
    ddpm, scheduler = peer.ddpm(), peer.training.noise_scheduler
    averaged = ddpm.model.network.state_dict()
    names = [name for name, _ in peer.training.model.named_parameters()]
    shadow = dict(zip(names, peer.training.ema.shadow_params, strict=True))
    assert all(torch.equal(averaged[name], value) for name, value in shadow.items())
    x = torch.randn(3, 1, 16, 16)
    for t in (0, 100, 700, 999):
        ours = ddpm.denoiser()(x, t)
        with torch.no_grad():
            eps = ddpm.model.network(x, torch.full((3,), t)).sample
        theirs = scheduler.step(eps, t, x).pred_original_sample
        torch.testing.assert_close(ours.x_0, theirs, rtol=1e-4, atol=1e-4)


def test_denoising_diffusions_network_is_asked_as_it_asks_itself(place: Place):
    peer = peers.OfDenoisingDiffusion(place)
    peer.train(2)
    ddpm = peer.ddpm()
    diffusion: Any = peer.training.trainer.ema.ema_model
    x = torch.randn(3, 1, 16, 16)
    for t in (0, 5, 12, 19):
        ours = ddpm.denoiser()(x, t)
        with torch.no_grad():
            theirs = diffusion.model_predictions(x, torch.full((3,), t), clip_x_start=True).pred_x_start
        torch.testing.assert_close(ours.x_0, theirs, rtol=1e-4, atol=1e-4)


def test_the_packages_digits_are_written_as_data_mnist_reads_them(tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    for part in ("t10k", "train"):
        sets.write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        sets.write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    found = mnist(root=str(tmp_path), num_classes=10)
    np.testing.assert_array_equal(found.pixels[:, 0], pixels)
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.slow
def test_a_tiny_run_of_everybody(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(equal_time, "SAMPLES", 64)
    monkeypatch.setitem(equal_time.SAID, "tiny", "tiny")
    everybody = ("ours", "diffusers", "denoising-diffusion-pytorch")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "rates.json").write_text(json.dumps(dict.fromkeys(everybody, 16 * 8.0)))
    told = {"seconds": 1.0, "seeds": 1, "picture": tmp_path / "tiny.png"}
    lines = equal_time.lines("tiny", tmp_path, **told)
    assert [line.split(" | ")[0] for line in lines[-5:-2]] == [f"| {who}" for who in everybody]
    assert (tmp_path / "tiny.png").stat().st_size > 1000
    # A second time nothing is trained or drawn.
    monkeypatch.setattr(commands, "start", lambda *told: pytest.fail(f"started {told}"))
    monkeypatch.setattr(equal_time, "start", lambda *told: pytest.fail(f"started {told}"))
    assert equal_time.lines("tiny", tmp_path, **told) == lines
