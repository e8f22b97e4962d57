"""Features of a classifier that is trained on the spot: what it learns, that it is the same again, where it is kept."""

import logging
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.data.cache_files import cache_directory
from ddpm_cli.data.datasets import digits
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.features import classifier, classifier_network
from ddpm_cli.evaluation.features.classifier import Classifier
from ddpm_cli.evaluation.frechet import frechet_distance
from ddpm_cli.evaluation.statistics import FeatureSums

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def of_digits() -> ImageSet:
    return digits(num_classes=10)


@pytest.fixture(scope="module")
def kept(of_digits: ImageSet, tmp_path_factory) -> Path:
    """A cache directory that has the classifier of the digits."""
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        Classifier().prepare(lambda: of_digits, CPU)
    return place


@pytest.fixture
def one(kept: Path, of_digits: ImageSet, monkeypatch) -> Classifier:
    """The classifier of the digits, which is not trained again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setattr(classifier, "train", mock.Mock(side_effect=AssertionError("trained again")))
    found = Classifier()
    found.prepare(lambda: of_digits, CPU)
    return found


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache directory, and training of a moment: for what does not depend on what has been learnt."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(classifier_network, "FEWEST", 64)
    monkeypatch.setattr(classifier_network, "MOST", 64)
    return cache_directory(None) / "evaluation"


def squares(number: int = 40, *, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 2) -> ImageSet:
    labels = np.arange(number) % classes
    pixels = np.random.default_rng(0).integers(0, 100, (number, *shape), np.uint8)
    pixels += (labels * 100).astype(np.uint8)[:, None, None, None]
    return ImageSet(pixels, "squares", flip="none", labels=labels, class_names=tuple(map(str, range(classes))))


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def weights_of(images: ImageSet) -> str:
    found = Classifier()
    found.prepare(lambda: images, CPU)
    return str(found.identity()["weights_sha256"])


# What it learns -------------------------------------------------------------------------------------------------------


def held_out(found: Classifier) -> float:
    assert found._network is not None
    right, of = found._network.held_out.tolist()
    return right / of


def test_it_recognises_digits_that_it_has_not_seen(one: Classifier, of_digits: ImageSet):
    assert held_out(one) >= 0.97
    assert one._network is not None
    order = torch.randperm(1797, generator=classifier_network.generator("classifier", "held out"))[:179]
    logits = one._network(torch.from_numpy(of_digits.pixels[order.numpy()]))
    assert of_digits.labels is not None
    right = (logits.argmax(1).numpy() == of_digits.labels[order.numpy()]).sum()
    assert [right, 179] == one._network.held_out.tolist(), "counted again"


@pytest.mark.slow
@pytest.mark.parametrize(("size", "channels"), [(16, 1), (28, 1), (32, 3), (64, 3), ([40, 90], 1)])
def test_so_it_does_at_any_size(size: int | list[int], channels: int, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = Classifier()
    found.prepare(lambda: digits(image_size=size, channels=channels, num_classes=10), CPU)
    assert held_out(found) >= 0.97


def test_digits_are_nearer_to_each_other_than_to_what_was_harmed(one: Classifier, of_digits: ImageSet):
    def statistics(pixels: np.ndarray):
        return FeatureSums.of(one(torch.from_numpy(pixels)).numpy()).statistics()

    one_half, other_half = of_digits.pixels[::2], of_digits.pixels[1::2]
    noise = np.random.default_rng(0).normal(size=other_half.shape)
    distances = [
        frechet_distance(
            statistics(one_half), statistics(np.clip(other_half + deviation * noise, 0, 255).round().astype(np.uint8))
        )
        for deviation in (0, 16, 32, 64)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 10 * distances[0]


def test_the_covariance_of_its_features_has_full_rank(one: Classifier, of_digits: ImageSet):
    features = one(torch.from_numpy(of_digits.pixels)).double()
    assert features.shape == (1797, one.dimensions)
    assert torch.linalg.matrix_rank(torch.cov(features.T)) == one.dimensions


def test_features_of_an_image_are_the_same_in_every_batch(one: Classifier, of_digits: ImageSet):
    given = torch.from_numpy(of_digits.pixels[:40])
    whole = one(given)
    assert torch.equal(torch.cat([one(given[:1]), one(given[1:8]), one(given[8:])]), whole)
    assert one.class_probabilities(whole) is None


def test_other_sizes_and_channels_are_brought_to_its_own(one: Classifier, of_digits: ImageSet):
    given = torch.from_numpy(of_digits.pixels[:8])
    assert torch.equal(one(given.repeat(1, 3, 1, 1)), one(given))
    large = given.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert (one(large) - one(given)).abs().mean() < 0.5 * one(given).std()


# The same again -------------------------------------------------------------------------------------------------------


def test_it_is_the_same_whatever_the_threads_and_the_generator(tmp_path: Path, monkeypatch, hasty: Path):
    found = set()
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            torch.manual_seed(number)
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(number)))
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                found.add(weights_of(squares()))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_it_leaves_the_generator_alone(hasty: Path):
    state = torch.get_rng_state()
    weights_of(squares())
    assert torch.equal(torch.get_rng_state(), state)


# Where it is kept -----------------------------------------------------------------------------------------------------


def test_other_pixels_labels_or_classes_make_another(hasty: Path):
    original = squares()
    pixels, labels = original.pixels.copy(), original.labels.copy()
    pixels[3, 0, 0, 0] ^= 1
    labels[0] = 1
    others = [
        replace(original, pixels=pixels),
        replace(original, labels=labels),
        replace(original, class_names=("0", "1", "2")),
        squares(shape=(1, 8, 9)),
    ]
    found = [weights_of(images) for images in (original, *others)]
    assert len(set(found)) == len(found)
    assert len(files(hasty)) == len(found)
    assert weights_of(squares()) == found[0]
    assert len(files(hasty)) == len(found)


def test_images_that_stay_on_the_disk_are_known_by_their_checksums(hasty: Path):
    class Stored:
        def __init__(self, array: np.ndarray):
            self.array, self.shape, self.dtype, self.nbytes = array, array.shape, array.dtype, array.nbytes

        def __len__(self) -> int:
            return len(self.array)

        def __getitem__(self, indices: np.ndarray) -> np.ndarray:
            return self.array[indices]

    in_memory = squares()
    assert weights_of(replace(in_memory, pixels=Stored(in_memory.pixels))) == weights_of(in_memory)
    assert len(files(hasty)) == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_one_is_trained_again(damage: str, hasty: Path, caplog):
    first = weights_of(squares())
    (file,) = files(hasty)
    content = file.read_bytes()
    harmed = {"cut": content[:-8], "changed": content[:-1] + bytes([content[-1] ^ 1]), "emptied": b""}
    file.write_bytes(harmed[damage])
    assert weights_of(squares()) == first
    assert "trained again" in caplog.text
    assert file.read_bytes() == content, "and put right"


def test_what_another_process_trains_is_waited_for(hasty: Path, monkeypatch):
    expected = weights_of(squares())
    (file,) = files(hasty)
    content = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(classifier, "train", mock.Mock(side_effect=AssertionError("trained again")))
    (lock_file,) = hasty.glob("*.lock")
    lock = FileLock(lock_file, thread_local=False)
    lock.acquire()

    def finish() -> None:
        file.write_bytes(content)
        lock.release()

    other = threading.Timer(0.3, finish)
    other.start()
    assert weights_of(squares()) == expected
    other.join()


def test_without_a_place_to_keep_it_there_is_a_classifier_all_the_same(
    hasty: Path, tmp_path: Path, monkeypatch, caplog
):
    expected = weights_of(squares())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert weights_of(squares()) == expected
    assert "cannot keep the classifier in" in caplog.text


def test_it_says_what_it_has_learnt(hasty: Path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "ddpm_cli")
    monkeypatch.setattr(classifier_network, "FEWEST", 640)
    monkeypatch.setattr(classifier_network, "MOST", 640)
    weights_of(squares())
    assert "features a classifier of squares, trained in " in caplog.text
    assert ": 100.0 % of 4 held-out images are recognised" in caplog.text
    assert "learnt" not in caplog.text
    shuffled = squares(number=400)
    labels = np.random.default_rng(1).integers(0, 2, 400)
    weights_of(replace(shuffled, labels=labels))
    assert "the classifier has learnt little; choose features=efficientnet_lite0" in caplog.text


# A file that is given -------------------------------------------------------------------------------------------------


def test_one_that_was_trained_elsewhere_is_taken(one: Classifier, kept: Path, of_digits: ImageSet):
    (file,) = files(kept / "ddpm-cli" / "evaluation")
    given = Classifier(weights=str(file))
    given.prepare(None, CPU)
    assert given.identity() == one.identity()
    some = torch.from_numpy(of_digits.pixels[:5])
    assert torch.equal(given(some), one(some))


def test_what_is_no_classifier_is_one_message(tmp_path: Path):
    from safetensors.torch import save_file

    network = classifier_network._initialized((1, 8, 8), 2)
    state = network.state_dict()
    wrong = {
        "no_file": (None, "does not exist"),
        "not": ({"a": torch.zeros(1)}, "is not a classifier of ddpm-cli"),
        "shape": (state | {"image_shape": torch.tensor([1, 8, 1 << 40])}, "of images of an impossible shape"),
        "layer": (state | {"head.bias": torch.zeros(3)}, "a different classifier than this version"),
        "less": (
            {name: state[name] for name in ("head.weight", "image_shape")},
            "a different classifier than this version",
        ),
    }
    for name, (tensors, says) in wrong.items():
        path = tmp_path / f"{name}.safetensors"
        if tensors is not None:
            save_file(tensors, path)
        with pytest.raises(ConfigError, match=f"features.weights: .*{says}"):
            Classifier(weights=str(path)).prepare(None, CPU)
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    with pytest.raises(ConfigError, match=r"features.weights: .*text.safetensors is not usable"):
        Classifier(weights=str(tmp_path / "text.safetensors")).prepare(None, CPU)


# Data that will not do ------------------------------------------------------------------------------------------------


def test_data_without_labels_are_refused_with_a_cure():
    with pytest.raises(ConfigError, match=r"digits has none: choose features=pixels or features=efficientnet_lite0"):
        Classifier().prepare(digits, CPU)
    with pytest.raises(ConfigError, match="no labelled data"):
        Classifier().prepare(None, CPU)


def test_one_class_alone_is_refused(hasty: Path):
    with pytest.raises(ConfigError, match=r"features: all images of squares are of one class"):
        Classifier().prepare(lambda: squares(classes=1), CPU)
    assert files(hasty) == []


@pytest.mark.cuda
def test_on_a_gpu_it_is_the_one_of_the_cpu(one: Classifier, of_digits: ImageSet):
    there = Classifier()
    there.prepare(lambda: of_digits, torch.device("cuda"))
    assert there.identity() == one.identity()
    some = torch.from_numpy(of_digits.pixels[:64])
    torch.testing.assert_close(there(some).cpu(), one(some), rtol=1e-4, atol=1e-4)
