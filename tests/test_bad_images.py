"""A folder in which much is wrong: everything bad is named at once, and the good images do not notice it."""

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import smooth
from PIL import Image

from ddpm_cli.data import decode_once, folder
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.io.text import printable


@pytest.fixture
def good(tmp_path, rng) -> Path:
    """Twelve pictures in two folders."""
    root = tmp_path / "good"
    for index in range(12):
        path = root / ("one", "two")[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(rng, 20, 24).save(path)
    return root


@pytest.fixture
def read(tmp_path) -> Callable[..., ImageSet]:
    """`folder` with a cache of the test's own."""
    return lambda root, **options: folder.folder(str(root), image_size=8, cache_dir=str(tmp_path / "cache"), **options)


def truncated(path: Path) -> None:
    path.write_bytes((path.parent / "00.png").read_bytes()[:-100])


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def too_deep(path: Path) -> None:
    """A picture at the end of a path that the system takes only piece by piece."""
    here = os.getcwd()
    os.mkdir(path)
    os.chdir(path)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    Image.new("L", (8, 8)).save("x.png")
    os.chdir(here)


BAD = {
    "one/a broken.png": (lambda path: path.write_text("no image"), "not in a known image format"),
    "one/b empty.png": (Path.touch, "the file is empty"),
    "one/c truncated.png": (truncated, "truncated"),
    "one/d fifo.png": (os.mkfifo, "not a regular file"),
    "one/e socket.png": (unix_socket, "not a regular file"),
    "one/f device.png": (lambda path: path.symlink_to("/dev/null"), "link to /dev/null, outside the folder"),
    "one/g gone.png": (lambda path: path.symlink_to("../gone.png"), "link to ../gone.png: No such file"),
    "one/h unmounted": (lambda path: path.symlink_to("/nowhere"), "link to /nowhere: No such file"),
    "one/i loop.png": (lambda path: path.symlink_to(path.name), "link to i loop.png: Too many levels"),
    "one/j loop": (lambda path: path.symlink_to("j loop"), "link to j loop: Too many levels"),
    "one/k outside.png": (lambda path: path.symlink_to(__file__), "outside the folder"),
    "one/l outside": (lambda path: path.symlink_to(Path(__file__).parent), "outside the folder"),
    "one/m above": (lambda path: path.symlink_to("../.."), "link to ../.., outside the folder"),
    "one/n new\nline \x1b[31m\u2028.png": (Path.touch, "the file is empty"),
    "one/o \udcff.png": (Path.touch, "the file is empty"),
    "p.png": (Path.touch, "the file is empty"),
    "zz": (too_deep, "cannot be listed: File name too long"),
}


@pytest.fixture
def mixed(good, tmp_path) -> Path:
    """The good pictures among everything that is bad, and things that are neither."""
    root = tmp_path / "mixed"
    shutil.copytree(good, root)
    for name, (make, _) in BAD.items():
        make(root / name)
    os.mkfifo(root / "fifo.txt")
    (root / "notes.txt").symlink_to("gone.txt")
    (root / "README").symlink_to(__file__)
    (root / ".hidden.png").symlink_to("/dev/zero")
    return root


def test_every_bad_image_is_named_with_the_reason(mixed, read):
    with pytest.raises(ValueError, match=r"^17 images in .*mixed .*data\.on_bad=skip.* cannot be read:\n") as caught:
        read(mixed)
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == len(BAD)
    for line, (name, (_, reason)) in zip(lines, BAD.items(), strict=True):
        start = f"  {printable(f'{mixed}/{name}')}"
        assert line.startswith(start)
        assert reason in line.removeprefix(start)


def test_what_no_terminal_shows_is_escaped():
    assert printable("Größe 図 \N{GRINNING FACE}.png") == "Größe 図 \N{GRINNING FACE}.png"
    assert printable("a\n\x1b[0m\u202e\udcff\\") == r"a\n\x1b[0m\u202e\xff" + "\\"
    printable("\udc80").encode("ascii")


def test_skipping_leaves_the_good_images_as_they_were(good, mixed, read):
    images = read(mixed, on_bad="skip")
    np.testing.assert_array_equal(images.pixels, read(good).pixels)
    with pytest.raises(ValueError, match="17 images") as caught:
        read(mixed, on_bad="stop")
    assert [f"  {line}" for line in images.skipped] == str(caught.value).splitlines()[1:]
    assert read(good, on_bad="skip").skipped == ()


@pytest.mark.parametrize(
    ("bad", "workers"), [([0], 0), ([11], 0), ([0, 1, 2], 0), ([3, 4, 9], 0), ([3, 4, 9], 2), (list(range(11)), 0)]
)
def test_bad_images_leave_no_gaps(good, read, bad, workers, monkeypatch):
    monkeypatch.setattr(decode_once, "FEW_IMAGES", 1)
    monkeypatch.setattr(decode_once, "CHUNK", 2)
    pixels = read(good).pixels
    for position, path in enumerate(sorted(good.rglob("*.png"))):
        if position in bad:
            path.write_bytes(b"broken")
    images = read(good, on_bad="skip", workers=workers)
    np.testing.assert_array_equal(images.pixels, np.delete(pixels, bad, axis=0))
    assert len(images.skipped) == len(bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_large_images_are_decoded_one_at_a_time(good, read, workers, monkeypatch, tmp_path):
    monkeypatch.setattr(decode_once, "FEW_IMAGES", 1)
    expected = read(good).pixels
    Image.open(good / "one" / "04.png").resize((99, 99)).save(good / "one" / "04.png")
    alone = read(good, workers=0).pixels
    shutil.rmtree(tmp_path / "cache")
    asked = []
    monkeypatch.setattr(
        decode_once, "most_at_a_time", lambda workers: asked.append(workers) or (2**30, 2**30, 3000)[workers]
    )
    images = read(good, workers=workers)
    np.testing.assert_array_equal(images.pixels, alone)
    assert asked == [workers, min(workers, 1)]
    assert not np.array_equal(alone, expected)


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_nothing_but_bad_images_is_an_error(on_bad, good, read, decoded):
    for path in good.rglob("*.png"):
        path.write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^12 images in .*all of them.* cannot be read:") as caught:
            read(good, on_bad=on_bad)
        assert len(str(caught.value).splitlines()) == 13
    assert len(decoded) == 12
    shutil.rmtree(good)
    good.mkdir()
    (good / "x.png").symlink_to("gone")
    with pytest.raises(ValueError, match=r"^1 images in .*\n.*x\.png: link to gone: No such file"):
        read(good, on_bad=on_bad)


def test_the_verdict_is_kept_beside_the_cache(mixed, read, decoded, tmp_path):
    first = read(mixed, on_bad="skip")
    count = len(decoded)
    again = read(mixed, on_bad="skip")
    np.testing.assert_array_equal(again.pixels, first.pixels)
    assert again.skipped == first.skipped
    with pytest.raises(ValueError, match=r"listed in .*\.bad\.json\) cannot be read:") as caught:
        read(mixed)
    assert len(str(caught.value).splitlines()) == 1 + len(BAD)
    assert len(decoded) == count
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]


def test_stopping_keeps_what_was_decoded(good, read, decoded):
    """Whether the bad images are then skipped or removed, nothing is decoded again."""
    bad = good / "one" / "00.png"
    bad.write_bytes(b"broken")
    with pytest.raises(ValueError, match="1 images"):
        read(good)
    assert len(decoded) == 12
    skipped = read(good, on_bad="skip")
    bad.unlink()
    removed = read(good)
    assert len(decoded) == 12
    np.testing.assert_array_equal(skipped.pixels, removed.pixels)
    assert removed.skipped == ()


@pytest.mark.parametrize(
    "damage",
    [Path.unlink]
    + [lambda p, c=c: p.write_bytes(c) for c in (b"", b"[[", b'[["x", 1]]', b"[[[], []]]", b"{}", b"\xff")],
)
def test_a_damaged_verdict_is_found_again(good, read, damage, tmp_path):
    (good / "one" / "00.png").write_bytes(b"broken")
    first = read(good, on_bad="skip")
    (kept,) = (tmp_path / "cache").glob("*.bad.json")
    content = kept.read_bytes()
    damage(kept)
    again = read(good, on_bad="skip")
    np.testing.assert_array_equal(again.pixels, first.pixels)
    assert again.skipped == first.skipped
    assert kept.read_bytes() == content


def test_the_verdict_is_on_the_disk_before_the_pixels_have_their_name(good, read, tmp_path, monkeypatch):
    (good / "one" / "00.png").write_bytes(b"broken")
    events = []
    replace, fsync = os.replace, os.fsync

    def replacing(source, target):
        events.append(Path(target).name.partition(".")[2])
        replace(source, target)

    def syncing(descriptor):
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append("sync folder" if os.path.isdir(place) else "sync file")
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(os, "fsync", syncing)
    read(good, on_bad="skip")
    assert events == ["sync file", "bad.json", "sync folder", "sync file", "npy", "sync folder"]


def test_a_repaired_image_comes_back(good, read):
    path = good / "two" / "05.png"
    content = path.read_bytes()
    all_good = read(good).pixels
    path.write_bytes(content[:-100])
    assert len(read(good, on_bad="skip")) == 11
    path.write_bytes(content)
    np.testing.assert_array_equal(read(good).pixels, all_good)


def test_unreadable_files_and_folders_are_bad_as_long_as_they_are(good, read, monkeypatch):
    """The system's answers are put in place of the system: root may read everything."""
    file, subfolder = good / "one" / "02.png", good / "two"
    access, scandir = os.access, os.scandir

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: str(path) != str(file) and access(path, mode))
        patch.setattr(os, "scandir", lambda path: denied(path) if str(path) == str(subfolder) else scandir(path))
        images = read(good, on_bad="skip")
    assert len(images) == 5
    assert images.skipped == (
        f"{file}: Permission denied",
        f"{subfolder}: the folder cannot be listed: Permission denied",
    )
    assert len(read(good)) == 12


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EIO])
def test_files_that_cannot_be_opened_are_tried_again(number, good, read, monkeypatch):
    """Permission denied after all, gone since the folder was listed, a disk that fails: none of it need last."""
    file = good / "one" / "02.png"
    original = os.open

    def failing(path, flags, *more, **options):
        if str(path) == str(file):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, flags, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        for _ in range(2):
            images = read(good, on_bad="skip")
            assert images.skipped == (f"{file}: {os.strerror(number)}",)
            assert len(images) == 11
    assert len(read(good)) == 12


