"""Features of images: those of published networks as their own libraries compute them, and what is refused."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import yaml
from photographs import blurred, compressed, noisy, patches
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch_fidelity import feature_extractor_inceptionv3 as of_torch_fidelity

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.schema import check
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.evaluation.features import extractor, inception, timm_network, weights
from ddpm_cli.evaluation.features.choice import default_extractor
from ddpm_cli.evaluation.features.efficientnet_lite0 import EfficientNetLite0
from ddpm_cli.evaluation.features.extractor import Extractor, extract
from ddpm_cli.evaluation.features.inception import Inception
from ddpm_cli.evaluation.features.pixels import Pixels
from ddpm_cli.evaluation.features.timm_network import Timm
from ddpm_cli.evaluation.frechet import frechet_distance
from ddpm_cli.evaluation.statistics import FeatureSums

CPU = torch.device("cpu")


def images(number: int, *, channels: int = 3, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    """uint8 noise, smooth enough for a resize to be no lottery."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (number, channels, 6, 6), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").round().byte()


def prepared(one: Extractor) -> Extractor:
    one.prepare(None, CPU)
    return one


@pytest.fixture
def few_at_once(monkeypatch) -> None:
    """So that a test of a large network computes less that nobody looks at."""
    monkeypatch.setattr(extractor, "AT_ONCE", 4)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Path:
    """torch's hub cache, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


# Inception ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory) -> Path:
    """A file of weights of the same architecture, drawn at random."""

    generator = torch.Generator().manual_seed(0)
    theirs = of_torch_fidelity.FeatureExtractorInceptionV3
    with (
        mock.patch.object(of_torch_fidelity, "load_state_dict_from_url"),
        mock.patch.object(theirs, "load_state_dict"),
    ):
        network = theirs("blank", ["2048"])
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def published(path: Path, **changes: object) -> weights.Published:
    content = path.read_bytes()
    found = weights.Published(path.name, len(content), hashlib.sha256(content).hexdigest(), path.as_uri())
    return replace(found, **changes)


def test_inception_is_the_one_of_torch_fidelity(random_inception: Path, monkeypatch, few_at_once):
    monkeypatch.setattr(inception, "WEIGHTS", published(random_inception))
    ours = Inception(weights=str(random_inception))
    state = torch.get_rng_state()
    ours.prepare(None, CPU)
    assert torch.equal(torch.get_rng_state(), state), "it draws from nobody's generator"
    theirs = of_torch_fidelity.FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(random_inception)
    )
    grey = images(5, channels=1, size=(28, 36))
    expected, logits = theirs(grey.repeat(1, 3, 1, 1))
    found = ours(grey)
    assert found.shape == (5, ours.dimensions)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert expected.std(0).max() > 1e-3, "features that differ"
    probabilities = ours.class_probabilities(found)
    torch.testing.assert_close(probabilities, logits.double().softmax(1), rtol=1e-4, atol=1e-9)
    assert ours.identity()["weights_sha256"] == hashlib.sha256(random_inception.read_bytes()).hexdigest()


def test_the_published_inception_is_what_torch_fidelity_fetches():
    assert inception.WEIGHTS.url == of_torch_fidelity.URL_INCEPTION_V3
    assert inception.WEIGHTS.name == inception.WEIGHTS.url.rpartition("/")[2]
    assert inception.WEIGHTS.sha256[:8] in inception.WEIGHTS.name


def test_without_weights_one_message_says_which_and_where(hub: Path):
    with pytest.raises(ConfigError) as raised:
        Inception().prepare(None, CPU)
    said = str(raised.value)
    for part in ("features.weights", inception.WEIGHTS.name, "95,628,359 bytes", str(hub), "features.download=true"):
        assert part in said


def test_weights_of_another_network_do_not_pass_for_inception(tmp_path: Path, monkeypatch):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    monkeypatch.setattr(inception, "WEIGHTS", published(path))
    with pytest.raises(ConfigError, match=r"features.weights: other.pth does not fit torch-fidelity's network"):
        Inception(weights=str(path)).prepare(None, CPU)


# Files of weights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.pth"
    torch.save({"a": torch.arange(3.0)}, path)
    return path


def test_weights_are_found_in_the_hub_cache_or_where_they_are_said_to_be(file: Path, hub: Path):
    assert weights.provided(published(file), str(file), download=False) == file
    hub.mkdir(parents=True)
    file.rename(hub / file.name)
    of = published(hub / file.name)
    assert torch.equal(weights.read_state(weights.provided(of, None, download=False))["a"], torch.arange(3.0))


def test_weights_are_fetched_only_when_that_is_allowed(file: Path, hub: Path):
    of = published(file)
    with pytest.raises(FileNotFoundError, match="download=true"):
        weights.provided(of, None, download=False)
    assert not hub.exists()
    path = weights.provided(of, None, download=True)
    assert path.read_bytes() == file.read_bytes()
    assert [entry.name for entry in hub.iterdir()] == [file.name]
    file.unlink()
    assert weights.provided(of, None, download=True) == path, "fetched once"


@pytest.mark.parametrize("change", [b"", b"more", None])
def test_what_comes_instead_of_the_weights_is_not_kept(change: bytes | None, file: Path, hub: Path):
    of = published(file)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x" if change is None else (content + change if change else content[:-1]))
    with pytest.raises(ValueError, match=r"small.pth is not small.pth, or damaged"):
        weights.provided(of, None, download=True)
    assert list(hub.iterdir()) == []


def test_damaged_weights_in_the_cache_are_refused_and_fetched_again(file: Path, hub: Path):
    of = published(file)
    hub.mkdir(parents=True)
    (hub / file.name).write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged: its SHA-256 is"):
        weights.provided(of, None, download=False)
    weights.provided(of, None, download=True)
    assert (hub / file.name).read_bytes() == file.read_bytes()


def test_a_server_that_is_not_there_is_one_message(file: Path, hub: Path):
    with pytest.raises(ValueError, match=r"cannot be downloaded: .*; put it at .*small.pth"):
        weights.provided(published(file, url="http://127.0.0.1:9/small.pth"), None, download=True)
    assert list(hub.iterdir()) == []


class Payload:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_nothing_but_tensors_is_ever_unpickled(tmp_path: Path):
    torch.save({"a": torch.zeros(1), "b": Payload(tmp_path / "run")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth is not a file of weights, or holds more than tensors") as raised:
        weights.read_state(tmp_path / "bad.pth")
    assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_hash_are_not_even_read(file: Path, monkeypatch):
    monkeypatch.setattr(torch, "load", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(inception, "WEIGHTS", published(file, sha256="0" * 64))
    with pytest.raises(ConfigError, match="SHA-256"):
        Inception(weights=str(file)).prepare(None, CPU)
    monkeypatch.setattr(inception, "WEIGHTS", published(file, size=95))
    with pytest.raises(ConfigError, match=r"has 9\d\d bytes|has 1,\d+ bytes"):
        Inception(weights=str(file)).prepare(None, CPU)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 64])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_is_none_is_one_message(content: bytes, suffix: str, tmp_path: Path):
    (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match="is not a file of weights"):
        weights.read_state(tmp_path / f"w.{suffix}")


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(OSError, match="not a regular file"):
        weights.read_state(tmp_path / "w.pth")


# timm -----------------------------------------------------------------------------------------------------------------


def saved_network(name: str, path: Path, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(name, **options).eval()
    save_file(network.state_dict(), path)
    return network


@pytest.mark.parametrize(("name", "size"), [("test_vit.r160_in1k", None), ("test_efficientnet", 96)])
def test_timm_gives_what_its_own_transform_and_network_give(name: str, size: int | None, tmp_path: Path):
    network = saved_network(name, tmp_path / "w.safetensors")
    network.reset_classifier(0)
    config = timm.data.resolve_model_data_config(network)
    if size is not None:
        config["input_size"] = (3, size, size)
    transform = timm.data.create_transform(**config, is_training=False)
    ours = prepared(Timm(model=name, image_size=size, weights=str(tmp_path / "w.safetensors")))
    side = int(config["input_size"][1] / config["crop_pct"])
    # As large as timm makes them, so that nothing is resized: the same but for rounding. Else PIL rounds otherwise.
    for given, off in ((images(3, size=(side, side)), 1e-5), (images(3, size=(40, 48)), 0.05)):
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in given]
        with torch.no_grad():
            expected = network(torch.stack([transform(picture) for picture in pictures]))
        found = ours(given)
        assert found.shape == (3, ours.dimensions)
        assert (found - expected).abs().max() <= off * expected.std()
    identity = json.loads(json.dumps(ours.identity()))
    assert identity["weights_sha256"] == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert identity["preprocessing"]["input_size"] == list(config["input_size"])


def test_a_transformer_takes_another_size_by_interpolated_positions(tmp_path: Path):
    network = saved_network("test_vit", tmp_path / "w.safetensors")
    ours = prepared(Timm(model="test_vit", image_size=64, weights=str(tmp_path / "w.safetensors")))
    state = network.state_dict()
    network = timm.create_model("test_vit", img_size=64, num_classes=0).eval()
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], [4, 4])
    network.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    given = images(2, size=(67, 67))  # 64 / 0.95
    mean = torch.tensor([0.5] * 3).view(-1, 1, 1)
    with torch.no_grad():
        expected = network((given[:, :, 2:66, 2:66].float() / 255 - mean) / 0.5)
    torch.testing.assert_close(ours(given), expected, rtol=1e-4, atol=1e-4)


def test_figures_bear_the_networks_name_but_for_the_published_one():
    assert Timm(model="resnet50.a1_in1k").name == "resnet50"
    dinov2 = yaml.safe_load((configs_directory() / "features" / "dinov2.yaml").read_text())
    assert instantiate(dinov2, "features").name == "dinov2"
    assert instantiate(dinov2 | {"image_size": 518}, "features").name == "vit_large_patch14_dinov2"
    assert timm.get_pretrained_cfg(dinov2["model"]).hf_hub_id, "timm has it"


def in_hugging_face_cache(root: Path, content: bytes, sha256: str) -> None:
    repository = root / "models--timm--test_vit.r160_in1k"
    for folder in ("refs", "blobs", "snapshots/0123"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    (repository / "blobs" / sha256).write_bytes(content)
    (repository / "snapshots" / "0123" / "model.safetensors").symlink_to(f"../../blobs/{sha256}")


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch) -> Path:
    """The cache of the Hugging Face hub, empty; and nobody fetches anything."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hugging_face"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", mock.Mock(side_effect=AssertionError("fetched")))
    return tmp_path / "hugging_face"


