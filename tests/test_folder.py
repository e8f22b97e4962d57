"""A folder of pictures: found, decoded, cached."""

import errno
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import smooth
from PIL import Image

from ddpm_cli.data import decode, decode_once, folder
from ddpm_cli.data import decoded_cache as caches
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.data.scan import find_images
from ddpm_cli.data.stored_pixels import StoredPixels


@pytest.fixture
def pictures(tmp_path, rng) -> Path:
    """40 pictures of different sizes in nested folders, besides files to be left alone."""
    root = tmp_path / "pictures"
    for index in range(40):
        path = (
            root / ("a", "a/deeper", "b", "")[index % 4] / f"{index}.{('png', 'JPG', 'webp', 'jpeg', 'BMP')[index % 5]}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(rng, 10 + index, 30 - index % 7).save(path)
    for name in (".hidden/x.png", "a/._1.png", "notes.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("not an image")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "ddpm-cli"


def test_folder_holds_every_image_in_posix_order(pictures, cache, capfd):
    images = folder.folder(str(pictures), image_size=[8, 12], channels=1)
    names = sorted(
        p.relative_to(pictures).as_posix()
        for p in pictures.rglob("*")
        if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".bmp"} and not re.search(r"/\.", p.as_posix())
    )
    assert len(names) == 40
    np.testing.assert_array_equal(images.pixels, [decode.decode(pictures / name, (8, 12), 1) for name in names])
    assert (images.shape, images.name, images.flip) == ((1, 8, 12), "pictures", "horizontal")
    assert [p.suffix for p in cache.iterdir()] == [".npy"]
    np.testing.assert_array_equal(np.load(next(cache.iterdir())), images.pixels)  # an ordinary .npy file
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("cache")
def test_second_run_decodes_nothing(pictures, decoded):
    first = folder.folder(str(pictures), image_size=8)
    assert len(decoded) == 40
    second = folder.folder(str(pictures), image_size=8, flip="none", workers=0)
    assert len(decoded) == 40
    np.testing.assert_array_equal(first.pixels, second.pixels)
    folder.folder(str(pictures), image_size=8, channels=1)
    folder.folder(str(pictures), image_size=[8, 9])
    assert len(decoded) == 120
    folder.folder(str(pictures), image_size=8)
    assert len(decoded) == 120


@pytest.mark.usefixtures("cache")
def test_changed_added_and_removed_images_are_noticed(pictures, decoded):
    folder.folder(str(pictures), image_size=8)
    changed = pictures / "a" / "4.BMP"
    before = changed.stat()
    Image.new("RGB", Image.open(changed).size, "red").save(changed)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert changed.stat().st_size == before.st_size
    red = np.broadcast_to(np.array([255, 0, 0])[:, None, None], (3, 8, 8))
    # In the order of names: ten at the top, which begin with digits; then a/0, a/12, a/16, a/20, ..., a/36, a/4.
    np.testing.assert_array_equal(folder.folder(str(pictures), image_size=8).pixels[18], red)
    (pictures / "added.png").write_bytes(changed.read_bytes())
    assert len(folder.folder(str(pictures), image_size=8)) == 41
    changed.unlink()
    assert len(folder.folder(str(pictures), image_size=8)) == 40
    before = (pictures / "added.png").stat()
    (pictures / "added.png").write_bytes((pictures / "a" / "0.png").read_bytes())
    os.utime(pictures / "added.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    folder.folder(str(pictures), image_size=8)
    assert len(decoded) == 40 + 40 + 41 + 40 + 40


@pytest.mark.usefixtures("cache")
def test_another_way_of_decoding_is_another_cache(pictures, decoded, monkeypatch):
    folder.folder(str(pictures))
    monkeypatch.setattr(caches, "DECODE_VERSION", caches.DECODE_VERSION + 1)
    folder.folder(str(pictures))
    assert len(decoded) == 80


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"0", lambda b: b[:0], lambda b: b"\0" + b[1:]])
def test_damaged_cache_is_rebuilt(pictures, cache, decoded, damage):
    good = folder.folder(str(pictures), image_size=8).pixels
    file = next(cache.iterdir())
    content = file.read_bytes()
    file.write_bytes(damage(content))
    np.testing.assert_array_equal(folder.folder(str(pictures), image_size=8).pixels, good)
    assert len(decoded) == 80
    assert file.read_bytes() == content


