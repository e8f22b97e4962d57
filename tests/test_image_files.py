"""Images and statistics of anybody's: folders and .npz files, good ones and such as cannot be used."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.evaluation import npz_file, statistics_file
from ddpm_cli.evaluation.content import content_sha256
from ddpm_cli.evaluation.frechet import frechet_distance
from ddpm_cli.evaluation.image_files import open_images
from ddpm_cli.evaluation.npz_file import NpzFile
from ddpm_cli.evaluation.statistics import FeatureSums, Statistics


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pixels() -> np.ndarray:
    """uint8 `[7, 6, 5, 3]`, as .npz files have them."""
    return np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), np.uint8)


def write_folder(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(folder / f"{i:02d}.png")
    return folder


# What can be used ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [3, 1, 0], ids=["colour", "grey", "grey without channels"])
def test_an_npz_and_a_folder_hold_the_same_images(tmp_path: Path, pixels: np.ndarray, save, channels: int):
    shown = pixels[..., :channels] if channels else pixels[..., 0]
    save(tmp_path / "images.npz", shown)
    expected = (shown if channels else shown[..., None]).transpose(0, 3, 1, 2)
    hashes = set()
    for path in (tmp_path / "images.npz", write_folder(tmp_path / "folder", shown)):
        found = open_images(path)
        assert (len(found), found.shape, found.labels) == (7, (max(1, channels), 6, 5), None)
        np.testing.assert_array_equal(found[np.array([5, 0, 5])], expected[[5, 0, 5]])
        np.testing.assert_array_equal(found[np.arange(7)], expected)
        hashes.add(found.sha256)
    assert hashes == {content_sha256(expected)}


def test_another_pixel_order_or_shape_is_another_content(pixels: np.ndarray):
    other = pixels.copy()
    other[3, 2, 1, 0] ^= 1
    versions = [pixels, other, pixels[::-1], pixels.reshape(7, 5, 6, 3), pixels[:6]]
    assert len({content_sha256(version) for version in versions}) == len(versions)


def test_the_hash_does_not_depend_on_how_much_is_read_at_a_time(pixels: np.ndarray, monkeypatch):
    whole = content_sha256(pixels)
    monkeypatch.setattr("ddpm_cli.evaluation.content._AT_A_TIME", 200)
    assert content_sha256(pixels) == whole


def test_labels_beside_the_images_are_read(tmp_path: Path, pixels: np.ndarray):
    np.savez(tmp_path / "images.npz", pixels, np.array([2, 0, 1, 1, 2, 2, 0], np.int32))
    found = open_images(tmp_path / "images.npz")
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 1, 1, 2, 2, 0]
    assert found.images.class_names == ("0", "1", "2")


def test_a_directory_of_ddpm_sample_is_opened_where_its_images_are(tmp_path: Path, pixels: np.ndarray):
    for name, fill in (
        ("with_images", lambda folder: write_folder(folder / "images", pixels)),
        ("with_npz", lambda folder: np.savez(folder / "samples.npz", pixels)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "samples.json").write_text("{}")
        Image.fromarray(pixels[0]).save(folder / "samples.png")
        with pytest.raises(ValueError, match="only a grid of all images"):
            open_images(folder)
        fill(folder)
        np.testing.assert_array_equal(open_images(folder)[np.arange(7)], pixels.transpose(0, 3, 1, 2))
        (folder / ".unfinished").mkdir()
        with pytest.raises(ValueError, match="sampling there has not finished"):
            open_images(folder)


def test_images_are_read_as_they_are_asked_for(tmp_path: Path, monkeypatch):
    """A file of 200 MB (with holes) is opened in a fraction of that."""
    import tracemalloc

    with zipfile.ZipFile(tmp_path / "images.npz", "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (1000, 256, 256, 3)}
        )
        for _ in range(1000):
            member.write(bytes(256 * 256 * 3))
    tracemalloc.start()
    found = open_images(tmp_path / "images.npz")
    assert len(found) == 1000
    assert not found[np.array([999])].any()
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


def test_nothing_stays_of_what_has_been_unpacked(tmp_path: Path, pixels: np.ndarray, cache: Path):
    np.savez_compressed(tmp_path / "images.npz", pixels)
    assert len(open_images(tmp_path / "images.npz")) == 7
    assert [path for path in cache.rglob("*") if path.is_file()] == []


# What cannot ---------------------------------------------------------------------------------------------------------


def with_pictures(tmp_path: Path, **files: bytes) -> Path:
    folder = write_folder(tmp_path / "folder", np.zeros((2, 6, 5, 3), np.uint8))
    for name, content in files.items():
        (folder / f"{name}.png").write_bytes(content)
    return folder


def png(size: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "PNG")
    return content.getvalue()


def test_folders_without_usable_images_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty$"):
        open_images(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=r"no images in .*empty; there are 1 \.txt$"):
        open_images(tmp_path / "empty")
    folder = with_pictures(tmp_path, other=png((6, 5)))
    with pytest.raises(ValueError, match=r"of one size, but 00.png is 6 x 5 and other.png 5 x 6"):
        open_images(folder)
    (folder / "other.png").write_bytes(png((5, 6))[:-30])
    with pytest.raises(ValueError, match=r"images that cannot be used:\n.*other.png: "):
        open_images(folder)
    (folder / "other.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"images that cannot be used:\n.*other.png: "):
        open_images(folder)
    with pytest.raises(OSError, match="No such file"):
        open_images(tmp_path / "nowhere")


def npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    return content.getvalue()


def described(header: dict, content: bytes, name: str = "arr_0.npy") -> bytes:
    """An .npz file of an array that says of itself what may not be true."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open(name, "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
        member.write(content)
    return file.getvalue()


