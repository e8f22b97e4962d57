"""Sets from which little can be learned: what is said, and that the option which is named helps."""

from pathlib import Path

import numpy as np
import pytest
from commands import TINY_RUN, only, train
from pictures import smooth
from PIL import Image

from ddpm_cli.data.decode import decode
from ddpm_cli.data.degenerate import degenerate
from ddpm_cli.data.folder import folder
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.loader import BatchLoader, augment
from ddpm_cli.data.reading import Reading
from ddpm_cli.io.images import to_uint8

OPTIONS = ("channels", "value_range", "background")


def said(pixels: np.ndarray) -> list[str]:
    return degenerate(ImageSet(pixels, "x", flip="none"), pixels, OPTIONS)


@pytest.fixture
def good(rng) -> np.ndarray:
    return rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)


def test_of_an_ordinary_set_nothing_is_said(good):
    assert said(good) == said(good[:, :1]) == said(good[:1]) == []
    assert said(np.repeat(good, 3, axis=0)) == [], "each image three times"


def test_equal_images_are_counted(good):
    same = good.copy()
    same[1:38] = same[0]
    assert said(same) == ["38 of 40 images are equal: the network can only learn that one"]
    noise = (good[:1] // 2 + (good & 1)).astype(np.uint8)
    assert said(noise) == ["the images differ from their mean by less than 2 of 255: there is hardly anything to learn"]


def test_values_and_channels_are_looked_at(good):
    (few,) = said(good // 17)
    assert few.startswith("all values are between 0 and 15, of 0 to 255: set data.value_range=[LOW,HIGH]")
    assert said(good // 15) == []
    assert said(np.repeat(good[:, :1], 3, axis=1)) == [
        "greyscale stored as RGB: all three channels are equal: data.channels=1 trains on one channel"
    ]
    good[:, 1] = 7
    assert said(good) == ["channel green is 7 in every pixel"]
    good[:30] = 255
    says = "30 of 40 images looked at are entirely white, like pictures that are fully transparent"
    assert said(good)[0].startswith(says)
    assert "data." not in str(degenerate(ImageSet(good, "x", flip="none"), good, ()))


def test_images_that_are_not_in_memory_are_looked_at_as_they_were_read(good):
    class Elsewhere:
        dtype, shape, nbytes = good.dtype, good.shape, good.nbytes

        def __len__(self) -> int:
            return len(good)

        def __getitem__(self, indices):
            raise AssertionError

    assert degenerate(ImageSet(Elsewhere(), "x", flip="none"), np.repeat(good[:1], 5, axis=0), ()) == [
        "5 of 5 images are equal: the network can only learn that one"
    ]


WIDE = np.linspace(0, 4095, 64).reshape(8, 8)
STORED = {
    "12 bits in 16": (Image.fromarray(WIDE.astype(np.uint16)), [0, 4095]),
    "labels": (Image.fromarray((WIDE > 2000).astype(np.uint8)), [0, 1]),
    "labels in colour": (Image.fromarray((WIDE > 2000).astype(np.uint8)).convert("RGB"), [0, 1]),
    "floats": (Image.fromarray((WIDE / 4095 - 0.5).astype(np.float32)), [-0.5, 0.5]),
    "integers": (Image.fromarray((WIDE * 100 - 7).astype(np.int32)), [-7, 409493]),
}


@pytest.mark.parametrize("stored", STORED)
def test_a_value_range_says_what_is_black_and_white(stored, tmp_path):
    picture, value_range = STORED[stored]
    picture.save(tmp_path / "x.tiff")
    pixels = decode(tmp_path / "x.tiff", (8, 8), 1, reading=Reading(tuple(value_range)))[0]
    expected = 255 * (WIDE > 2000) if "labels" in stored else WIDE * 255 / 4095
    assert np.abs(pixels - expected).max() <= (0 if "labels" in stored else 0.51)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_can_be_ignored(mode, tmp_path, rng):
    picture = smooth(rng, 8, 8)
    hidden = picture.copy()
    hidden.putalpha(0)
    if mode == "P":
        hidden = picture.quantize(4)
        picture = hidden.convert("RGB")
        hidden.info["transparency"] = bytes(4)
    elif mode == "LA":
        picture, hidden = picture.convert("L").convert("RGB"), hidden.convert("LA")
    hidden.save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", (8, 8), 3) == 255).all()
    shown = decode(tmp_path / "x.png", (8, 8), 3, reading=Reading(background="ignore"))
    np.testing.assert_array_equal(shown, np.asarray(picture).transpose(2, 0, 1))


def test_another_reading_is_another_cache(tmp_path):
    (tmp_path / "x").mkdir()
    STORED["labels"][0].save(tmp_path / "x" / "x.png")
    for value_range, high in ((None, 1), ([0, 1], 255), ([0, 2], 128), (None, 1)):
        images = folder(str(tmp_path / "x"), image_size=8, value_range=value_range, cache_dir=str(tmp_path / "cache"))
        assert images.pixels.max() == high
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("value_range", [1, 1], r"value_range must be \[low, high\], .*got \[1, 1\]"),
        ("value_range", [0, 1, 2], r"value_range must be \[low, high\], .*got \[0, 1, 2\]"),
        ("background", "red", r"background must be white, black, \[red, green, blue\] from 0 to 255, .*, got 'red'"),
        ("background", [0, 0], r"background must be white, .*, got \[0, 0\]"),
        ("background", [0, 0, 256], r"background must be white, .*, got \[0, 0, 256\]"),
        ("background", "keep", "channels must be 4 with background=keep, which keeps transparency, got 3"),
        ("channels", 4, r"channels must be 1 \(grey\) or 3 \(RGB\), got 4; with background=keep it is 4"),
        ("crop", "middle", "crop must be one of center, random, pad, got 'middle'"),
        ("flip", True, "flip must be one of none, horizontal, both, got True; for true write horizontal"),
        ("cache_gb", -1, "cache_gb must be 0 or more, got -1"),
        ("extensions", [], r"extensions must be a list of .*, got \[\]"),
    ],
)
def test_impossible_values_are_refused(option, value, says, tmp_path):
    with pytest.raises(ValueError, match=f"^{says}$"):
        folder(str(tmp_path), **{option: value})


# In a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [3, 16, 64])
def test_the_first_images_are_those_that_are_trained_on(batch_size, good):
    loader = BatchLoader(ImageSet(good, "x", flip="horizontal"), batch_size, seed=3)
    first = loader.first_images(20)
    seen = []
    for step in range(-(-20 // batch_size)):
        batch = loader.batch(step)
        assert batch.pixels is not None
        seen += list(to_uint8(augment(batch.pixels, batch.flips)).numpy())
    np.testing.assert_array_equal(first, seen[:20])
    assert len(loader.first_images(64)) == len(good)


def test_a_run_keeps_a_picture_of_its_data_and_says_what_is_wrong_with_it(tmp_path: Path):
    (tmp_path / "x").mkdir()
    for i in range(5):
        Image.new("L", (8, 8), i).save(tmp_path / "x" / f"{i}.png")
    data = [
        "data=folder",
        "data.path=x",
        "data.image_size=8",
        "data.channels=1",
        "data.cache_dir=cache",
        "model=unet_16",
    ]
    done = train(*data, "data.workers=0", *TINY_RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only(tmp_path / "outputs" / "x")
    assert "data     all values are between 0 and 4, of 0 to 255: set data.value_range=[LOW,HIGH]" in done.stdout
    assert "network  UNet, " in done.stdout
    assert " parameters, levels of 8, 4 pixels, attention at 8" in done.stdout
    assert done.stdout.splitlines()[0] in (run / "train.log").read_text()
    with Image.open(run / "data.png") as picture:
        assert sorted(np.unique(np.asarray(picture))) == [0, 1, 2, 3, 4, 96], "grey between the five"
