"""A run is resumed on the images that it was trained on: others are refused by name, and a cache shows its damage."""

import functools
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import webdataset as wds
from commands import TINY, assert_one_message, only, train
from PIL import Image

from ddpm_cli.checkpoint import Metadata
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.data import datasets
from ddpm_cli.data.folder import folder
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.data.stored_pixels import DamagedCacheError, StoredPixels
from ddpm_cli.data.webdataset import webdataset
from ddpm_cli.training.resume import check_same_data

COUNT, SIZE = 12, 8
NETWORK = ["model=unet_16", "model.attention_resolutions=[4]", "model.in_channels=3", f"data.image_size={SIZE}", *TINY]
NETWORK += ["trainer.preview_every=0", "data.workers=0", "trainer.batch_size=4", "name=x"]


def make_pictures(root: Path, seed: int = 0) -> Path:
    """Twelve pictures of noise, 8 x 8, in two folders; as BMP, of which all have one size."""
    rng = np.random.default_rng(seed)
    for index in range(COUNT):
        path = root / "ab"[index % 2] / f"{index:02}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def pictures(tmp_path) -> Path:
    return make_pictures(tmp_path / "pictures")


def read(root: Path, cache: Path, **options) -> ImageSet:
    return folder(str(root), image_size=SIZE, cache_dir=str(cache), **options)


def flip_byte(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 16]))


def pixel_cache(cache: Path) -> Path:
    (path,) = cache.glob("*.npy")
    return path


# What the fingerprint tells -------------------------------------------------------------------------------------------


def test_the_same_images_have_one_fingerprint_wherever_they_lie(pictures, tmp_path):
    images = read(pictures, tmp_path / "1")
    elsewhere = shutil.copytree(pictures, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    for other in (read(pictures, tmp_path / "1", memory_mb=0), read(elsewhere, tmp_path / "2", memory_mb=0)):
        assert isinstance(other.pixels, StoredPixels)
        assert other.fingerprint == images.fingerprint
    assert ImageSet(images.pixels, "in memory", flip="horizontal").fingerprint == images.fingerprint


def test_every_pixel_the_order_and_the_labels_count():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 4, 4), dtype=np.uint8)
    labels, names = np.arange(9) % 3, ("a", "b", "c")
    one = pixels.copy()
    one[8, 2, 3, 3] ^= 1

    def fingerprint(pixels: np.ndarray, labels: np.ndarray) -> dict[str, str]:
        found = ImageSet(pixels, "x", flip="none", labels=labels, class_names=names).fingerprint
        assert found is not None
        return found

    first, plain = fingerprint(pixels, labels), ImageSet(pixels, "x", flip="none").fingerprint
    changed, turned = fingerprint(one, labels), fingerprint(pixels[::-1], labels)
    labelled = fingerprint(pixels, labels[::-1].copy())
    differs = [{key for key in first if other[key] != first[key]} for other in (changed, turned, labelled)]
    assert differs == [{"images", "unordered"}, {"images"}, {"labels"}]
    assert plain is not None
    assert plain["labels"] != first["labels"]


def test_scaling_does_not_count_but_the_size_does(monkeypatch):
    """Known sets are scaled in floating point, which may round another way on another processor."""
    before = datasets.digits(image_size=12).fingerprint
    resize = datasets.resize
    monkeypatch.setattr(datasets, "resize", lambda *arguments: np.maximum(resize(*arguments), 1))
    assert datasets.digits(image_size=12).fingerprint == before
    assert datasets.digits(image_size=10).fingerprint != before


def test_images_that_are_nowhere_as_a_whole_have_none_unless_they_bring_it():
    class Zeros:
        shape, dtype, nbytes = (5, 1, 2, 2), np.dtype(np.uint8), 20

        def __len__(self) -> int:
            return 5

        def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
            return np.zeros((len(indices), 1, 2, 2), np.uint8)

    assert ImageSet(Zeros(), "own", flip="none").fingerprint is None
    assert ImageSet(Zeros(), "own", flip="none", checksums=np.arange(5, dtype=np.uint32)).fingerprint is not None
    with pytest.raises(ValueError, match=r"own: checksums must be uint32 \[5\], got int64 \[4\]"):
        ImageSet(Zeros(), "own", flip="none", checksums=np.arange(4))