IMAGES = np.zeros((4, 6, 5, 3), np.uint8)
WRONG = {
    "no zip": (b"PNG" * 100, "not an .npz file"),
    "nothing": (b"", "not an .npz file"),
    "no images": (npz(x=IMAGES), "called arr_0; it holds x"),
    "statistics": (npz(mu=np.zeros(3), sigma=np.eye(3)), "called arr_0; it holds mu, sigma"),
    "floats": (npz(arr_0=IMAGES / 255), r"must be uint8 \[N, H, W, 3\], .*, got float64 \[4, 6, 5, 3\]"),
    "not a number": (npz(arr_0=np.full((4, 6, 5, 3), np.nan)), "got float64"),
    "channels first": (npz(arr_0=IMAGES.transpose(0, 3, 1, 2)), r"got uint8 \[4, 3, 6, 5\]"),
    "two channels": (npz(arr_0=np.zeros((4, 6, 5, 2), np.uint8)), r"got uint8 \[4, 6, 5, 2\]"),
    "none in it": (npz(arr_0=IMAGES[:0]), r"got uint8 \[0, 6, 5, 3\]"),
    "labels of others": (npz(arr_0=IMAGES, arr_1=np.zeros(5, np.int64)), r"the labels \[4\] of the images"),
    "labels below 0": (npz(arr_0=IMAGES, arr_1=np.array([0, 0, -1, 0])), "whole numbers from 0"),
    "objects": (
        described({"descr": "|O", "fortran_order": False, "shape": (4,)}, b"cos\nsystem\n(S'true'\ntR."),
        "holds object; only plain numbers",
    ),
    "more than there is": (
        described({"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64, 3)}, b"few"),
        r"says uint8 \[1000000000, 64, 64, 3\], which its \d+ bytes are not",
    ),
    "below 0": (described({"descr": "|u1", "fortran_order": False, "shape": (-1, -3)}, b"123"), "are not"),
}


@pytest.mark.parametrize("what", WRONG)
def test_files_without_usable_images_are_refused(what: str, tmp_path: Path):
    content, says = WRONG[what]
    (tmp_path / "images.npz").write_bytes(content)
    with pytest.raises(ValueError, match=says) as refusal:
        open_images(tmp_path / "images.npz")
    assert str(refusal.value).startswith(str(tmp_path / "images.npz"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_byte_anywhere_in_the_pixels_is_found(tmp_path: Path, save):
    noise = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
    save(tmp_path / "images.npz", noise)
    content = bytearray((tmp_path / "images.npz").read_bytes())
    content[1000] ^= 64
    (tmp_path / "images.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.npz"):
        open_images(tmp_path / "images.npz")
    (tmp_path / "images.npz").write_bytes(content[:2000])
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        open_images(tmp_path / "images.npz")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, cache: Path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((3000, 32, 32, 3), np.uint8))
    assert len(open_images(tmp_path / "bomb.npz")) == 3000  # little enough, whatever it is
    monkeypatch.setattr(npz_file, "EXPANDS_FREELY", 2**20)
    with pytest.raises(ValueError, match=r"would unpack from .* to 9,216,128 bytes"):
        open_images(tmp_path / "bomb.npz")


def test_a_file_that_waits_for_its_writer_is_not_waited_for(tmp_path: Path):
    import os

    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="not a regular file"):
        open_images(tmp_path / "pipe.npz")


def test_a_full_disk_is_said_before_anything_is_unpacked(tmp_path: Path, pixels: np.ndarray, monkeypatch):
    np.savez_compressed(tmp_path / "images.npz", pixels)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match="are needed"):
        open_images(tmp_path / "images.npz")


# Statistics ----------------------------------------------------------------------------------------------------------


def loaded(path: Path) -> statistics_file.KnownStatistics | None:
    with NpzFile(path) as file:
        return statistics_file.load(file)


def test_statistics_come_back_and_other_programs_read_them(tmp_path: Path):
    features = np.random.default_rng(2).standard_normal((50, 8))
    made = FeatureSums.of(features).statistics()
    statistics_file.save(tmp_path / "reference.npz", made, {"name": "pixels", "size": 4})
    known = loaded(tmp_path / "reference.npz")
    assert known is not None
    assert (known.statistics.count, known.features) == (50, {"name": "pixels", "size": 4})
    np.testing.assert_array_equal(known.statistics.covariance, made.covariance)
    assert frechet_distance(known.statistics, made) == pytest.approx(0, abs=1e-12)
    with np.load(tmp_path / "reference.npz") as theirs:  # as pytorch-fid and EDM do
        np.testing.assert_allclose(theirs["mu"][:], features.mean(axis=0))
        np.testing.assert_allclose(theirs["sigma"][:], np.cov(features, rowvar=False))


def test_statistics_of_other_programs_are_read(tmp_path: Path):
    sigma = np.cov(np.random.default_rng(3).standard_normal((20, 4)), rowvar=False).astype(np.float32)
    np.savez(tmp_path / "edm.npz", mu=np.zeros(4), sigma=sigma)
    known = loaded(tmp_path / "edm.npz")
    assert known is not None
    assert (known.statistics.count, known.features, known.statistics.covariance.dtype) == (None, None, np.float64)
    np.savez(tmp_path / "images.npz", IMAGES)
    assert loaded(tmp_path / "images.npz") is None


NO_STATISTICS = {
    "two means": ({"mu": np.zeros((2, 3))}, r"must be \[D\] and \[D, D\], got \[2, 3\] and \[3, 3\]"),
    "other dimensions": ({"mu": np.zeros(4)}, r"got \[4\] and \[3, 3\]"),
    "not a number": ({"sigma": np.full((3, 3), np.nan)}, "sigma must be finite"),
    "infinite": ({"mu": np.array([0, np.inf, 0])}, "mu must be finite"),
    "whole numbers": ({"mu": np.zeros(3, int)}, "mu must be finite floating-point numbers"),
    "asymmetric": ({"sigma": np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1.0]])}, "sigma is not a covariance"),
    "negative": ({"sigma": -np.eye(3)}, "sigma is not a covariance"),
    "count": ({"count": np.array(1)}, "count must be"),
    "features": ({"features": np.array("{")}, "features must be the JSON"),
}


@pytest.mark.parametrize("what", NO_STATISTICS)
def test_what_are_no_statistics_are_refused(what: str, tmp_path: Path):
    changed, says = NO_STATISTICS[what]
    (tmp_path / "reference.npz").write_bytes(npz(**({"mu": np.zeros(3), "sigma": np.eye(3)} | changed)))
    with pytest.raises(ValueError, match=says) as refusal:
        loaded(tmp_path / "reference.npz")
    assert str(refusal.value).startswith(str(tmp_path))


def test_statistics_too_large_for_any_features_are_refused_unread(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(statistics_file, "MOST_DIMENSIONS", 2)
    (tmp_path / "reference.npz").write_bytes(npz(mu=np.zeros(3), sigma=np.eye(3)))
    with pytest.raises(ValueError, match="mu takes 24 bytes, at most 16"):
        loaded(tmp_path / "reference.npz")


def test_statistics_without_a_count_are_saved_without(tmp_path: Path):
    statistics_file.save(tmp_path / "a.npz", Statistics(None, np.zeros(2), np.eye(2)), {})
    known = loaded(tmp_path / "a.npz")
    assert known is not None
    assert known.statistics.count is None
    assert json.loads(str(np.load(tmp_path / "a.npz")["features"])) == {}