@pytest.mark.usefixtures("cache")
def test_memory_limit_decides_between_memory_and_the_file(pictures):
    small = folder.folder(str(pictures), image_size=128, memory_mb=2)  # 40 * 3 * 128 * 128 is 1.9 MiB
    large = folder.folder(str(pictures), image_size=128, memory_mb=1)
    assert isinstance(small.pixels, np.ndarray)
    assert isinstance(large.pixels, StoredPixels)
    assert small.fingerprint == large.fingerprint is not None
    batches = [BatchLoader(images, 64, seed=0).batch(3) for images in (small, large)]
    assert torch.equal(batches[0].pixels, batches[1].pixels)


def test_worker_processes_give_the_same_pixels(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(decode_once, "FEW_IMAGES", 1)
    one, two = (folder.folder(str(pictures), workers=n, cache_dir=str(tmp_path / f"cache{n}")) for n in (0, 2))
    np.testing.assert_array_equal(one.pixels, two.pixels)


@pytest.mark.usefixtures("cache")
def test_links_inside_the_folder_are_followed_but_not_in_circles(pictures, tmp_path):
    (tmp_path / "link").symlink_to(pictures)
    (pictures / "a" / "circle").symlink_to(pictures)
    (pictures / "a" / "there").symlink_to("../b")
    (pictures / "b" / "back").symlink_to("../a")
    images = folder.folder(str(tmp_path / "link"))
    assert (len(images), images.name) == (40, "link")
    (pictures / "a.png").symlink_to("a/0.png")
    assert len(folder.folder(str(pictures))) == 41


@pytest.mark.usefixtures("cache")
def test_a_hidden_folder_that_is_linked_counts_once(pictures):
    store = pictures / ".store"
    (pictures / "a").rename(store)
    for link in ("b/1", "b/2", "c"):
        (pictures / link).symlink_to(store)
    assert len(folder.folder(str(pictures))) == 40
    names = [image.name for image in find_images(str(pictures))[0]]
    assert "b/1/deeper/1.JPG" in names
    assert not any(name.startswith(("b/2/", "c/")) for name in names)


@pytest.mark.usefixtures("cache")
def test_wrong_paths_are_named(tmp_path, pictures):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nowhere"))):
        folder.folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=f"{re.escape(str(pictures / 'notes.txt'))} is a file"):
        folder.folder(str(pictures / "notes.txt"))
    (pictures / ".hidden" / "x.png").unlink()
    with pytest.raises(ValueError, match=r"hidden: .*\.png, \.jpg, \.jpeg, \.webp, \.bmp"):
        folder.folder(str(pictures / ".hidden"))


@pytest.mark.parametrize(
    ("key", "value"), [("workers", -2), ("memory_mb", -1), ("image_size", 0), ("channels", 4), ("on_bad", "ignore")]
)
def test_wrong_settings_are_named(pictures, key, value):
    with pytest.raises(ValueError, match=f"{key} must be .*got '?{value}"):
        folder.folder(str(pictures), **{key: value})


def test_cache_that_cannot_be_written_is_named(pictures):
    below_a_file = pictures / "notes.txt" / "cache"
    with pytest.raises(OSError, match=rf"{re.escape(str(below_a_file))} .*data\.cache_dir"):
        folder.folder(str(pictures), cache_dir=str(below_a_file))


def test_full_disk_is_named_and_leaves_nothing(pictures, cache, decoded, monkeypatch):
    usage = shutil.disk_usage(pictures)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
        with pytest.raises(OSError, match=rf"{re.escape(str(cache))} .*0 MB are free.*data\.cache_dir"):
            folder.folder(str(pictures))
    assert decoded == []

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"{re.escape(str(cache))} .*No space left.*data\.cache_dir"):
        folder.folder(str(pictures))
    assert list(cache.iterdir()) == []


def test_interrupted_decoding_leaves_nothing(pictures, cache, monkeypatch):
    original = decode.decode

    def interrupted(path, *more):
        if path.endswith("b/2.webp"):
            assert len(list(cache.iterdir())) == 1
            raise KeyboardInterrupt
        return original(path, *more)

    monkeypatch.setattr(decode, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.folder(str(pictures))
    assert list(cache.iterdir()) == []


def test_files_of_a_run_that_was_killed_are_removed(pictures, cache):
    cache.mkdir(parents=True)
    names = {"ddpm-cli-0123abcd.tmp": 25, "ddpm-cli-4567abcd.tmp": 1, "somebody-elses.tmp": 25}  # hours since
    for name, hours in names.items():
        (cache / name).touch()
        os.utime(cache / name, times=(time.time() - 3600 * hours,) * 2)
    folder.folder(str(pictures))
    assert {path.name for path in cache.glob("*.tmp")} == {"ddpm-cli-4567abcd.tmp", "somebody-elses.tmp"}
