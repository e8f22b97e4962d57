"""What of a picture is shown, and what is under what is transparent: against PIL, and formulas over its numbers."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import add_to_tar, smooth
from PIL import Image, ImageOps, PngImagePlugin

from ddpm_cli.data.decode import decode
from ddpm_cli.data.decoding_memory import MOST
from ddpm_cli.data.folder import folder
from ddpm_cli.data.framing import LONGEST, packed, slot_bytes, unpacked, window
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.data.reading import Reading, over
from ddpm_cli.data.webdataset import webdataset

PAD, RANDOM = Reading(crop="pad"), Reading(crop="random")
OF_OTHER_SHAPES = [((8, 16), (40, 37)), ((31, 7), (97, 33)), ((64, 64), (13, 29)), ((9, 9), (9, 9))]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1).astype(int)


# pad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "source"), OF_OTHER_SHAPES)
def test_pad_is_pils(size, source, tmp_path, rng):
    image = Image.fromarray(rng.integers(0, 256, (*source, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    for colour in ((255, 255, 255), (0, 10, 250)):
        found = decode(tmp_path / "x.png", size, 3, reading=Reading(background=colour, crop="pad"))
        assert np.abs(found - pixels(ImageOps.pad(image, size[::-1], color=colour))).max() <= 1
    grey = decode(tmp_path / "x.png", size, 1, reading=Reading(background=(0, 10, 250), crop="pad"))
    oracle = np.asarray(ImageOps.pad(image.convert("L"), size[::-1], color=34))  # 0.587 * 10 + 0.114 * 250
    assert np.abs(grey[0] - oracle.astype(int)).max() <= 1


def test_a_turned_jpeg_is_padded_as_it_is_seen(tmp_path, rng):
    exif = Image.Exif()
    exif[0x112] = 6
    smooth(rng, 805, 1209).save(tmp_path / "x.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        oracle = ImageOps.pad(ImageOps.exif_transpose(image), (40, 41), color="white")
    assert np.abs(decode(tmp_path / "x.jpg", (41, 40), 3, reading=PAD) - pixels(oracle)).max() <= 3


# random --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_windows_are_parts_of_the_picture_at_every_place(turned, tmp_path, rng):
    long = rng.integers(0, 256, (8, 13, 3), dtype=np.uint8)
    long = long.transpose(1, 0, 2).copy() if turned else long
    Image.fromarray(long).save(tmp_path / "x.png")
    kept = decode(tmp_path / "x.png", (8, 8), 3, reading=RANDOM)
    whole = long.transpose(2, 0, 1)
    np.testing.assert_array_equal(kept, whole)  # no pixel is made up, as nothing is scaled
    parts = [whole[:, at : at + 8] if turned else whole[:, :, at : at + 8] for at in range(6)]
    for i in range(600):
        np.testing.assert_array_equal(window(kept, (8, 8), i / 600), parts[i // 100])


def test_of_the_thinnest_picture_a_pixel_is_left(tmp_path):
    Image.new("RGB", (1, 300), "red").save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", (16, 16), 3, reading=PAD)
    assert (found == np.array([255, 0, 0])[:, None, None]).all(0).sum() == 16


@pytest.mark.parametrize(("size", "source"), [*OF_OTHER_SHAPES, ((16, 16), (300, 2))])
def test_what_is_kept_for_windows_is_the_picture_scaled_to_cover(size, source, tmp_path, rng):
    image = smooth(rng, *source)
    image.save(tmp_path / "x.png")
    kept = decode(tmp_path / "x.png", size, 3, reading=RANDOM)
    shape = kept.shape[1:]
    assert any(side == shown for side, shown in zip(shape, size, strict=True))
    assert all(shown <= side <= LONGEST * shown for side, shown in zip(shape, size, strict=True))
    oracle = ImageOps.fit(image, shape[::-1])  # of longer pictures the middle
    assert np.abs(kept - pixels(oracle)).max() <= 1
    slot = np.frombuffer(packed(kept, size), np.uint8)
    assert len(slot) == slot_bytes(3, size)
    np.testing.assert_array_equal(unpacked(slot, 3), kept)


@pytest.fixture
def long_pictures(tmp_path, rng) -> Path:
    """Twelve PNGs 8 pixels high and 16 wide, or the other way round; of each every column, or row, has a number."""
    root = tmp_path / "long"
    root.mkdir()
    for number in range(12):
        values = np.tile((np.arange(16) + 16 * number).astype(np.uint8), (8, 1))
        Image.fromarray(values.T.copy() if number % 3 == 0 else values).save(root / f"{number:02}.png")
    return root


def read(root: Path, tmp_path: Path, **options) -> ImageSet:
    shared = {"image_size": 8, "channels": 1, "flip": "none", "crop": "random", "workers": 0}
    return folder(str(root), cache_dir=str(tmp_path / "cache"), **shared | options)


def seen(images: ImageSet, steps: int = 6, **options) -> torch.Tensor:
    loader = BatchLoader(images, 8, seed=4, **options)
    return torch.cat([loader.batch(step).pixels for step in range(steps)])


def test_every_step_shows_another_window_and_a_resumed_one_the_same(long_pictures, tmp_path):
    images = read(long_pictures, tmp_path)
    assert images.shape == (1, 8, 8)
    first = seen(images, 60)
    of_which, offset = first[:, 0, 0, 0] // 16, first[:, 0, 0, 0] % 16
    assert torch.equal(first[:, 0].amax((1, 2)) - first[:, 0].amin((1, 2)), torch.full((480,), 7, dtype=torch.uint8))
    assert len(torch.unique(offset)) == 9, "from the first column to the last"
    assert torch.bincount(offset.int()).min() > 480 / 9 - 6 * (480 / 9) ** 0.5
    assert len(torch.unique(of_which * 16 + offset)) == 12 * 9
    loader = BatchLoader(images, 8, seed=4)
    assert torch.equal(loader.batch(37).pixels, first[37 * 8 : 38 * 8])
    np.testing.assert_array_equal(loader.first_images(12), first[:12].numpy())


def test_windows_do_not_depend_on_workers_memory_or_processes(long_pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_cli.data.decode_once.FEW_IMAGES", 1)
    first = seen(read(long_pictures, tmp_path))
    assert torch.equal(seen(read(long_pictures, tmp_path, memory_mb=0)), first)
    assert torch.equal(seen(read(long_pictures, tmp_path / "elsewhere", workers=2)), first)
    parts = [seen(read(long_pictures, tmp_path), rank=rank, world_size=2).reshape(6, 4, 1, 8, 8) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts, dim=1).flatten(0, 1), first)


@pytest.mark.parametrize("workers", [0, 2])
def test_tar_files_show_the_same_windows(workers, long_pictures, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for file in sorted(long_pictures.iterdir()):
            add_to_tar(tar, file.name, file.read_bytes())
    images = webdataset(
        str(tmp_path / "x.tar"), image_size=8, channels=1, flip="none", crop="random", workers=workers,
        cache_dir=str(tmp_path / "index"),
    )  # fmt: skip
    of_folder, indices, places = read(long_pictures, tmp_path), np.arange(12)[::-1].copy(), np.linspace(0, 0.99, 12)
    np.testing.assert_array_equal(images.pixels.at(indices, places), of_folder.pixels.at(indices, places))
    np.testing.assert_array_equal(images.pixels[indices], of_folder.pixels[indices])
    assert (images.pixels[np.array([1])][0, 0, 0] == 16 + np.arange(4, 12)).all(), "by itself the middle"


def test_a_crop_is_another_cache_and_damage_is_noticed(long_pictures, tmp_path, decoded):
    for crop in ("center", "random", "pad", "random"):
        read(long_pictures, tmp_path, crop=crop)
    assert len(decoded) == 36
    (file,) = (file for file in (tmp_path / "cache").glob("*.npy") if np.load(file).ndim == 2)
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)
    read(long_pictures, tmp_path)
    assert len(decoded) == 48


def test_random_crops_need_more_than_is_shown():
    with pytest.raises(ValueError, match="x: random_crop needs pixels of which more is there than is shown"):
        ImageSet(np.zeros((1, 1, 2, 2), np.uint8), "x", random_crop=True)


# Transparency --------------------------------------------------------------------------------------------------------


def in_mode(mode: str, rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """A PNG of 6 x 5 pixels, and its red, green, blue and alpha, int `[4, H, W]`."""
    straight = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    info = PngImagePlugin.PngInfo()
    if mode == "RGBA":
        image = Image.fromarray(straight)
    elif mode == "LA":
        straight[..., 1:3] = straight[..., :1]
        image = Image.fromarray(straight[..., [0, 3]], "LA")
    elif mode == "palette":
        numbers = rng.integers(0, 4, (6, 5), dtype=np.uint8)
        palette = rng.integers(0, 256, (4, 4), dtype=np.uint8)
        image = Image.fromarray(numbers, "P")
        image.putpalette(palette[:, :3].tobytes())
        image.info["transparency"] = palette[:, 3].tobytes()
        straight = palette[numbers]
    elif mode == "16-bit":
        numbers = rng.integers(0, 4, (6, 5)).astype(np.uint16)
        image = Image.fromarray(numbers * 21845)
        image.info["transparency"] = 21845  # of the numbers there are, the second
        straight = np.stack([numbers * 85] * 3 + [np.where(numbers == 1, 0, 255)], axis=-1)
    else:  # one colour is transparent
        straight = np.where(rng.random((6, 5, 1)) < 0.5, (9, 8, 7, 0), straight)
        straight[..., 3] = np.where((straight[..., :3] == (9, 8, 7)).all(-1), 0, 255)
        image = Image.fromarray(straight[..., :3].astype(np.uint8))
        image.info["transparency"] = (9, 8, 7)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info, transparency=image.info.get("transparency"))
    return file.getvalue(), straight.transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette", "16-bit", "a colour"])
def test_what_is_transparent_is_as_the_background_says(mode, tmp_path, rng):
    content, straight = in_mode(mode, rng)
    (tmp_path / "x.png").write_bytes(content)
    colours, alpha = straight[:3], straight[3:] / 255
    for below in ((255, 255, 255), (0, 0, 0), (200, 10, 90)):
        found = decode(tmp_path / "x.png", (6, 5), 3, reading=Reading(background=below))
        expected = colours * alpha + np.array(below)[:, None, None] * (1 - alpha)
        assert np.abs(found - expected).max() <= 1
    if mode != "16-bit":
        ignored = decode(tmp_path / "x.png", (6, 5), 3, reading=Reading(background="ignore"))
        np.testing.assert_array_equal(ignored, colours)
    kept = decode(tmp_path / "x.png", (6, 5), 4, reading=Reading(background="keep"))
    np.testing.assert_array_equal(kept, np.where(straight[3] > 0, straight, 0))


def test_opaque_pictures_are_kept_opaque(tmp_path, rng):
    picture = smooth(rng, 9, 9)
    for name, image in (("rgb.png", picture), ("grey.png", picture.convert("L")), ("x.jpg", picture)):
        image.save(tmp_path / name)
        kept = decode(tmp_path / name, (9, 9), 4, reading=Reading(background="keep"))
        assert (kept[3] == 255).all()
        np.testing.assert_array_equal(kept[:3], decode(tmp_path / name, (9, 9), 3))


def test_what_lies_below_does_not_come_through_where_pictures_are_scaled(tmp_path):
    """Colours are scaled by how much is seen of them: else there is a fringe of what nobody ever saw."""
    straight = np.zeros((32, 32, 4), np.uint8)
    straight[:, :, 1] = 255  # green below
    straight[:, 7:] = (255, 0, 0, 255)
    Image.fromarray(straight).save(tmp_path / "x.png")
    kept = decode(tmp_path / "x.png", (8, 8), 4, reading=Reading(background="keep"))
    assert 0 < kept[3, 0, 1] < 255, "half a pixel"
    seen_at = kept[3] > 0
    assert (kept[0][seen_at] >= 254).all()
    assert (kept[1] == 0).all()


def test_what_is_kept_over_a_colour_is_what_is_laid_over_it(tmp_path, rng):
    """Two ways to the same picture: scaled with alpha and then composed, or composed and then scaled."""
    straight = np.asarray(smooth(rng, 40, 40).convert("RGBA")).copy()
    straight[..., 3] = np.asarray(smooth(rng, 40, 40).convert("L"))
    Image.fromarray(straight).save(tmp_path / "x.png")
    for below in ((255, 255, 255), (10, 90, 200)):
        kept = decode(tmp_path / "x.png", (16, 16), 4, reading=Reading(background="keep"))
        laid = decode(tmp_path / "x.png", (16, 16), 3, reading=Reading(background=below))
        assert np.abs(over(kept, below).astype(int) - laid).max() <= 2
    assert over(kept[None], below).shape == (1, 3, 16, 16)


def test_padding_is_transparent_where_transparency_is_kept(tmp_path):
    Image.new("RGB", (8, 4), "red").save(tmp_path / "x.png")
    kept = decode(tmp_path / "x.png", (8, 8), 4, reading=Reading(background="keep", crop="pad"))
    assert (kept[:, [0, 1, 6, 7]] == 0).all()
    assert (kept[:, 2:6].transpose(1, 2, 0) == (255, 0, 0, 255)).all()


def test_a_value_range_is_that_of_the_picture_not_of_the_background(tmp_path):
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    alpha = np.array([[255, 255], [0, 0]], np.uint8)
    Image.merge("LA", (Image.fromarray(labels), Image.fromarray(alpha))).save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", (2, 2), 1, reading=Reading((0, 1), (128, 128, 128)))
    assert found.tolist() == [[[0, 255], [128, 128]]]
    kept = decode(tmp_path / "x.png", (2, 2), 4, MOST, Reading((0, 1), "keep"))
    assert kept[:, 0].T.tolist() == [[0, 0, 0, 255], [255, 255, 255, 255]]
