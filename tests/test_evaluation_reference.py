"""What samples are compared with, and its features and statistics, which are kept by what they are of."""

import gc
import multiprocessing
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.reference import Data, Images, Reference
from ddpm_cli.evaluation.run_data import RunImages
from ddpm_cli.evaluation.statistics import FeatureSums
from ddpm_cli.evaluation.statistics_cache import StatisticsCache


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddpm-cli" / "evaluation"


class Means:
    """Features that are the means of an image's quarters, and a count of the images that it has seen."""

    dimensions = 4

    def __init__(self, name: str = "means", **identity: object):
        self.name = name
        self.seen = 0
        self._identity = {"name": name, "resize": 8, **identity}

    def identity(self) -> dict[str, object]:
        return self._identity

    def prepare(self, data: Callable[[], ImageSet] | None, device: torch.device) -> None: ...

    def __call__(self, images: Tensor, /) -> Tensor:
        self.seen += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1), 2).flatten(1)

    def class_probabilities(self, features: Tensor, /) -> None: ...


def pixels(seed: int = 0, count: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), np.uint8)


def of_run(trained_on: np.ndarray, held_out: np.ndarray | None = None) -> Callable[[], RunImages]:
    sets = [
        None if images is None else ImageSet(images, "mine", flip="horizontal") for images in (trained_on, held_out)
    ]
    assert sets[0] is not None
    return lambda: RunImages(sets[0], sets[1])


def none() -> ImageSet:
    raise ConfigError("reference.split=test: no test split")


def opened(images: np.ndarray, **options) -> Reference:
    return Data(**options).open(of_run(images), none)


# The cache -----------------------------------------------------------------------------------------------------------


def test_features_are_made_once_for_the_same_pixels_extractor_and_resize():
    extractor = Means()
    first = opened(pixels()).side(extractor, 7)
    assert extractor.seen == 30
    again = opened(pixels().copy()).side(extractor, 64)
    assert extractor.seen == 30
    assert first.features is not None
    assert again.features is not None
    np.testing.assert_array_equal(first.features, again.features)
    np.testing.assert_array_equal(first.features, Means()(torch.from_numpy(pixels())).numpy())
    expected = FeatureSums.of(first.features).statistics()
    for statistics in (first.statistics, again.statistics):
        assert statistics.count == 30
        np.testing.assert_array_equal(statistics.mean, expected.mean)
        np.testing.assert_array_equal(statistics.covariance, expected.covariance)


def one_pixel_more(images: np.ndarray) -> np.ndarray:
    changed = images.copy()
    changed[17, 1, 3, 4] ^= 1
    return changed


OTHERS = {
    "one pixel": (one_pixel_more(pixels()), Means()),
    "another order": (pixels()[::-1].copy(), Means()),
    "fewer": (pixels()[:-1], Means()),
    "other weights": (pixels(), Means(sha256="1")),
    "another resize": (pixels(), Means(resize=16)),
    "another extractor": (pixels(), Means("others")),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_kept_of_others_is_not_used(what: str):
    opened(pixels()).side(Means(), 8)
    images, extractor = OTHERS[what]
    seen = extractor.seen
    side = opened(images).side(extractor, 8)
    assert extractor.seen - seen == len(images)
    assert side.features is not None
    np.testing.assert_array_equal(side.features, Means()(torch.from_numpy(images)).numpy())
    np.testing.assert_allclose(side.statistics.mean, side.features.mean(axis=0), rtol=1e-6)


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path, place: int) -> None:
    path.write_bytes(path.read_bytes()[:place])


@pytest.mark.parametrize("damage", [flip_byte, cut])
@pytest.mark.parametrize("place", [5, 200, -5])
def test_what_is_damaged_is_made_again(cache: Path, caplog, damage, place: int):
    opened(pixels()).side(Means(), 8)
    for path in list(cache.iterdir()):
        damage(path, place)
    extractor = Means()
    side = opened(pixels()).side(extractor, 8)
    assert extractor.seen == 30
    assert re.search("computing the (features|statistics) again", caplog.text)
    np.testing.assert_array_equal(side.features, Means()(torch.from_numpy(pixels())).numpy())
    np.testing.assert_allclose(side.statistics.covariance, np.cov(side.features, rowvar=False), rtol=1e-5)
    opened(pixels()).side(extractor, 8)
    assert extractor.seen == 30