def test_timms_weights_are_taken_from_its_cache(hugging_face: Path, hub: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model.safetensors of https://.*/timm/test_vit.r160_in1k is not in .*true"):
        Timm(model="test_vit").prepare(None, CPU)
    saved_network("test_vit", tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    in_hugging_face_cache(hugging_face, content, sha256)
    assert prepared(Timm(model="test_vit")).identity()["weights_sha256"] == sha256
    blob = hugging_face / "models--timm--test_vit.r160_in1k" / "blobs" / sha256
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match=f"is damaged, its SHA-256 is .*: remove {sha256}"):
        Timm(model="test_vit").prepare(None, CPU)


def test_timm_fetches_when_that_is_allowed(hugging_face: Path, hub: Path, tmp_path: Path, monkeypatch):
    saved_network("test_vit", tmp_path / "w.safetensors")
    fetched = mock.Mock(return_value=str(tmp_path / "w.safetensors"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    prepared(Timm(model="test_vit", download=True))
    assert fetched.call_args.args == ("timm/test_vit.r160_in1k", "model.safetensors")
    fetched.side_effect = ConnectionError("no network\nand more")
    with pytest.raises(ConfigError, match=r"features.weights: .*test_vit.r160_in1k cannot be downloaded: no network$"):
        Timm(model="test_vit", download=True).prepare(None, CPU)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "test_vitt"}, r"features.model: timm has no network 'test_vitt' \(did you mean 'test_vit"),
        ({"model": "hf-hub:somebody/else"}, r"features.model: timm has no network 'hf-hub:somebody/else'"),
        (
            {"model": "test_vit.of_mars"},
            r"features.model: timm has no weights 'test_vit.of_mars'; choose from test_vit.r160",
        ),
        (
            {"model": "test_resnet", "weights": "w.safetensors"},
            r"features.weights: w.safetensors does not fit test_resnet",
        ),
        ({"model": "test_vit", "weights": "none"}, r"features.weights: none: No such file"),
    ],
)
def test_what_timm_cannot_do_is_one_message(options: dict, says: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_network("test_vit", tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=says) as raised:
        Timm(**options).prepare(None, CPU)
    assert "\n" not in str(raised.value)


def test_a_network_without_some_of_its_weights_is_refused(tmp_path: Path):
    network = saved_network("test_vit", tmp_path / "w.safetensors")
    state = network.state_dict()
    del state["blocks.0.attn.qkv.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="does not fit test_vit"):
        Timm(model="test_vit", weights=str(tmp_path / "w.safetensors")).prepare(None, CPU)


# EfficientNet-Lite0 ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetLite0:
    one = EfficientNetLite0()
    one.prepare(None, CPU)
    return one


def test_efficientnet_sees_what_is_in_photographs(efficientnet: EfficientNetLite0, few_at_once):
    """With its last layer, which the features leave out: a temple's roof and a daisy, by ImageNet's numbers."""
    for picture, classes in zip(load_sample_images().images, ({442, 698}, {985}), strict=True):
        photograph = torch.from_numpy(picture[:, 100:527].copy()).permute(2, 0, 1)[None]
        assert int(efficientnet._network._fc(efficientnet(photograph)).argmax()) in classes


@pytest.mark.slow
def test_photographs_are_nearer_to_each_other_than_to_what_was_harmed(efficientnet: EfficientNetLite0):
    some = patches(48)
    some = some[torch.linspace(0, len(some) - 1, 32).long()]
    one_half, other_half = efficientnet(some[::2]).mean(0), some[1::2]

    def distance(given: Tensor) -> float:
        return float((efficientnet(given).mean(0) - one_half).square().sum())

    unharmed = distance(other_half)
    for harm, strengths in ((noisy, (10, 40)), (blurred, (1, 4)), (compressed, (20, 5))):
        distances = [unharmed, *(distance(harm(other_half, strength)) for strength in strengths)]
        assert distances == sorted(distances), harm
        assert distances[-1] > 1.25 * unharmed, harm


@pytest.mark.slow
def test_so_are_they_by_the_frechet_distance(efficientnet: EfficientNetLite0):
    some = patches(64)

    def statistics(given: Tensor):
        return FeatureSums.of(efficientnet(given).numpy()).statistics()

    one_half, other_half = statistics(some[::2]), some[1::2]
    unharmed = frechet_distance(one_half, statistics(other_half))
    for harm, strengths in ((noisy, (10, 20, 40)), (blurred, (1, 2, 4)), (compressed, (40, 20, 10))):
        distances = [frechet_distance(one_half, statistics(harm(other_half, strength))) for strength in strengths]
        assert [unharmed, *distances] == sorted([unharmed, *distances]), harm


# What holds for all ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pixels", "timm", "efficientnet"])
def any_extractor(request, tmp_path: Path) -> Extractor:
    if request.param == "pixels":
        return prepared(Pixels())
    if request.param == "efficientnet":
        return request.getfixturevalue("efficientnet")
    saved_network("test_resnet", tmp_path / "w.safetensors")
    return prepared(Timm(model="test_resnet", weights=str(tmp_path / "w.safetensors")))


def test_features_of_an_image_are_the_same_in_every_batch(any_extractor: Extractor, few_at_once):
    given = images(6)
    whole = any_extractor(given)
    assert whole.shape == (6, any_extractor.dimensions)
    assert torch.equal(torch.cat([any_extractor(given[:1]), any_extractor(given[1:])]), whole)


def test_grey_is_repeated(any_extractor: Extractor, few_at_once):
    grey = images(2, channels=1, size=(20, 24))
    assert torch.equal(any_extractor(grey), any_extractor(grey.repeat(1, 3, 1, 1)))


def test_identities_are_plain_json_and_only_inception_scores(any_extractor: Extractor):
    assert json.loads(json.dumps(any_extractor.identity())) == any_extractor.identity()
    assert any_extractor.identity()["name"] == any_extractor.name
    assert any_extractor.class_probabilities(torch.zeros(1, any_extractor.dimensions)) is None


@pytest.mark.parametrize("wrong", [images(1).float(), images(1)[0], images(1).repeat(1, 2, 1, 1), images(1)[:0]])
def test_images_that_are_none_are_a_bug(wrong: Tensor):
    with pytest.raises(AssertionError):
        Pixels()(wrong)


def test_features_that_are_no_numbers_are_refused():
    def network(given: Tensor) -> Tensor:
        features = given.float().mean((2, 3))
        return torch.where(features > 200, torch.nan, features)

    black_and_white = torch.tensor([0, 255, 0, 255, 0], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    assert torch.equal(extract(network, black_and_white[::2], CPU), torch.zeros(3, 1))
    with pytest.raises(ConfigError, match="features: those of 2 of 5 images are not finite"):
        extract(network, black_and_white, CPU)


def test_the_callers_precision_and_gradients_do_not_reach_the_features():
    layer = torch.nn.Linear(3, 2)
    given = images(3)

    def network(batch: Tensor) -> Tensor:
        return layer(batch.float().mean((2, 3)))

    expected = extract(network, given, CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extract(network, given, CPU)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_pixels_are_those_of_a_small_picture():
    given = images(3, size=(64, 48))
    found = Pixels()(given).view(3, 3, 16, 16)
    for image, small in zip(given, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        torch.testing.assert_close(small, expected, rtol=0, atol=1.5 / 255)
    exact = images(2, size=(16, 16))
    assert torch.equal(Pixels()(exact), exact.flatten(1) / 255)


def test_labels_decide_what_is_taken_when_nothing_is_said():
    assert [default_extractor(has_labels).name for has_labels in (True, False)] == ["classifier", "pixels"]


# As an option ---------------------------------------------------------------------------------------------------------

FILES = sorted((configs_directory() / "features").glob("*.yaml"))


@pytest.mark.parametrize("module", ["torch_fidelity", "timm", "efficientnet_lite_pytorch"])
def test_without_the_extra_one_message_says_how_to_install_it(module: str, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find_spec(name))
    says = []
    for file in FILES:
        node = yaml.safe_load(file.read_text()) | ({"model": "resnet50"} if file.stem == "timm" else {})
        try:
            instantiate(node, "features")
        except ConfigError as error:
            says.append(str(error))
    assert set(says) == {f"features: {module} is not installed: pip install 'ddpm-cli[eval]'"}


OWN = """
import torch


class Brightness:
    name = "brightness"
    dimensions = 1

    def __init__(self, *, power: float = 1.0):
        self.power = power

    def identity(self):
        return {"name": self.name, "power": self.power}

    def prepare(self, data, device):
        pass

    def __call__(self, images):
        return (images.float() / 255).mean((1, 2, 3))[:, None] ** self.power

    def class_probabilities(self, features):
        return None


def options(features: dict):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch) -> Callable[[dict], Extractor]:
    (tmp_path / "own_features.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))

    def build(node: dict) -> Extractor:
        return instantiate(check({"features": node}, "own_features.options")["features"], "features")

    return build


def test_a_class_of_ones_own_is_taken_like_ours(own: Callable[[dict], Extractor]):
    brightness = own({"_target_": "own_features.Brightness", "power": 2})
    brightness.prepare(None, CPU)
    white = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(brightness(white), torch.ones(2, 1))
    with pytest.raises(ConfigError, match=r"features.pwer: no such option \(did you mean 'power'\?\)"):
        own({"_target_": "own_features.Brightness", "pwer": 2})


def test_what_is_mistyped_is_found_without_torch(tmp_path: Path):
    (tmp_path / "own_features.py").write_text(OWN)
    code = """
import sys, yaml
from pathlib import Path
from ddpm_cli.config.schema import check
for file in sys.argv[1:]:
    node = yaml.safe_load(Path(file).read_text())
    check({"features": node}, "own_features.options")
    try:
        check({"features": node | {"batch": 3}}, "own_features.options")
    except ValueError as error:
        assert "features.batch: no such option" in str(error), error
    else:
        raise AssertionError(file)
assert "torch" not in sys.modules
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, FILES)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert len(FILES) == 6
    assert timm_network.PUBLISHED
