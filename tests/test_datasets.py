"""Image sets in memory and the well-known data sets, from small archives in the real format."""

import gzip
import http.server
import io
import os
import re
import socket
import tarfile
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import Published, idx_file, md5

from ddpm_cli.data import datasets
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.options import height_width


def test_image_set_reports_its_length_and_shape():
    images = ImageSet(np.zeros((5, 3, 4, 6), np.uint8), "zeros", flip="none")
    assert (len(images), images.shape) == (5, (3, 4, 6))


@pytest.mark.parametrize(
    "pixels", [np.zeros((5, 3, 4, 6)), np.zeros((5, 4, 6), np.uint8), np.zeros((0, 3, 4, 6), "u1")]
)
def test_image_set_refuses_other_arrays(pixels: np.ndarray):
    with pytest.raises(ValueError, match=r"bad: .*\[(5|0), "):
        ImageSet(pixels, "bad", flip="none")


@pytest.mark.parametrize("size", [(7, 5), (20, 31)])
def test_resize_agrees_with_pil_and_goes_batch_by_batch(size, rng, monkeypatch):
    monkeypatch.setattr(datasets, "RESIZE_BATCH", 2)
    pixels = rng.integers(0, 256, (5, 1, 12, 15), dtype=np.uint8)
    # In PIL's float mode: its 8-bit mode clips also between the horizontal and the vertical pass.
    oracle = [Image.fromarray(p[0].astype("f4")).resize(size[::-1], Image.Resampling.BICUBIC) for p in pixels]
    expected = np.stack([np.asarray(picture) for picture in oracle]).round().clip(0, 255)
    resized = datasets.resize(pixels, list(size))
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized[:, 0], expected)


def test_resize_to_the_same_size_changes_nothing(rng):
    pixels = rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    assert datasets.resize(pixels, 8) is pixels


@pytest.mark.parametrize("size", [0, -4, True, 8.0, "8", [8], [8, 8, 8], [8, 0], [8, 8.5], None])
def test_impossible_image_size_is_refused(size):
    with pytest.raises(ValueError, match=f"image_size .*{re.escape(repr(size))}"):
        height_width(size)


def test_channels_are_converted_as_pil_does(rng):
    colour = rng.integers(0, 256, (3, 3, 9, 9), dtype=np.uint8)
    grey = datasets.with_channels(colour, 1)
    oracle = np.stack([np.asarray(Image.fromarray(c.transpose(1, 2, 0)).convert("L")) for c in colour])
    np.testing.assert_array_equal(grey, oracle[:, None])
    np.testing.assert_array_equal(datasets.with_channels(grey, 3), np.stack([oracle] * 3, axis=1))
    assert datasets.with_channels(colour, 3) is colour


@pytest.mark.parametrize("channels", [2, 4, 0, True, "3"])
def test_other_channels_are_refused(channels):
    with pytest.raises(ValueError, match=f"channels .*{channels!r}"):
        datasets.digits(channels=channels)


def test_digits_are_sklearns_scaled_to_bytes():
    from sklearn.datasets import load_digits

    images = datasets.digits()
    pixels = images.pixels[:, 0]
    assert (len(images), images.shape, images.name, images.flip) == (1797, (1, 8, 8), "digits", "none")
    assert (pixels.min(), pixels.max()) == (0, 255)
    levels, _ = load_digits(return_X_y=True)  # 0..16
    assert np.abs(pixels.reshape(-1, 64) - np.asarray(levels) * 255 / 16).max() <= 0.5
    assert datasets.digits(image_size=[12, 10], channels=3, flip="horizontal").pixels.shape == (1797, 3, 12, 10)


@pytest.fixture(params=["mnist", "fashion_mnist", "cifar10"])
def published(request, rng, monkeypatch) -> Published:
    return Published(request.param, rng, monkeypatch)


@pytest.fixture(params=["mnist", "fashion_mnist"])
def in_two_files(request, rng, monkeypatch) -> Published:
    """A set with its labels in an archive of their own."""
    return Published(request.param, rng, monkeypatch)


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)


@pytest.mark.usefixtures("no_network")
def test_archive_in_place_is_extracted_and_then_the_tree_suffices(published, tmp_path):
    archive = published.put(tmp_path, published.content)
    images = published.source(root=str(tmp_path))
    np.testing.assert_array_equal(images.pixels, published.pixels)
    assert (images.labels, images.class_names) == (None, ())
    assert images.flip == ("horizontal" if published.place.startswith("cifar") else "none")
    archive.unlink()
    np.testing.assert_array_equal(published.source(root=str(tmp_path), flip="horizontal").pixels, published.pixels)


@pytest.mark.usefixtures("no_network")
def test_labels_are_read_where_they_are_asked_for(published, tmp_path):
    published.put_all(tmp_path)
    images = published.source(root=str(tmp_path), num_classes=10)
    for archive in tmp_path.rglob("*.gz"):
        archive.unlink()
    again = published.source(root=str(tmp_path), num_classes=10, image_size=8)
    for labels in (images.labels, again.labels):
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, published.labels)
    np.testing.assert_array_equal(images.pixels, published.pixels)
    assert len(images.class_names) == 10


