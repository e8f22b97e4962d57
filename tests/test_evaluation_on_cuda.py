"""Evaluation on a CUDA device that is not there (`fake_cuda`): no two devices meet, and figures are those of a CPU."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet
from fake_cuda import CUDA, OnCuda, fake_cuda
from safetensors.torch import save_file
from test_cuda_without_a_gpu import LABELS, Overrides, configured

from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.data.datasets import digits
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.distributed.process_group import World
from ddpm_cli.evaluation.feature_store import FeatureStore, Layout, begun
from ddpm_cli.evaluation.features import classifier, efficientnet_lite0, extractor
from ddpm_cli.evaluation.features.classifier import Classifier
from ddpm_cli.evaluation.features.classifier_network import Network
from ddpm_cli.evaluation.features.efficientnet_lite0 import EfficientNetLite0
from ddpm_cli.evaluation.features.extractor import Extractor
from ddpm_cli.evaluation.features.pixels import Pixels
from ddpm_cli.evaluation.features.timm_network import Timm
from ddpm_cli.evaluation.likelihood import bpd, held_out_loss
from ddpm_cli.runtime.interruptible import finished
from ddpm_cli.training import evaluator
from ddpm_cli.training.build import Training, build_training
from ddpm_cli.training.evaluator import Evaluator

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """What takes no time."""
    monkeypatch.setattr(extractor, "AT_ONCE", 2)
    monkeypatch.setattr(efficientnet_lite0, "SIDE", 32)
    monkeypatch.setattr(evaluator, "MOST_REFERENCE", 20)
    monkeypatch.setattr(classifier, "_of", random_classifier)


def random_classifier(images: ImageSet) -> tuple[Network, str]:
    torch.manual_seed(0)
    return Network(images.shape, 10).eval().requires_grad_(False), ""


# A model --------------------------------------------------------------------------------------------------------------


def training(*overrides: str) -> Training:
    return build_training(
        TrainOptions(**configured("train", "data.holdout=5", "trainer.device=cpu", *overrides)), World()
    )


@pytest.mark.parametrize(
    "overrides", [(), ("variance=learned_range", "loss=hybrid", LABELS), ("prediction=v",)], ids=" ".join
)
def test_the_bound_and_the_held_out_loss_are_those_of_a_cpu(overrides: Overrides):
    def figures() -> tuple:
        built = training(*overrides)
        assert built.held_out is not None
        given = {"compute": built.trainer.compute, "seed": 0, "batch_size": 3}
        bound = finished(bpd(built.trainer.ddpm, built.held_out, **given))
        return bound.total, bound.prior, finished(held_out_loss(built.trainer.ddpm, built.held_out, **given)).loss

    there = figures()
    with fake_cuda():
        assert figures() == pytest.approx(there, rel=1e-4)


@pytest.mark.parametrize("overrides", [(), (LABELS,)], ids=" ".join)
def test_the_figures_while_training_are_those_of_a_cpu(overrides: Overrides):
    def figures() -> dict[str, float]:
        of = Evaluator(training("trainer.eval_every=1", "trainer.eval_images=4", *overrides))
        return finished(of.evaluate()).figures

    there = figures()
    with fake_cuda():
        assert figures() == pytest.approx(there, rel=1e-3)
    assert len(there) == 3


# Features -------------------------------------------------------------------------------------------------------------


def prepared(name: str, device: torch.device, place: Path, monkeypatch) -> Extractor:
    """An extractor with weights drawn at random."""
    torch.manual_seed(0)
    if name == "timm":
        save_file(timm.create_model("test_vit").state_dict(), place / "vit.safetensors")
    if name == "efficientnet":
        state = EfficientNet.from_name("efficientnet-lite0").state_dict()
        monkeypatch.setattr(efficientnet_lite0, "check", lambda path, published: None)
        monkeypatch.setattr(efficientnet_lite0, "read_state", lambda path: state)
    made = {
        "pixels": Pixels,
        "classifier": Classifier,
        "efficientnet": EfficientNetLite0,
        "timm": lambda: Timm(model="test_vit", weights=str(place / "vit.safetensors")),
    }[name]()
    made.prepare(lambda: digits(image_size=8, num_classes=10), device)
    return made


@pytest.mark.parametrize("name", ["pixels", "classifier", "efficientnet", "timm"])
def test_features_are_those_of_a_cpu_and_go_into_the_store(name: str, tmp_path: Path, monkeypatch):
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    there = prepared(name, CPU, tmp_path, monkeypatch)(images)
    layout = Layout(batch_size=3, shape=(3, 8, 8, 1), dimensions=there.shape[1], keeps_pixels=True)
    with (
        fake_cuda(),
        begun(tmp_path / "store", {}, layout, copies=0),
        FeatureStore(tmp_path / "store", layout) as store,
    ):
        here = prepared(name, CUDA, tmp_path, monkeypatch)
        features = here(images)
        assert isinstance(features, OnCuda)
        store.add(range(3), images, features)
        store.flush()
        assert torch.equal(store.images(range(3)), images)
        np.testing.assert_allclose(store.features(), there.numpy(), rtol=1e-3, atol=1e-4)


# The command ----------------------------------------------------------------------------------------------------------


def test_the_record_is_that_of_a_cpu_but_for_the_device(labelled: Path, tmp_path: Path, eval_here, monkeypatch):
    monkeypatch.setattr(extractor, "AT_ONCE", 128)  # of the reference's 1797 images
    metrics = "metrics=[fd,kd,precision_recall,memorization,bpd]"
    arguments = [f"ckpt={labelled}", metrics, "n=6", "batch_size=128", "sampler.steps=2", "features=pixels"]
    options = [*arguments, "likelihood_images=4", "guidance.scale=2", "precision=fp32"]
    assert eval_here(tmp_path, *options, "device=cpu", "out=cpu").returncode == 0
    with fake_cuda():
        done = eval_here(tmp_path, *options, "device=cuda", "out=cuda")
    assert done.returncode == 0, done.stderr
    there, here = (json.loads(next((tmp_path / out).glob("*.json")).read_text()) for out in ("cpu", "cuda"))
    assert here["samples"]["device"] == "cuda:0"
    for one, other in zip(there["metrics"], here["metrics"], strict=True):
        assert other["value"] == pytest.approx(one["value"], rel=0.02), one["name"]
        assert other["fingerprint"] == one["fingerprint"]


# Faults ---------------------------------------------------------------------------------------------------------------


def test_a_tensor_left_on_the_cpu_is_found(tmp_path: Path, monkeypatch):
    with fake_cuda():
        classified = prepared("classifier", CUDA, tmp_path, monkeypatch)
        assert isinstance(classified, Classifier)
        assert classified._network is not None
        classified._network.cpu()
        with pytest.raises(RuntimeError, match="same device"):
            classified(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
        built = training()
        assert built.held_out is not None
        built.trainer.ddpm.model.time_frequencies = torch.ones(4)
        given = {"compute": built.trainer.compute, "seed": 0, "batch_size": 3}
        with pytest.raises(RuntimeError, match="same device"):
            finished(held_out_loss(built.trainer.ddpm, built.held_out, **given))