def test_a_file_under_the_name_of_another_is_not_used(cache: Path):
    opened(pixels()).side(Means(), 8)
    files = sorted(cache.iterdir())
    opened(pixels(1)).side(Means(), 8)
    others = sorted(set(cache.iterdir()) - set(files))
    for file, other in zip(files, others, strict=True):
        assert file.suffix == other.suffix
        file.write_bytes(other.read_bytes())
    extractor = Means()
    side = opened(pixels()).side(extractor, 8)
    assert extractor.seen == 30
    np.testing.assert_allclose(side.statistics.mean, side.features.mean(axis=0), rtol=1e-6)


def make_together(start, results, directory: Path) -> None:
    start.wait()
    features = np.arange(4000, dtype=np.float32).reshape(1000, 4) % 7
    cache = StatisticsCache(directory)
    for _ in range(20):
        found = cache.features("k", (1000, 4), lambda: np.split(features, 100))
        np.testing.assert_array_equal(found, features)
        np.testing.assert_allclose(cache.statistics("k", found).mean, features.mean(axis=0), rtol=1e-6)
        for path in directory.glob("k.*"):
            path.unlink(missing_ok=True)
    results.put(True)


def test_processes_may_make_the_same_at_once(cache: Path):
    """Each removes what it has made, and what the others are making, and still reads what is true."""
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=make_together, args=(start, results, cache)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path for path in cache.iterdir() if path.suffix == ".tmp"] == []


def test_nothing_is_left_of_features_that_could_not_be_made(cache: Path):
    store = StatisticsCache(cache)

    def broken():
        yield np.zeros((5, 4), np.float32)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.features("k", (10, 4), broken)

    def unreadable():
        yield np.zeros((5, 4), np.float32)
        raise OSError("image 5 is gone")

    with pytest.raises(OSError, match=r"^image 5 is gone$"):
        store.features("k", (10, 4), unreadable)
    for wrong in (np.zeros((10, 3), np.float32), np.full((10, 4), np.nan, np.float32), np.zeros((9, 4), np.float32)):
        with pytest.raises(ValueError, match="features"):
            store.features("k", (10, 4), lambda wrong=wrong: [wrong])
    assert list(cache.iterdir()) == []


def test_features_that_were_unused_the_longest_make_room(cache: Path, caplog):
    """Three references of 30 x 4 float32, and room for two; the one that was read again last stays."""
    room = (2 * 30 * 4 * 4 + 6000) / 2**30  # with what stands around them, and statistics
    kept: list[set[Path]] = []
    for seed in range(2):
        opened(pixels(seed), cache_gb=room).side(Means(), 8)
        kept.append(set(cache.iterdir()).difference(*kept))
        for path in kept[-1]:
            os.utime(path, times=(1e9 + seed, 1e9 + seed))
    gc.collect()  # what was used is not in use any more
    assert opened(pixels(0), cache_gb=room).side(Means(), 8).features is not None
    gc.collect()
    opened(pixels(2), cache_gb=(30 * 4 * 4 * 2 + 1500) / 2**30).side(Means(), 8)
    assert not [path for path in kept[1] if path.suffix == ".npy" and path.exists()]
    assert [path for path in kept[0] if path.suffix == ".npy" and path.exists()]
    assert any("removed" in line and "reference.cache_gb=" in line for line in caplog.messages)
    with pytest.raises(ValueError, match="cache_gb must be a number of GiB from 0 on, got -1"):
        Data(cache_gb=-1)


def test_a_place_for_the_cache_that_is_none_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot write the cache of features in .*: set XDG_CACHE_HOME"):
        opened(pixels()).side(Means(), 8)


# References ----------------------------------------------------------------------------------------------------------


def test_the_splits_of_a_run_are_its_images():
    reference = Data(split="holdout").open(of_run(pixels(), pixels(1, 5)), none)
    assert reference.identity() == {
        "name": "mine",
        "split": "holdout",
        "n": 5,
        "sha256": opened(pixels(1, 5)).sha256,
        "resize": "8 x 8",
    }
    np.testing.assert_array_equal(reference.images([4, 0]).numpy(), pixels(1, 5)[[4, 0]])
    test = ImageSet(pixels(2), "tested", flip="horizontal")
    assert Data(split="test").open(of_run(pixels()), lambda: test).name == "tested"
    assert opened(pixels()).identity()["split"] == "train"
    with pytest.raises(ConfigError, match=r"^reference.split=holdout: the run held out no images"):
        Data(split="holdout").open(of_run(pixels()), none)
    with pytest.raises(ConfigError, match=r"^reference.split=test: no test split"):
        Data(split="test").open(of_run(pixels()), none)