@pytest.mark.usefixtures("no_network")
def test_the_test_split_is_read_from_files_of_its_own(published, tmp_path):
    published.put_all(tmp_path)
    shown = published.put_test_split(tmp_path)
    images = published.source(root=str(tmp_path), num_classes=10, split="test")
    np.testing.assert_array_equal(images.pixels, published.pixels[shown])
    np.testing.assert_array_equal(images.labels, published.labels[shown])
    with pytest.raises(ValueError, match="split must be train or test, got 'val'"):
        published.source(root=str(tmp_path), split="val")


@pytest.mark.usefixtures("no_network")
def test_missing_labels_are_named_with_what_to_do(in_two_files, tmp_path):
    in_two_files.put(tmp_path, in_two_files.content)
    says = f"{tmp_path}/{in_two_files.labels_place} is missing: set data.download=true, or put http"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(says)}.*/train-labels-idx1-ubyte.gz there$"):
        in_two_files.source(root=str(tmp_path), num_classes=10)


@pytest.mark.usefixtures("no_network")
def test_corrupted_labels_are_named(in_two_files, tmp_path):
    in_two_files.put(tmp_path, in_two_files.content)
    archive = in_two_files.put_labels(tmp_path, in_two_files.labels_content[:-1])
    with pytest.raises(FileNotFoundError, match=f"{archive} is corrupted .*{md5(in_two_files.labels_content)}"):
        in_two_files.source(root=str(tmp_path), num_classes=10)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"\0\0\x08\x02" + b[4:]])
def test_damaged_extracted_labels_are_extracted_again(in_two_files, tmp_path, damage):
    in_two_files.put_all(tmp_path)
    in_two_files.source(root=str(tmp_path), num_classes=10)
    extracted = (tmp_path / in_two_files.labels_place).with_suffix("")
    content = extracted.read_bytes()
    extracted.write_bytes(damage(content))
    np.testing.assert_array_equal(in_two_files.source(root=str(tmp_path), num_classes=10).labels, in_two_files.labels)
    assert extracted.read_bytes() == content


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("labels", "says"), [(np.arange(9), r"int64 \[10\], got int64 \[9\]"), (np.arange(1, 11), "labels 1 to 10")]
)
def test_labels_that_do_not_fit_the_images_are_refused(in_two_files, tmp_path, labels, says):
    in_two_files.put_all(tmp_path)
    (tmp_path / in_two_files.labels_place).with_suffix("").write_bytes(gzip.decompress(idx_file(labels)))
    with pytest.raises(ValueError, match=f"mnist: .*{says}"):
        in_two_files.source(root=str(tmp_path), num_classes=10)


@pytest.mark.usefixtures("no_network")
def test_interrupted_extraction_is_made_good(published, tmp_path):
    archive = published.put(tmp_path, published.content)
    published.source(root=str(tmp_path))
    extracted = next(p for p in sorted(tmp_path.rglob("*")) if p.is_file() and p != archive and "meta" not in p.name)
    extracted.write_bytes(extracted.read_bytes()[:-100])
    np.testing.assert_array_equal(published.source(root=str(tmp_path)).pixels, published.pixels)


@pytest.mark.usefixtures("no_network")
def test_missing_archive_is_named_with_what_to_do(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        published.source()
    message = str(caught.value)
    assert f"{tmp_path}/data/{published.place} is missing" in message
    assert "data.download=true" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_network")
def test_corrupted_archive_is_named(published, tmp_path):
    archive = published.put(tmp_path, published.content[:-1])
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(archive))} is corrupted .*{md5(published.content)}"):
        published.source(root=str(tmp_path))