# The cache ------------------------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[Path], object]] = {
    "a pixel": lambda path: flip_byte(path, 128 + 5 * 3 * SIZE**2 + 17),
    "a checksum": lambda path: flip_byte(path, path.stat().st_size - 40),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "sparse": lambda path: (os.truncate(path, 128), os.truncate(path, 128 + COUNT * (3 * SIZE**2 + 4) + 32)),
    "of an earlier version": lambda path: os.truncate(path, 128 + COUNT * 3 * SIZE**2),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_found_and_mended_at_the_start(how, pictures, tmp_path, caplog, decoded):
    good = read(pictures, tmp_path / "cache")
    path = pixel_cache(tmp_path / "cache")
    content = path.read_bytes()
    DAMAGE[how](path)
    again = read(pictures, tmp_path / "cache")
    np.testing.assert_array_equal(again.pixels, good.pixels)
    assert (len(decoded), path.read_bytes()) == (2 * COUNT, content)
    assert re.search(rf"{path} is (damaged|incomplete).*decoding the images again", caplog.text)


def test_a_file_of_another_set_does_not_pass(pictures, tmp_path, decoded):
    read(pictures, tmp_path / "cache")
    (own,) = (tmp_path / "cache").iterdir()
    read(make_pictures(tmp_path / "others", seed=1), tmp_path / "cache")
    (other,) = set((tmp_path / "cache").iterdir()) - {own}
    shutil.copyfile(other, own)
    read(pictures, tmp_path / "cache")
    assert len(decoded) == 3 * COUNT


def test_damage_that_comes_later_is_found_in_the_image_that_is_read(pictures, tmp_path):
    pixels = read(pictures, tmp_path / "cache", memory_mb=0).pixels
    path = pixel_cache(tmp_path / "cache")
    DAMAGE["a pixel"](path)
    assert pixels[np.array([4, 6, 4])].shape == (3, 3, SIZE, SIZE)
    for spoil in (lambda: None, lambda: os.truncate(path, 200)):  # a map would be killed by the second (SIGBUS)
        spoil()
        with pytest.raises(DamagedCacheError, match=rf"{path} is damaged: image 5 .* remove that file"):
            pixels[np.array([5])]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("suffix", [".npy", ".bad.json"])
def test_what_is_no_file_in_the_place_of_one_is_named(make, suffix, pictures, tmp_path, decoded):
    read(pictures, tmp_path / "cache")
    path = pixel_cache(tmp_path / "cache").with_suffix(suffix)
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(OSError, match=rf"{path}.*remove it, or choose another data\.cache_dir"):
        read(pictures, tmp_path / "cache")
    assert len(decoded) == COUNT


def test_memory_that_runs_out_while_images_are_read_is_one_message(pictures, tmp_path, monkeypatch):
    images = read(pictures, tmp_path / "cache", memory_mb=0)
    monkeypatch.setattr(StoredPixels, "_read", mock.Mock(side_effect=MemoryError))
    with pytest.raises(OSError, match=r"pictures: out of memory while a batch of images was read"):
        next(BatchLoader(images, 4, seed=0).prefetch(0))
    with pytest.raises(ConfigError, match=r"^data: out of memory$"), naming("data"):
        read(pictures, tmp_path / "cache")


# Resuming -------------------------------------------------------------------------------------------------------------


def begun(place: Path, *data: str) -> Path:
    """A run of two steps in `place`, whose data lies in place/data and whose cache in place/cache."""
    done = train(*NETWORK, *data, "data.path=data", "data.cache_dir=cache", "trainer.steps=2", cwd=place)
    assert done.returncode == 0, done.stderr
    return only(place / "outputs" / "x")


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory) -> Path:
    """A run on twelve labelled pictures; not to be changed."""
    place = tmp_path_factory.mktemp("folder")
    make_pictures(place / "data")
    begun(place, "data=folder", "data.num_classes=2")
    return place


@pytest.fixture(scope="module")
def of_shards(tmp_path_factory) -> Path:
    """A run on the same pictures in three tar files; not to be changed."""
    place = tmp_path_factory.mktemp("shards")
    write_shards(place / "data", make_pictures(place / "pictures"))
    begun(place, "data=webdataset")
    return place


def write_shards(place: Path, pictures: Path, **more) -> None:
    place.mkdir()
    with wds.ShardWriter(f"{place}/set-%d.tar", maxcount=4, verbose=0, mtime=0, **more) as sink:
        for path in sorted(pictures.rglob("*.bmp")):
            sink.write({"__key__": path.stem, "bmp": path.read_bytes()})


def replace_all(data: Path) -> None:
    shutil.rmtree(data)
    make_pictures(data, seed=1)


def replace_one(data: Path) -> None:
    shutil.copyfile(data / "b" / "01.bmp", data / "b" / "03.bmp")


