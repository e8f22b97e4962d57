"""Masks: what in them says where to paint, and to which pictures they belong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.data.decode import decode
from ddpm_cli.sampling.masks import read_mask, whiteness

SIZE = (16, 16)


def square(shape: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """uint8 `[H, W]`, 1 inside."""
    found = np.zeros(shape, np.uint8)
    found[rows, columns] = 1
    return found


INSIDE = square((24, 40), slice(6, 18), slice(12, 28))


@pytest.fixture
def picture(tmp_path) -> Path:
    """24 x 40 (height x width): of its width the middle 24 pixels are left."""
    Image.fromarray((np.arange(24 * 40 * 3) % 251).astype(np.uint8).reshape(24, 40, 3)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def saved(mask: Image.Image, tmp_path: Path, **options) -> str:
    mask.save(tmp_path / "mask.png", **options)
    return str(tmp_path / "mask.png")


def layers(inside: tuple[int, int, int, int], outside: tuple[int, int, int, int]) -> Image.Image:
    return Image.fromarray(np.where(INSIDE[..., None] == 1, np.uint8(inside), np.uint8(outside)))


def palette(colours: list[int]) -> Image.Image:
    found = Image.fromarray(INSIDE).convert("P")
    found.putdata(INSIDE.reshape(-1).tolist())
    found.putpalette(colours + [0] * (768 - len(colours)))
    return found


photo = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
KINDS = {
    "white": Image.fromarray(INSIDE * 255),
    "one bit": Image.fromarray(INSIDE == 1),
    "colour": Image.fromarray(INSIDE * 255).convert("RGB"),
    "labels": Image.fromarray(INSIDE),
    "labels of 16 bits": Image.fromarray(INSIDE.astype(np.uint16)),
    "labels in three channels": Image.fromarray(INSIDE).convert("RGB"),
    "labels with colours": palette([0, 0, 0, 128, 0, 0]),
    "a palette the other way round": palette([255, 255, 255, 0, 0, 0]),
    "white strokes": layers((255, 255, 255, 255), (0, 0, 0, 0)),
    "black strokes around": layers((0, 0, 0, 0), (0, 0, 0, 255)),
    "a hole in a picture": Image.fromarray(np.concatenate([photo, 255 * (1 - INSIDE[..., None])], axis=2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_say_the_same(kind: str):
    expected = 1 - INSIDE if "other way round" in kind else INSIDE
    np.testing.assert_array_equal(np.asarray(whiteness(KINDS[kind])), 255 * expected)


@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_a_mask_is_scaled_and_cropped_as_its_picture(scale: float, picture: Path, tmp_path: Path):
    mask = Image.fromarray(INSIDE * 255)
    path = saved(mask.resize((round(40 * scale), round(24 * scale)), Image.Resampling.NEAREST), tmp_path)
    white = read_mask(path, SIZE, [picture]).numpy()
    # The middle 24 x 24 of the picture, in which the square is 12 high and 16 wide.
    np.testing.assert_array_equal(white[0], square(SIZE, slice(4, 12), slice(3, 13)) == 1)
    mask.save(picture)
    np.testing.assert_array_equal(white, decode(picture, SIZE, 1) >= 128)


def test_a_mask_of_the_networks_size_is_of_what_is_left(picture: Path, tmp_path: Path):
    mask = square(SIZE, slice(2, 9), slice(0, 5))
    path = saved(Image.fromarray(mask * 255), tmp_path)
    np.testing.assert_array_equal(read_mask(path, SIZE, [picture]).numpy()[0], mask == 1)


@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (24, 39), (25, 40), (8, 8)])
def test_a_mask_of_another_shape_is_refused_with_both_sizes(shape: tuple[int, int], picture: Path, tmp_path: Path):
    path = saved(Image.fromarray(255 * square(shape, slice(2, 7), slice(2, 7))), tmp_path)
    says = rf"mask\.png: the mask is {shape[0]} x {shape[1]}, .*picture\.png is 24 x 40 \(height x width\)"
    with pytest.raises(ValueError, match=says):
        read_mask(path, SIZE, [picture])


def test_every_picture_of_a_folder_counts_as_it_is_seen(picture: Path, tmp_path: Path):
    path = saved(Image.fromarray(INSIDE * 255), tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.new("RGB", (24, 40)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (24, 40)).save(tmp_path / "upright.jpg")
    assert read_mask(path, SIZE, [picture, tmp_path / "turned.jpg"]).any()
    with pytest.raises(ValueError, match=r"the mask is 24 x 40, .*upright\.jpg is 40 x 24"):
        read_mask(path, SIZE, [picture, tmp_path / "turned.jpg", tmp_path / "upright.jpg"])


@pytest.mark.parametrize(
    ("white", "says"),
    [
        (
            (slice(0, 24), slice(0, 7)),
            "loses all its white when it is cropped and scaled like its picture, to 16 x 16",
        ),
        (
            (slice(0, 24), slice(8, 32)),
            "is white everywhere within the cropped picture: white is painted",
        ),
        ((slice(0, 24), slice(0, 40)), "is white everywhere: white is painted"),
        ((slice(0, 0), slice(0, 0)), "has no white: white is painted"),
    ],
)
def test_a_mask_without_two_sides_says_why(white: tuple[slice, slice], says: str, picture: Path, tmp_path: Path):
    path = saved(Image.fromarray(255 * square((24, 40), *white)), tmp_path)
    with pytest.raises(ValueError, match=says):
        read_mask(path, SIZE, [picture])
