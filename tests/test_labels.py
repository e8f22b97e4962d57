"""Class labels: of image sets, of the well-known sets, of a folder of folders. Those of archives: test_datasets.py."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.data import datasets, folder
from ddpm_cli.data.image_set import ImageSet


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def labelled(labels: np.ndarray | None, class_names: tuple[str, ...]) -> ImageSet:
    """Three images."""
    return ImageSet(np.zeros((3, 1, 2, 2), np.uint8), "tiny", flip="none", labels=labels, class_names=class_names)


def test_an_image_set_has_labels_only_if_it_is_given_some():
    labels = np.array([1, 0, 1])
    assert labelled(labels, ("a", "b")).labels is labels
    plain = labelled(None, ())
    assert (plain.labels, plain.class_names) == (None, ())


@pytest.mark.parametrize(
    ("labels", "class_names", "says"),
    [
        (np.array([0, 1]), ("a", "b"), r"labels must be int64 \[3\], got int64 \[2\]"),
        (np.array([[0, 1, 0]]), ("a", "b"), r"labels must be int64 \[3\], got int64 \[1, 3\]"),
        (np.array([0, 1, 0], np.uint8), ("a", "b"), r"labels must be int64 \[3\], got uint8 \[3\]"),
        (np.array([0.0, 1.0, 0.0]), ("a", "b"), r"labels must be int64 \[3\], got float64 \[3\]"),
        (np.array([0, 2, 1]), ("a", "b"), "there are 2 class_names, but labels 0 to 2"),
        (np.array([1, -1, 1]), ("a", "b"), "there are 2 class_names, but labels -1 to 1"),
        (np.array([0, 0, 0]), (), "there are 0 class_names, but labels 0 to 0"),
        (None, ("a", "b"), "there are 2 class_names, but no labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, class_names, says):
    with pytest.raises(ValueError, match=f"^tiny: .*{says}"):
        labelled(labels, class_names)


def test_digits_have_sklearns_labels():
    from sklearn.datasets import load_digits

    images = datasets.digits(num_classes=10)
    np.testing.assert_array_equal(images.labels, load_digits(return_X_y=True)[1])
    assert images.class_names == tuple("0123456789")
    plain = datasets.digits()
    assert (plain.labels, plain.class_names) == (None, ())
    np.testing.assert_array_equal(plain.pixels, images.pixels)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10"])
@pytest.mark.parametrize("num_classes", [5, 11, 0, -10])
def test_another_number_of_classes_is_refused_before_anything_is_read(name, num_classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no data
    with pytest.raises(ValueError, match=f"^num_classes is {num_classes}, but {name} has 10 classes$"):
        getattr(datasets, name)(num_classes=num_classes)


def test_class_names_are_torchvisions():
    from torchvision.datasets import FashionMNIST

    assert list(datasets.TEN_CLOTHES) == FashionMNIST.classes


@pytest.fixture
def classes(tmp_path) -> Path:
    """Nine pictures of three classes, some further down; the grey value of each begins with its class's number."""
    root = tmp_path / "classes"
    # In ASCII, B comes before a, and - before /: the order of classes is not the order of their images' names.
    for label, name in enumerate(("B", "a", "a-b")):
        for index, below in enumerate(("x.png", "deeper/x.png", "deeper/B/x.png")):
            path = root / name / below
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 100 * label + index).save(path)
    (root / "empty").mkdir()
    (root / "notes").mkdir()
    (root / "notes" / "notes.txt").touch()
    return root


def test_folders_at_the_top_are_classes_in_order(classes, decoded):
    images = folder.folder(str(classes), image_size=8, channels=1, num_classes=3)
    assert images.class_names == ("B", "a", "a-b")
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    np.testing.assert_array_equal(images.labels, images.pixels[:, 0, 0, 0] // 100)
    assert sorted(images.labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(decoded) == 9
    plain = folder.folder(str(classes), image_size=8, channels=1)
    assert (plain.labels, plain.class_names) == (None, ())
    np.testing.assert_array_equal(plain.pixels, images.pixels)
    assert len(decoded) == 9


@pytest.mark.parametrize("num_classes", [5, 2, 0, -1, True])
def test_another_number_of_classes_is_named_before_anything_is_decoded(classes, decoded, num_classes):
    says = f"num_classes is {num_classes}, but {classes} has 3 class folders: B, a, a-b"
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        folder.folder(str(classes), num_classes=num_classes)
    assert decoded == []


def test_many_classes_are_not_all_named(tmp_path):
    for index in range(12):
        (tmp_path / "many" / f"{index:02}").mkdir(parents=True)
        (tmp_path / "many" / f"{index:02}" / "x.png").touch()
    with pytest.raises(ValueError, match=r"12 class folders: 00, 01, 02, 03, 04, 05, 06, 07, 08, 09, \.\.\.$"):
        folder.folder(str(tmp_path / "many"), num_classes=10)


def test_images_outside_the_class_folders_are_named(classes, decoded):
    (classes / "stray.png").symlink_to("a/x.png")
    (classes / "broken.JPG").symlink_to("nowhere")
    says = f"2 of the images in {classes} are not in a class folder, e.g. broken.JPG"
    with pytest.raises(ValueError, match=re.escape(says)):
        folder.folder(str(classes), num_classes=3, on_bad="skip")
    assert decoded == []


def test_skipped_images_do_not_renumber_the_classes(classes):
    for name in ("x.png", "deeper/x.png", "deeper/B/x.png"):  # all of a class
        (classes / "a" / name).write_bytes(b"broken")
    (classes / "B" / "deeper" / "x.png").write_bytes(b"broken")
    (classes / "b").mkdir()
    (classes / "b" / "gone.png").symlink_to("nowhere")  # a class that has nothing but what is no image
    for _ in range(2):  # the second time from the cache
        images = folder.folder(str(classes), image_size=8, channels=1, num_classes=4, on_bad="skip")
        assert images.class_names == ("B", "a", "a-b", "b")
        np.testing.assert_array_equal(images.labels, images.pixels[:, 0, 0, 0] // 100)
        np.testing.assert_array_equal(images.labels, [0, 0, 2, 2, 2])
        assert len(images.skipped) == 5


def test_a_class_that_cannot_be_listed_keeps_its_number(classes, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if str(path) == str(classes / "a"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    images = folder.folder(str(classes), num_classes=3, on_bad="skip")
    assert images.class_names == ("B", "a", "a-b")
    assert set(images.labels) == {0, 2}


def test_where_nothing_can_be_read_that_is_what_is_said(classes, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ValueError, match="the folder cannot be listed: Permission denied"):
        folder.folder(str(classes), num_classes=3, on_bad="skip")


def test_class_names_can_be_shown(classes):
    (classes / "a").rename(os.fsdecode(bytes(classes) + b"/\xff\n"))
    assert folder.folder(str(classes), num_classes=3).class_names == ("B", "a-b", r"\xff\n")