def tar_of(*members: tuple[str, bytes, str]) -> bytes:
    """A .tar.gz of members (name, type, what a link leads to); files hold b"content"."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 7 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"content"))
    return packed.getvalue()


@pytest.mark.parametrize(
    "member",
    [
        ("../escaped", tarfile.REGTYPE, ""),
        ("cifar-10-batches-py/../../escaped", tarfile.REGTYPE, ""),
        ("{outside}/escaped", tarfile.REGTYPE, ""),
        ("{outside}", tarfile.DIRTYPE, ""),
        ("link", tarfile.SYMTYPE, "../escaped"),
        ("link", tarfile.SYMTYPE, "{outside}"),
        ("link", tarfile.LNKTYPE, "../secret"),
        ("fifo", tarfile.FIFOTYPE, ""),
        ("device", tarfile.CHRTYPE, ""),
    ],
)
def test_an_archive_that_leads_outside_is_refused_whole(member, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    name, kind, target = member
    name, target = (text.format(outside=tmp_path / "outside") for text in (name, target))
    content = tar_of(("cifar-10-batches-py/data_batch_1", tarfile.REGTYPE, ""), (name, kind, target))
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    root = tmp_path / "data"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(content)
    (tmp_path / "secret").touch()
    with pytest.raises(ValueError, match=rf"{re.escape(str(root))}/cifar-10-python\.tar\.gz .*{re.escape(name)}"):
        datasets.cifar10(root=str(root))
    assert {path.name for path in tmp_path.rglob("*")} == {"data", "cifar-10-python.tar.gz", "secret"}


def test_a_link_in_an_archive_is_no_way_out(tmp_path, monkeypatch):
    """Each member is harmless before the others are there."""
    from torchvision.datasets import CIFAR10

    content = tar_of(
        ("a", tarfile.SYMTYPE, "b/c/../.."),  # here, until b/c is more than a name
        ("b/c", tarfile.SYMTYPE, ".."),
        ("a/escaped", tarfile.REGTYPE, ""),
    )
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    root = tmp_path / "data"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(content)
    with pytest.raises(OSError, match=r"cifar-10-python\.tar\.gz.*a/escaped.*outside"):
        datasets.cifar10(root=str(root))
    assert not any((place / "escaped").exists() for place in (root, tmp_path, tmp_path.parent))


def test_a_python_that_cannot_unpack_safely_does_not(rng, tmp_path, monkeypatch):
    published = Published("cifar10", rng, monkeypatch)
    published.put(tmp_path, published.content)
    with monkeypatch.context() as patch:
        patch.delattr(tarfile, "data_filter")
        with pytest.raises(OSError, match=r"cifar-10-python\.tar\.gz safely with Python .* use 3\.11\.4 or later"):
            published.source(root=str(tmp_path))
    np.testing.assert_array_equal(published.source(root=str(tmp_path)).pixels, published.pixels)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"none", lambda b: b[:20] + b"x" + b[21:]])
def test_an_archive_that_is_none_is_named(published, tmp_path, monkeypatch, damage):
    """Its checksum is right, and still it cannot be unpacked."""
    content = damage(published.content)
    archive = published.put(tmp_path, content)
    if hasattr(published.kind, "tgz_md5"):
        monkeypatch.setattr(published.kind, "tgz_md5", md5(content))
    else:
        monkeypatch.setattr(published.kind, "resources", [(archive.name, md5(content))])
    with pytest.raises(OSError, match=f"cannot unpack {re.escape(str(archive))}: "):
        published.source(root=str(tmp_path))
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*-ubyte"))


@pytest.fixture
def server(tmp_path):
    """(address, folder it serves) of an HTTP server on this machine."""
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *_args):  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{httpd.server_port}", root
        httpd.shutdown()


def test_download_replaces_a_corrupted_archive_in_silence(published, tmp_path, server, capfd):
    address, served = server
    (served / Path(published.place).name).write_bytes(published.content)
    published.serve_at(address)
    archive = published.put(tmp_path, b"corrupted")
    images = published.source(root=str(tmp_path), download=True)
    np.testing.assert_array_equal(images.pixels, published.pixels)
    assert archive.read_bytes() == published.content
    assert not list(tmp_path.rglob("*.part"))
    assert capfd.readouterr() == ("", "")


def test_download_fetches_the_labels_only_where_they_are_asked_for(in_two_files, tmp_path, server, capfd):
    address, served = server
    (served / Path(in_two_files.place).name).write_bytes(in_two_files.content)
    (served / Path(in_two_files.labels_place).name).write_bytes(in_two_files.labels_content)
    in_two_files.serve_at(address)
    in_two_files.source(root=str(tmp_path), download=True)
    assert not (tmp_path / in_two_files.labels_place).exists()
    images = in_two_files.source(root=str(tmp_path), download=True, num_classes=10)
    np.testing.assert_array_equal(images.labels, in_two_files.labels)
    assert (tmp_path / in_two_files.labels_place).read_bytes() == in_two_files.labels_content
    assert not list(tmp_path.rglob("*.part"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [None, b"something else"])
def test_failed_download_says_where_the_file_should_be(published, tmp_path, server, content):
    address, served = server
    if content is not None:
        (served / Path(published.place).name).write_bytes(content)
    published.serve_at(address)
    with pytest.raises(FileNotFoundError) as caught:
        published.source(root=str(tmp_path), download=True)
    assert f"{tmp_path / published.place} is missing and cannot be downloaded" in str(caught.value)
    assert address in str(caught.value)
    assert not [path for path in tmp_path.rglob("*.*") if path.is_file() and served not in path.parents]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_no_file_in_the_place_of_one_is_not_waited_for(make, suffix, tmp_path):
    path = tmp_path / "MNIST" / "raw" / f"train-images-idx3-ubyte{suffix}"
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(OSError, match=f"{path} is not a regular file"):
        datasets.mnist(root=str(tmp_path))


def test_a_file_with_holes_is_not_read(tmp_path):
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.parent.mkdir()
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(OSError, match=f"{path} has 1,099,511,627,776 bytes"):
        datasets.cifar10(root=str(tmp_path))