def test_a_file_that_becomes_a_fifo_is_not_waited_for(good, read, monkeypatch):
    """After the folder has been listed, that is."""
    file = good / "one" / "02.png"

    def listed(root, **options):
        found = find_images(root, **options)
        file.unlink()
        os.mkfifo(file)
        return found

    find_images = folder.find_images
    monkeypatch.setattr(folder, "find_images", listed)
    assert read(good, on_bad="skip").skipped == (f"{file}: not a regular file",)


def test_a_name_that_is_no_utf_8_is_a_name(good, read):
    expected = read(good).pixels
    first = good / "one" / "00.png"
    first.rename(os.fsdecode(bytes(good) + b"/one/\xff\n.png"))
    (good / "one").rename(os.fsdecode(bytes(good) + b"/\xfe"))
    images = read(good)
    assert images.skipped == ()
    ordered = [expected[i] for i in (6, 7, 8, 9, 10, 11, 1, 2, 3, 4, 5, 0)]  # "two" before \xfe, and \xff last
    np.testing.assert_array_equal(images.pixels, ordered)
    np.testing.assert_array_equal(read(good).pixels, ordered)


def test_the_folder_itself_may_have_any_name(good, read, tmp_path):
    root = os.fsdecode(bytes(tmp_path) + b"/\xff\n")
    good.rename(root)
    assert read(root).name == r"\xff\n"
    Path(root, "x.png").touch()
    images = read(root, on_bad="skip")
    assert images.skipped == (rf"{tmp_path}/\xff\n/x.png: the file is empty",)
    json.dumps(images.skipped).encode()


def test_many_links_to_many_folders_end(good, read):
    """Each of eight folders has a link to every other: walked along every chain of links that is 8! ways and more."""
    for index in range(8):
        (good / f"{index}").mkdir()
        for other in range(8):
            (good / f"{index}" / f"to{other}").symlink_to(f"../{other}")
    assert len(read(good)) == 12