def reorder(data: Path) -> None:
    (data / "a" / "00.bmp").rename(data / "a" / "zz.bmp")


def permute_labels(data: Path) -> None:
    """The last of the first class becomes the first of the second: the order of the images is what it was."""
    (data / "a" / "10.bmp").rename(data / "b" / "00.bmp")


def exchange_shard(data: Path) -> None:
    """For one with as many images of the same names, sizes and times."""
    pictures = make_pictures(data.parent / "others", seed=1)
    write_shards(data.parent / "other", pictures)
    shutil.copyfile(data.parent / "other" / "set-1.tar", data / "set-1.tar")


def reorder_shards(data: Path) -> None:
    (data / "set-0.tar").rename(data / "set-9.tar")


OTHERS = "these 12 images are not those that the run was trained on"
EXCHANGES = {
    "all images": ("of_folder", replace_all, OTHERS),
    "one image": ("of_folder", replace_one, OTHERS),
    "the order": ("of_folder", reorder, "in another order"),
    "the labels": ("of_folder", permute_labels, "the labels have changed since"),
    "fewer": ("of_folder", lambda data: (data / "b" / "01.bmp").unlink(), "trained on 12 images, but there are 11 now"),
    "a shard": ("of_shards", exchange_shard, OTHERS),
    "the order of shards": ("of_shards", reorder_shards, "in another order"),
}


@pytest.mark.parametrize("what", EXCHANGES)
def test_what_differs_is_said(what, tmp_path):
    fixture, exchange, says = EXCHANGES[what]
    make_pictures(tmp_path / ("data" if fixture == "of_folder" else "pictures"))
    options = {"image_size": SIZE, "cache_dir": str(tmp_path / "cache"), "workers": 0}
    read = functools.partial(folder, num_classes=2, **options)
    if fixture == "of_shards":
        write_shards(tmp_path / "data", tmp_path / "pictures")
        read = functools.partial(webdataset, **options)
    images = read(str(tmp_path / "data"))
    known = Metadata(
        step=2,
        image_shape=images.shape,
        images=len(images),
        config={},
        versions={"pillow": "9.8.7"},
        classes=images.class_names,
        data=images.fingerprint,
    )
    assert check_same_data(images, known, Path("run")) == []
    exchange(tmp_path / "data")
    with pytest.raises(ConfigError, match=rf"^data: .*{says}.*\. fork=run starts a new run") as caught:
        check_same_data(read(str(tmp_path / "data")), known, Path("run"))
    assert ("Pillow 9.8.7" in str(caught.value)) == (says == OTHERS)
    assert "earlier version" in check_same_data(images, replace(known, data={}), Path("run"))[0]


@pytest.mark.parametrize("what", ["all images", "a shard"])
def test_other_data_is_refused_by_name(what, tmp_path, request):
    fixture, exchange, says = EXCHANGES[what]
    home = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "home")
    run = only(home / "outputs" / "x").relative_to(home)
    exchange(home / "data")
    done = train(f"resume={run}", f"data.path={home / 'data'}", "trainer.steps=3", cwd=home)
    assert_one_message(done, "train", f"data: .*{says}.*fork={run} ")


@pytest.mark.parametrize("fixture", ["of_folder", "of_shards"])
def test_the_same_data_elsewhere_is_resumed(fixture, tmp_path, request):
    home = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "home")
    (home / "data").rename(home / "moved")
    for path in home.glob("moved/**/*.*"):
        os.utime(path)
    where = ["data.path=moved", "data.cache_dir=another"]
    done = train(f"resume={only(home / 'outputs' / 'x')}", *where, "trainer.steps=3", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "earlier version" not in done.stdout


def test_a_cache_that_is_damaged_while_training_ends_the_run_by_its_name(of_folder, tmp_path):
    home = shutil.copytree(of_folder, tmp_path / "home")
    data = make_pictures(home / "copy")  # under another name: decoded anew, into a file that is damaged below
    read(data, home / "cache", memory_mb=0)
    (path,) = [path for path in (home / "cache").iterdir() if path.stat().st_mtime > data.stat().st_mtime]
    for image in range(COUNT):
        flip_byte(path, 128 + image * 3 * SIZE**2)
    run = only(home / "outputs" / "x")
    where = ["data.path=copy", "data.cache_dir=cache", "data.memory_mb=0", "trainer.steps=9"]
    done = train(f"resume={run}", *where, cwd=home)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(rf"step 2: .*{path.name} is damaged: image \d+ .*remove that file", done.stderr), done.stderr
    path.unlink()
    assert train(f"resume={run}", *where, cwd=home).returncode == 0