def test_images_of_a_file_are_as_good_as_the_runs_own(tmp_path: Path):
    np.savez(tmp_path / "images.npz", pixels().transpose(0, 2, 3, 1))
    reference = Images(str(tmp_path / "images.npz")).open(of_run(pixels(9)), none)
    assert (reference.name, reference.n, reference.image_shape) == ("images.npz", 30, (3, 8, 8))
    assert reference.sha256 == opened(pixels()).sha256
    np.testing.assert_array_equal(reference.side(Means(), 8).features, opened(pixels()).side(Means(), 8).features)


def test_saved_statistics_are_a_reference_for_the_same_features(tmp_path: Path):
    path = tmp_path / "reference.npz"
    made = opened(pixels(), save=str(path)).side(Means(), 8)
    reference = Images(str(path)).open(of_run(pixels(9)), none)
    assert (reference.n, reference.statistics_alone, reference.image_shape) == (30, True, None)
    side = reference.side(Means(), 8)
    assert side.features is None
    np.testing.assert_array_equal(side.statistics.covariance, made.statistics.covariance)
    for other in (Means("others"), Means(resize=16)):
        with pytest.raises(ConfigError, match="made with other features than features="):
            reference.check(other)
    with pytest.raises(ConfigError, match=r"reference.save: has no effect"):
        Images(str(path), save=str(tmp_path / "again.npz")).open(of_run(pixels()), none)


def test_statistics_that_do_not_say_of_what_are_inceptions(tmp_path: Path):
    np.savez(tmp_path / "edm.npz", mu=np.ones(4), sigma=np.eye(4))
    reference = Images(str(tmp_path / "edm.npz")).open(of_run(pixels()), none)
    assert reference.n is None
    np.testing.assert_array_equal(reference.side(Means("inception"), 8).statistics.mean, np.ones(4))
    with pytest.raises(ConfigError, match=r"^reference.path: the statistics in edm.npz do not name their features"):
        reference.check(Means())
    extractor = Means("inception")
    extractor.dimensions = 5
    with pytest.raises(ConfigError, match="have 4 dimensions, features=inception 5"):
        reference.check(extractor)


def test_guided_diffusions_reference_gives_statistics_and_images(tmp_path: Path):
    """As its evaluator does: the distance is from mu and sigma, all else from the images, which are others."""
    arrays = {"mu": np.ones(4), "sigma": np.eye(4), "mu_s": np.ones(6), "sigma_s": np.eye(6)}
    np.savez(tmp_path / "virtual.npz", arr_0=pixels().transpose(0, 2, 3, 1), **arrays)
    reference = Images(str(tmp_path / "virtual.npz")).open(of_run(pixels(9)), none)
    side = reference.side(Means("inception"), 8)
    assert (reference.n, reference.statistics_alone) == (None, False)
    np.testing.assert_array_equal(side.statistics.mean, np.ones(4))
    np.testing.assert_array_equal(side.features, Means()(torch.from_numpy(pixels())).numpy())
    of_images = reference.side(Means(), 8).statistics  # of other features there are only the images
    np.testing.assert_allclose(of_images.mean, side.features.mean(axis=0), rtol=1e-6)
    assert reference.sha256 != opened(pixels()).sha256


def test_places_that_cannot_be_written_to_are_refused_before_anything_is_read(tmp_path: Path):
    def unread() -> RunImages:
        raise AssertionError("read too early")

    for save, says in (
        ("reference.pkl", "must end in .npz"),
        (str(tmp_path / "nowhere" / "a.npz"), "a directory that does not exist"),
    ):
        with pytest.raises(ConfigError, match=f"^reference.save: .*{says}"):
            Data(save=save).open(unread, none)
    with pytest.raises(ConfigError, match=r"^reference.path: .*nowhere"):
        Images(str(tmp_path / "nowhere")).open(unread, none)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"^reference.path: .*broken.npz: not an .npz file"):
        Images(str(tmp_path / "broken.npz")).open(unread, none)
