"""A folder of pictures: every mode and format decoded, cached, and what is wrong named."""

import errno
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from ddpm_cli.data import decode, folder
from ddpm_cli.data.batches import Batches


def smooth(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """An RGB picture without symmetry that survives JPEG and scaling."""
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


LEFT, RIGHT, WHITE = (200, 30, 40), (10, 220, 100), (255, 255, 255)


def halves(mode: str, left, right) -> Image.Image:
    """16 x 16, the left half in one colour and the right half in another."""
    image = Image.new(mode, (16, 16), left)
    image.paste(right, (8, 0, 16, 16))
    return image


def sixteen_bit(left: int, right: int) -> Image.Image:
    return Image.fromarray(np.repeat([[left, right]], 8, axis=1).repeat(16, axis=0).astype(np.uint16))


def palette(*, transparency: int | None) -> Image.Image:
    image = halves("P", 0, 1)
    image.putpalette([*LEFT, *RIGHT])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("name", "image", "options", "left", "right", "tolerance"),
    [
        ("1.png", halves("1", 0, 1), {}, (0, 0, 0), WHITE, 0),
        ("L.png", halves("L", 10, 200), {}, (10, 10, 10), (200, 200, 200), 0),
        ("L.jpg", halves("L", 10, 200), {}, (10, 10, 10), (200, 200, 200), 3),
        ("LA.png", halves("LA", (10, 255), (200, 0)), {}, (10, 10, 10), WHITE, 0),
        ("P.png", palette(transparency=None), {}, LEFT, RIGHT, 0),
        ("P.bmp", palette(transparency=None), {}, LEFT, RIGHT, 0),
        ("P-transparent.png", palette(transparency=1), {}, LEFT, WHITE, 0),
        ("RGB.png", halves("RGB", LEFT, RIGHT), {}, LEFT, RIGHT, 0),
        ("RGB.bmp", halves("RGB", LEFT, RIGHT), {}, LEFT, RIGHT, 0),
        ("RGB.webp", halves("RGB", LEFT, RIGHT), {"lossless": True}, LEFT, RIGHT, 0),
        ("RGB-key.png", halves("RGB", LEFT, RIGHT), {"transparency": RIGHT}, LEFT, WHITE, 0),
        ("RGBA.png", halves("RGBA", (*LEFT, 255), (*RIGHT, 51)), {}, LEFT, (206, 248, 224), 1),  # 0.2 c + 0.8 * 255
        ("RGBA.webp", halves("RGBA", (*LEFT, 255), (*RIGHT, 0)), {"lossless": True}, LEFT, WHITE, 0),
        ("CMYK.jpg", halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 51)), {}, (255, 0, 0), (0, 204, 0), 4),
        ("YCbCr.jpg", halves("YCbCr", (76, 85, 255), (150, 44, 21)), {}, (255, 0, 0), (0, 255, 0), 5),
        ("16.png", sixteen_bit(257 * 100, 1000), {}, (100, 100, 100), (4, 4, 4), 0),  # 1000 / 257 = 3.9
        ("I.tiff", halves("I", 65535, 128), {}, WHITE, (0, 0, 0), 0),
    ],
)
def test_every_mode_becomes_rgb_and_grey(name, image, options, left, right, tolerance, tmp_path):
    image.save(tmp_path / name, **options)
    pixels = decode.decode(tmp_path / name, (16, 16), 3).astype(int)
    expected = np.empty((3, 16, 16), int)
    expected[:, :, :8] = np.array(left)[:, None, None]
    expected[:, :, 8:] = np.array(right)[:, None, None]
    assert np.abs(pixels - expected)[:, :, [0, 1, 14, 15]].max() <= tolerance
    if tolerance == 0:
        np.testing.assert_array_equal(pixels, expected)
    grey = decode.decode(tmp_path / name, (16, 16), 1)
    assert (grey.shape, grey.dtype) == ((1, 16, 16), np.uint8)
    luma = np.tensordot([0.299, 0.587, 0.114], pixels, axes=1)
    assert np.abs(grey[0] - luma).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation, tmp_path, rng):
    upright = np.asarray(smooth(rng, 24, 40))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # "turn clockwise to view": it was stored turned counter-clockwise
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(decode.decode(tmp_path / "x.png", (24, 40), 3), upright.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_big_jpeg_decoded_at_reduced_size_is_the_same_picture(orientation, tmp_path, rng):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    smooth(rng, 805, 1209).save(tmp_path / "x.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        oracle = ImageOps.fit(ImageOps.exif_transpose(image), (48, 40))
    difference = np.abs(
        decode.decode(tmp_path / "x.jpg", (40, 48), 3) - np.asarray(oracle).transpose(2, 0, 1).astype(int)
    )
    assert difference.max() <= 3


def test_the_centre_is_kept_and_the_rest_cropped(tmp_path):
    strip = Image.new("RGB", (60, 20), "red")
    strip.paste("lime", (20, 0, 40, 20))
    strip.paste("blue", (40, 0, 60, 20))
    green = np.broadcast_to(np.array([0, 255, 0])[:, None, None], (3, 20, 20))
    for image in (strip, strip.transpose(Image.Transpose.ROTATE_90)):
        image.save(tmp_path / "x.png")
        np.testing.assert_array_equal(decode.decode(tmp_path / "x.png", (20, 20), 3), green)
        np.testing.assert_array_equal(decode.decode(tmp_path / "x.png", (10, 10), 3)[:, 2:-2, 2:-2], green[:, :6, :6])


@pytest.mark.parametrize(("size", "source"), [((8, 16), (40, 37)), ((31, 7), (97, 33)), ((64, 64), (13, 29))])
def test_cover_and_crop_agree_with_pil(size, source, tmp_path, rng):
    image = Image.fromarray(rng.integers(0, 256, (*source, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    oracle = np.asarray(ImageOps.fit(image, size[::-1])).transpose(2, 0, 1)
    assert np.abs(decode.decode(tmp_path / "x.png", size, 3) - oracle.astype(int)).max() <= 1


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(picture, "PNG")
    files = {
        "text.png": (b"no image at all", "not in a known image format"),
        "truncated.png": (picture.getvalue()[:1500], "truncated"),
        "bomb.png": (picture.getvalue(), "decompression bomb"),
        "absent.png": (None, "No such file"),
    }
    for name, (content, reason) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with monkeypatch.context() as patch:
            if name == "bomb.png":
                patch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
                assert decode.decode(tmp_path / name, (8, 8), 3).shape == (3, 8, 8), "large is no bomb"
                patch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
            with pytest.raises(ValueError, match=f"cannot read image .*{re.escape(name)}: .*{reason}"):
                decode.decode(tmp_path / name, (8, 8), 3)


@pytest.mark.parametrize(("mode", "value", "reason"), [("F", 0.5, "floating-point"), ("I", 70000, "16 bits")])
def test_pixels_of_unknown_range_are_refused(mode, value, reason, tmp_path):
    Image.new(mode, (8, 8), value).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=f"x.tiff: .*{reason}"):
        decode.decode(tmp_path / "x.tiff", (8, 8), 3)


def test_decoding_into_a_file_skips_what_cannot_be_read(tmp_path):
    for name, colour in (("a.png", 10), ("c.png", 30)):
        Image.new("L", (4, 4), colour).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    (tmp_path / "pixels").write_bytes(b"\xff" * 100)
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    failures = decode.decode_into(tmp_path / "pixels", 5, paths, (2, 2), 1)
    assert [paths[1] in failure for failure in failures] == [True]
    assert (tmp_path / "pixels").read_bytes() == b"\xff" * 5 + b"\n" * 4 + b"\xff" * 4 + b"\x1e" * 4 + b"\xff" * 83


def test_workers_need_not_import_torch():
    code = "import ddpm_cli.data.decode, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Grows by the path of every image that is decoded in this process."""
    paths = []
    original = decode.decode

    def recording(path, size, channels):
        paths.append(path)
        return original(path, size, channels)

    monkeypatch.setattr(decode, "decode", recording)
    return paths


def test_folder_holds_every_image_in_posix_order(pictures, cache, capfd):
    images = folder.folder(str(pictures), image_size=[8, 12], channels=1)
    names = sorted(
        p.relative_to(pictures).as_posix()
        for p in pictures.rglob("*")
        if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".bmp"} and not re.search(r"/\.", p.as_posix())
    )
    assert len(names) == 40
    np.testing.assert_array_equal(images.pixels, [decode.decode(pictures / name, (8, 12), 1) for name in names])
    assert (images.shape, images.name, images.flip) == ((1, 8, 12), "pictures", True)
    assert [p.suffix for p in cache.iterdir()] == [".npy"]
    np.testing.assert_array_equal(np.load(next(cache.iterdir())), images.pixels)  # an ordinary .npy file
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("cache")
def test_second_run_decodes_nothing(pictures, decoded):
    first = folder.folder(str(pictures), image_size=8)
    assert len(decoded) == 40
    second = folder.folder(str(pictures), image_size=8, flip=False, workers=0)
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
    monkeypatch.setattr(folder, "DECODE_VERSION", folder.DECODE_VERSION + 1)
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
def test_memory_limit_decides_between_memory_and_map(pictures):
    small = folder.folder(str(pictures), image_size=128, memory_mb=2)  # 40 * 3 * 128 * 128 is 1.9 MiB
    large = folder.folder(str(pictures), image_size=128, memory_mb=1)
    assert not isinstance(small.pixels, np.memmap)
    assert isinstance(large.pixels, np.memmap)
    assert not large.pixels.flags.writeable
    assert torch.equal(Batches(small, 64, seed=0).load(3), Batches(large, 64, seed=0).load(3))


def test_worker_processes_give_the_same_pixels_and_failures(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "FEW_IMAGES", 1)
    one, two = (folder.folder(str(pictures), workers=n, cache_dir=str(tmp_path / f"cache{n}")) for n in (0, 2))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    (pictures / "b" / "broken.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1 images in .*cannot be read:\n  .*/b/broken.png: "):
        folder.folder(str(pictures), workers=2, cache_dir=str(tmp_path / "cache2"))


def test_death_of_a_worker_process_is_reported(pictures, cache, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("import os\ndef decode_into(*_, **__): os._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(folder, "decode_into", importlib.import_module("dying").decode_into)
    monkeypatch.setattr(folder, "FEW_IMAGES", 1)
    with pytest.raises(RuntimeError, match=r"died: data\.workers=0"):
        folder.folder(str(pictures), workers=2)
    assert list(cache.iterdir()) == []


def test_unreadable_images_are_all_found_and_ten_are_listed(pictures, cache):
    truncated = (pictures / "a" / "deeper" / "1.JPG").read_bytes()[:-200]
    for index in range(12):
        (pictures / f"broken{index:02}.jpg").write_bytes(truncated if index else b"")
    with pytest.raises(ValueError, match="12 images") as caught:
        folder.folder(str(pictures))
    lines = str(caught.value).splitlines()
    assert [re.sub(r".*/(.*): .*", r"\1", line) for line in lines[1:11]] == [f"broken{i:02}.jpg" for i in range(10)]
    assert all(re.search(r"jpg: \w+", line) for line in lines[1:11])
    assert lines[11].strip() == "and 2 more"
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("cache")
def test_linked_folders_are_followed_but_not_in_circles(pictures, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(pictures)
    (pictures / "a" / "circle").symlink_to(pictures)
    assert len(folder.folder(str(tmp_path / "linked"))) == 40


@pytest.mark.usefixtures("cache")
def test_wrong_paths_are_named(tmp_path, pictures):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nowhere"))):
        folder.folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=f"{re.escape(str(pictures / 'notes.txt'))} is a file"):
        folder.folder(str(pictures / "notes.txt"))
    (pictures / ".hidden" / "x.png").unlink()
    with pytest.raises(ValueError, match=r"hidden: .*\.png, \.jpg, \.jpeg, \.webp, \.bmp"):
        folder.folder(str(pictures / ".hidden"))


@pytest.mark.parametrize(("key", "value"), [("workers", -2), ("memory_mb", -1), ("image_size", 0), ("channels", 4)])
def test_wrong_settings_are_named(pictures, key, value):
    with pytest.raises(ValueError, match=f"{key} must be .*got {value}"):
        folder.folder(str(pictures), **{key: value})


def test_cache_that_cannot_be_written_is_named(pictures):
    below_a_file = pictures / "notes.txt" / "cache"
    with pytest.raises(OSError, match=rf"{re.escape(str(below_a_file))} .*data\.cache_dir"):
        folder.folder(str(pictures), cache_dir=str(below_a_file))


def test_full_disk_is_named_and_leaves_nothing(pictures, cache, decoded, monkeypatch):
    usage = folder.shutil.disk_usage(pictures)
    with monkeypatch.context() as patch:
        patch.setattr(folder.shutil, "disk_usage", lambda _: usage._replace(free=10))
        with pytest.raises(OSError, match=rf"{re.escape(str(cache))} .*0 MiB are free.*data\.cache_dir"):
            folder.folder(str(pictures))
    assert decoded == []

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder.os, "fsync", full)
    with pytest.raises(OSError, match=rf"{re.escape(str(cache))} .*No space left.*data\.cache_dir"):
        folder.folder(str(pictures))
    assert list(cache.iterdir()) == []


def test_interrupted_decoding_leaves_nothing(pictures, cache, monkeypatch):
    original = decode.decode

    def interrupted(path, size, channels):
        if path.endswith("b/2.webp"):
            assert len(list(cache.iterdir())) == 1
            raise KeyboardInterrupt
        return original(path, size, channels)

    monkeypatch.setattr(decode, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.folder(str(pictures))
    assert list(cache.iterdir()) == []
