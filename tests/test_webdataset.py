"""Tar files in the WebDataset layout: what is found in them, in which order it is read, what happens to bad ones.

The webdataset package writes them, and reads them back as an independent witness.
"""

import gzip
import io
import itertools
import logging
import os
import re
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from commands import TINY, assert_one_message, only, start, train
from pictures import add_to_tar, smooth
from safetensors.numpy import load_file

from ddpm_cli.data import decoding_memory, index_cache, tar_reader
from ddpm_cli.data.decode import decode_bytes
from ddpm_cli.data.folder import folder
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.data.shuffle import Blocks, WindowedShuffle
from ddpm_cli.data.webdataset import webdataset

COUNT, PER_SHARD = 50, 8


def picture(rng: np.random.Generator, kind: str, size: int = 20) -> bytes:
    content = io.BytesIO()
    smooth(rng, size, size + 4).save(content, {"jpg": "JPEG", "png": "PNG"}[kind])
    return content.getvalue()


@pytest.fixture
def tars(tmp_path, rng) -> Path:
    """50 samples, every third a PNG, labelled 0, 1, 2, 0, ..., in seven shards; and as files in pictures/."""
    place = tmp_path / "tars"
    for directory in (place, tmp_path / "pictures"):
        directory.mkdir()
    with wds.ShardWriter(f"{place}/set-%06d.tar", maxcount=PER_SHARD, verbose=0) as sink:
        for index in range(COUNT):
            kind = "png" if index % 3 == 2 else "jpg"
            content = picture(rng, kind, 20 + index % 5)
            sink.write({"__key__": f"{index:06d}", kind: content, "cls": index % 3, "json": {"index": index}})
            (tmp_path / "pictures" / f"{index:06d}.{kind}").write_bytes(content)
    return place


@pytest.fixture
def read(tmp_path):
    """`webdataset` at 16 x 16, with a cache of the test's own, decoding without processes."""

    def read(path: Path | str, **options) -> ImageSet:
        options = {"image_size": 16, "workers": 0, "cache_dir": str(tmp_path / "cache")} | options
        return webdataset(str(path), **options)

    return read


def every(images: ImageSet) -> np.ndarray:
    return images.pixels[np.arange(len(images))]


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            add_to_tar(tar, name, content)
    return path


# What is in them ------------------------------------------------------------------------------------------------------


def test_images_are_those_of_the_same_files_in_a_folder(tars, tmp_path, read):
    images = read(tars)
    assert (images.name, images.shape, len(images), images.flip) == ("tars", (3, 16, 16), COUNT, "horizontal")
    assert images.pixels.nbytes == COUNT * 3 * 256
    same = folder(str(tmp_path / "pictures"), image_size=16, cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(every(images), same.pixels)
    some = np.array([49, 3, 3, 17])
    np.testing.assert_array_equal(images.pixels[some], same.pixels[some])
    grey = folder(str(tmp_path / "pictures"), image_size=[8, 12], channels=1, cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(every(read(tars, image_size=[8, 12], channels=1)), grey.pixels)


def test_images_and_labels_are_those_that_webdataset_reads(tars, read):
    images = read(tars, num_classes=3)
    paths = sorted(map(str, tars.glob("*.tar")))
    assert len(paths) == 7
    samples = list(wds.WebDataset(paths, shardshuffle=False).to_tuple("jpg;png", "cls"))
    np.testing.assert_array_equal(every(images), [decode_bytes(image, (16, 16), 3, name="") for image, _ in samples])
    assert images.labels.tolist() == [int(label) for _, label in samples] == [index % 3 for index in range(COUNT)]
    assert images.class_names == ("0", "1", "2")
    assert read(tars).labels is None


def test_samples_are_runs_of_one_name_up_to_the_first_dot(tmp_path, rng, read):
    jpg, png, other = (picture(rng, kind) for kind in ("jpg", "png", "jpg"))
    path = tar_of(
        tmp_path / "x.tar",
        ("./a.b/1.mask.png", png),  # folders may have dots
        ("./a.b/1.JPG", jpg),
        ("./a.b/1.jpg", other),  # a second one of the name is not looked at
        ("2.json", b"{}"),  # no image: left out
        ("3", jpg),
        (".4.jpg", jpg),
        ("c/5.input.jpg", other),
        ("c/5.cls", b"7\n"),
        ("f/6." + "x" * 300 + ".txt", b""),  # a long name takes headers of its own
        ("f/6.png", png),
    )
    np.testing.assert_array_equal(every(read(path)), [decode_bytes(c, (16, 16), 3, name="") for c in (jpg, png)])
    inputs = read(path, extensions=["input.jpg", "mask.png"], num_classes=None)
    np.testing.assert_array_equal(every(inputs), [decode_bytes(c, (16, 16), 3, name="") for c in (png, other)])
    assert read(path, extensions=["input.jpg"], num_classes=8).labels.tolist() == [7]


def test_paths_may_be_a_folder_a_file_a_glob_or_braces(tars, read, monkeypatch):
    expected = every(read(tars))
    monkeypatch.chdir(tars.parent)
    for path in ("tars/", "tars/*.tar", "tars/set-{000000..000006}.tar", "tars/set-{0..0}{00000..00006}.tar"):
        images = read(path)
        assert images.name == "tars", path
        np.testing.assert_array_equal(every(images), expected)
    np.testing.assert_array_equal(every(read("tars/set-{000002..000003}.tar")), expected[16:32])
    np.testing.assert_array_equal(every(read("tars/set-000006.tar")), expected[48:])
    os.rename("tars", "tars{1..2}[x]")
    np.testing.assert_array_equal(every(read("tars{1..2}[x]")), expected)


def test_what_is_no_plain_file_is_passed_over_and_nothing_is_unpacked(tmp_path, rng, read, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jpg = picture(rng, "jpg")
    with tarfile.open("x.tar", "w") as tar:
        add_to_tar(tar, "0.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add_to_tar(tar, "1.jpg", type=tarfile.LNKTYPE, linkname="3.jpg")
        add_to_tar(tar, "2.jpg", type=tarfile.CHRTYPE)
        add_to_tar(tar, "2a.jpg", type=tarfile.FIFOTYPE)
        add_to_tar(tar, "2b.jpg", type=tarfile.DIRTYPE)
        add_to_tar(tar, "../../3.jpg", jpg)
        add_to_tar(tar, "/4.jpg", jpg)
    before = sorted(tmp_path.rglob("*"))
    images = read("x.tar", cache_dir=str(tmp_path / "cache"))
    assert len(images) == 2
    every(images)
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before


# The order ------------------------------------------------------------------------------------------------------------


def numbered(sizes: list[int], window: int) -> ImageSet:
    """Images that are not looked at, in blocks of these sizes."""
    starts = np.cumsum([0, *sizes])
    return ImageSet(np.zeros((starts[-1], 1, 1, 1), np.uint8), "numbered", flip="none", blocks=Blocks(starts, window))


@pytest.mark.parametrize("window", [1, 2, 3, 99])
@pytest.mark.parametrize("batch_size", [1, 4, 6, 50])
def test_an_epoch_is_a_permutation_whatever_the_batch_and_wherever_it_begins(window, batch_size):
    images = numbered([3, 1, 7, 5, 2, 6], window)
    straight = BatchLoader(images, batch_size, seed=4)
    steps = [straight.indices(step) for step in range(24 * 4)]
    assert all((part.dtype, part.shape) == (np.int64, (batch_size,)) for part in steps)
    stream = np.concatenate(steps)
    whole = stream[: len(stream) // 24 * 24].reshape(-1, 24)
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(24), (len(whole), 1)))
    assert len(np.unique(whole[:4], axis=0)) == min(4, len(whole))
    resumed = BatchLoader(images, batch_size, seed=4)
    for step in (95, 17, 3, 40):
        np.testing.assert_array_equal(resumed.indices(step), steps[step])
    other = BatchLoader(images, 24, seed=5)
    assert not np.array_equal(other.indices(0), BatchLoader(images, 24, seed=4).indices(0))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_divide_the_batches_of_one(tars, read, world_size):
    images = read(tars, num_classes=3, window=2)
    alone = BatchLoader(images, 12, seed=1)
    for step in (0, 3, 4, 9):
        ranks = [BatchLoader(images, 12, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
        parts = [loader.batch(step).pixels for loader in ranks]
        whole = alone.batch(step)
        np.testing.assert_array_equal(np.concatenate(parts), whole.pixels)
        np.testing.assert_array_equal(whole.pixels, images.pixels[alone.indices(step)])
        assert whole.labels.tolist() == (alone.indices(step) % 3).tolist()


def test_a_batch_touches_few_shards_and_a_window_mixes_its_own():
    count, size, window, batch = 37, 100, 4, 50
    stream = BatchLoader(numbered([size] * count, window), batch, seed=0)
    touched = [set((stream.indices(step) // size).tolist()) for step in range(count * size // batch)]
    assert max(map(len, touched)) <= 2 * window  # where one window ends and the next begins
    assert np.mean([len(shards) == window for shards in touched]) > 0.7
    first_seen = {shard: step for step, shards in reversed(list(enumerate(touched))) for shard in shards}
    last_seen = {shard: step for step, shards in enumerate(touched) for shard in shards}
    assert max(last_seen[shard] - first_seen[shard] for shard in first_seen) <= window * size // batch


def test_windows_are_even_and_one_of_all_blocks_is_a_permutation():
    sizes = [1000] * 17
    order = WindowedShuffle(Blocks(np.cumsum([0, *sizes]), 16), 0, "order", 0)
    assert [len(window) for window in order.windows] == [9, 8]
    whole = WindowedShuffle(Blocks(np.cumsum([0, *sizes]), 17), 0, "order", 0)[0:17_000]
    ranks = np.corrcoef(whole, np.arange(len(whole)))[0, 1]
    assert abs(ranks) < 6 / np.sqrt(len(whole))
    assert len(order[8_990:9_100]) == 10


ORDER_OF_SEED_3 = [[6, 7, 0, 5, 9, 2, 3, 8, 1, 4], [8, 6, 4, 0, 9, 2, 7, 1, 3, 5]]


def test_sets_without_blocks_keep_the_order_they_always_had():
    """Of runs that were begun before there were blocks."""
    images = ImageSet(np.zeros((10, 1, 1, 1), np.uint8), "plain", flip="none")
    stream = BatchLoader(images, 10, seed=3)
    assert [stream.indices(epoch).tolist() for epoch in (0, 1)] == ORDER_OF_SEED_3


def test_a_window_below_one_and_blocks_of_other_images_are_refused(tars, read):
    with pytest.raises(ValueError, match=r"window must be at least 1 .*got 0"):
        read(tars, window=0)
    with pytest.raises(ValueError, match="blocks from 0 to 3 do not hold 2 images"):
        ImageSet(np.zeros((2, 1, 1, 1), np.uint8), "x", flip="none", blocks=Blocks(np.array([0, 3]), 1))


# Processes and the cache ----------------------------------------------------------------------------------------------


def test_processes_index_and_decode_the_same(tars, read, monkeypatch, tmp_path):
    expected = every(read(tars))
    monkeypatch.setattr(index_cache, "FEW_BYTES", 0)
    images = read(tars, workers=2, cache_dir=str(tmp_path / "another"))
    np.testing.assert_array_equal(every(images), expected)
    for indices in ([5], [49, 0, 49], list(range(9)), []):
        np.testing.assert_array_equal(images.pixels[np.array(indices, np.int64)], expected[indices])
    children = images.pixels._pool._idle
    assert len(children) == 2
    for _, process in children:
        process.kill()
        process.join()
    with pytest.raises(OSError, match=r"a process decoding images died .*data\.workers"):
        every(images)
    np.testing.assert_array_equal(every(images), expected)
    again = [process for _, process in images.pixels._pool._idle]
    del images
    assert not any(process.is_alive() for process in again)


def test_only_new_and_changed_shards_are_indexed(tars, read, monkeypatch, tmp_path, rng):
    indexed = []
    original = index_cache.index_shard

    def recording(shard, extensions):
        indexed.append(Path(shard.path).name)
        return original(shard, extensions)

    monkeypatch.setattr(index_cache, "index_shard", recording)
    for _ in range(2):
        read(tars)
    assert sorted(indexed) == [f"set-{index:06}.tar" for index in range(7)]
    kept = sorted((tmp_path / "cache" / "shards").iterdir())
    assert len(kept) == 7
    indexed.clear()
    tar_of(tars / "set-000003.tar", ("x.jpg", picture(rng, "jpg")))
    tar_of(tars / "set-000007.tar", ("y.jpg", picture(rng, "jpg")))
    assert len(read(tars)) == COUNT - PER_SHARD + 2
    assert indexed == ["set-000003.tar", "set-000007.tar"]
    indexed.clear()
    for path, damage in zip(kept, itertools.cycle([lambda c: b"", lambda c: c[:-24], lambda c: b"x" + c[1:]])):
        path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(every(read(tars)), every(read(tars)))
    assert len(indexed) == 6
    read(tars, extensions=["png"])
    assert len(indexed) == 6 + 8


def test_a_cache_that_cannot_be_written_is_named(tars, read):
    with pytest.raises(OSError, match=r"cannot write the index .*data\.cache_dir"):
        read(tars, cache_dir=str(next(tars.iterdir())))


def test_a_shard_that_changes_under_way_is_noticed(tars, read, rng):
    images = read(tars)
    tar_of(tars / "set-000006.tar", ("x.jpg", picture(rng, "jpg")))
    assert images.pixels[np.arange(48)].shape == (48, 3, 16, 16)
    with pytest.raises(OSError, match=r"set-000006\.tar has changed since it was indexed"):
        images.pixels[np.array([48])]


# What is wrong with them ----------------------------------------------------------------------------------------------


def cut_in(path: Path, name: str) -> None:
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmember(name).offset_data + 10)


def overwritten(path: Path, place: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)


def header(**fields: bytes) -> bytes:
    """A header of a tar file in which the size is 8 bytes of any kind, with a good checksum."""
    info = tarfile.TarInfo("x.jpg")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = fields["size"]
    block[156:157] = fields.get("type", b"0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + (2**16 - 1024).to_bytes(2, "big")
HUGE = b"\x80" + (2**60).to_bytes(11, "big")


def extended(values: dict[str, str], *, of_all: bool = False) -> bytes:
    """A tar file with an image of 600 bytes and an extended header of such values (`of_all`: for all members)."""
    records = b""
    for key, value in values.items():
        record = f" {key}={value}\n".encode()
        records += b"%d" % (len(record) + len(str(len(record) + 1))) + record
    head = header(size=b"%011o\0" % len(records), type=b"g" if of_all else b"x")
    padded = records + bytes(-len(records) % 512)
    return head + padded + header(size=b"%011o\0" % 600) + bytes(1024) + bytes(1024)


def sparse_map() -> bytes:
    """A tar file with the header of a sparse file that goes on for 4 MB: Python would make many times as much of it."""
    entries = (b"%011o\0" % 512) * 42 + b"\1" + bytes(7)
    first = bytearray(header(size=b"%011o\0" % 0, type=b"S"))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    return bytes(first) + entries * 8192 + bytes(512 + 1024)


BAD = {
    "cut in an image": (
        lambda path: cut_in(path, "000008.png"),
        "set-000001.tar: not a complete tar file: cut short or damaged at 000008.png",
    ),
    "cut in a header": (lambda path: os.truncate(path, 5 * 512 + 100), "not a complete tar file: "),
    "cut between members": (
        lambda path: os.truncate(path, path.stat().st_size // 10240 * 10240 - 10240),
        "not a complete tar",
    ),
    "empty": (lambda path: path.write_bytes(b""), "not a complete tar file: empty file"),
    "text": (lambda path: path.write_bytes(b"no tar" * 1000), "not a complete tar file: "),
    "compressed": (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "compressed with gzip: "),
    "a header overwritten": (lambda path: overwritten(path, 512 * 6, b"x" * 4096), "not a complete tar file: "),
    "a fifo": (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
    "a dead link": (lambda path: (path.unlink(), path.symlink_to("gone")), "No such file or directory"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "not a regular file"),
    "a negative size": (lambda path: path.write_bytes(header(size=NEGATIVE) * 9), "not a complete tar file: "),
    "an impossible size": (lambda path: path.write_bytes(header(size=HUGE) * 9), "not a complete tar file: "),
    "a long name of an impossible size": (
        lambda path: path.write_bytes(header(size=HUGE, type=b"L") * 9),
        "not a complete tar",
    ),
    "an extended header of a negative size": (
        lambda path: path.write_bytes(header(size=NEGATIVE, type=b"x") * 9),
        "not a complete tar",
    ),
    "an extended size below zero": (lambda path: path.write_bytes(extended({"size": "-512"})), "not a complete tar"),
    "an extended size below zero, further on": (
        lambda path: path.write_bytes(extended({"size": "600"})[:-1024] + extended({"size": "-512"})),
        "not a complete tar file: x.jpg has an impossible size, -512",
    ),
    "an extended size beyond the end": (
        lambda path: path.write_bytes(extended({"GNU.sparse.realsize": "268435456"})),
        "not a complete tar file: x.jpg has an impossible size, 268,435,456",
    ),
    "an absurd extended size": (lambda path: path.write_bytes(extended({"size": "9" * 30})), "not a complete tar"),
    "a size for all members": (
        lambda path: path.write_bytes(extended({"size": "-1"}, of_all=True)),
        "not a complete tar",
    ),
    "too many values for all members": (
        lambda path: path.write_bytes(extended({f"k{index:04}": "" for index in range(3000)}, of_all=True)),
        "not a complete tar file: too many global headers",
    ),
    "a sparse map without end": (
        lambda path: path.write_bytes(sparse_map()),
        "not a complete tar file: a header of an impossible size",
    ),
    "headers without end": (
        lambda path: path.write_bytes((header(size=b"%011o\0" % 1, type=b"L") + b"x" * 512) * 5000),
        "not a complete tar file: ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_shards_that_cannot_be_used_are_named(name, tars, read):
    spoil, reason = BAD[name]
    spoil(tars / "set-000001.tar")
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^1 of 7 tar files cannot be used:\n  .*set-000001\.tar: ") as caught:
        read(tars)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.monotonic() - began < 5


def test_a_tar_file_without_an_end_is_noticed_and_can_be_mended(tmp_path, rng, read):
    """Half of one would pass for a whole one otherwise: so the tarfile module reads it."""
    jpg = picture(rng, "jpg")
    path = tar_of(tmp_path / "x.tar", ("0.jpg", jpg), ("1.jpg", jpg))
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmembers()[1].offset)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["0.jpg"]
    with pytest.raises(ValueError, match=r"x\.tar: not a complete tar file: cut short, .*truncate -s \+1024"):
        read(path)
    os.truncate(path, path.stat().st_size + 1024)
    assert len(read(path)) == 1


def test_many_bad_shards_are_counted_and_some_named(tars, read):
    with pytest.raises(
        ValueError, match=r"^93 of 100 tar files cannot be used:(\n  .*No such file.*){10}\n  and 83 more$"
    ):
        read(tars / "set-{000000..000099}.tar")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "path is empty"),
        ("nowhere", "no such folder or tar file: .*nowhere"),
        ("empty", "no tar files in .*empty"),
        ("x-*.tar", r"x-\*.tar .* matches no file"),
        ("x-{5..3}.tar", "matches no file"),
        ("x-{0..9999999}.tar", "matches more than 1,000,000 files"),
        ("{0..99999}{0..99999}{0..99999}", "matches more than 1,000,000 files"),
        ("https://example.org/x-{0..3}.tar", "path must be on this machine, https://example.org"),
        ("pipe:cat x.tar", "path must be on this machine, pipe:"),
        ("pictures.tar", "no images in the tar files .*pictures.tar: no member ends in .jpg, .jpeg, .png"),
    ],
)
def test_paths_that_lead_nowhere_are_named(path, says, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty/x.jpg").touch()
    tar_of(Path("pictures.tar"), ("x.txt", b""))
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("workers", -2), ("image_size", 0), ("channels", 4), ("on_bad", "ignore"), ("extensions", ()), ("num_classes", 0)],
)
def test_wrong_settings_are_named(tars, key, value):
    with pytest.raises(ValueError, match=f"{key} must be .*got {re.escape(repr(value))}"):
        webdataset(str(tars), **{key: value})


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (None, "has no .cls"),
        (b"cat", "not a whole number"),
        (b"-1", "not a whole number"),
        (b"\xd9\xa3", "not a whole number"),  # a digit, in Arabic
        (b"1" * 30, "not a whole number"),
        (b"3", "has 3$"),
    ],
)
def test_labels_that_cannot_be_used_are_named(label, says, tmp_path, rng, read):
    jpg = picture(rng, "jpg")
    members = [("0.jpg", jpg), ("0.cls", b"2 \n"), ("1.jpg", jpg), *([] if label is None else [("1.cls", label)])]
    path = tar_of(tmp_path / "x.tar", *members, ("2.jpg", jpg), ("2.cls", b"0"))
    with pytest.raises(ValueError, match=rf"num_classes is 3, but 1 of 3 samples .* 1\.jpg in .*x\.tar .*{says}"):
        read(path, num_classes=3)
    assert len(read(path)) == 3


def with_bad_images(tars: Path, *, of_class: bytes = b"1") -> None:
    """Make the images of samples 8 and 9, at the start of the second shard, and of every one of class 5 broken."""
    with tarfile.open(tars / "set-000001.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    bad = {"000008.png": b"", "000009.jpg": b"no image"}
    tar_of(tars / "set-000001.tar", *((name, bad.get(name, content)) for name, content in members))


def test_a_bad_image_ends_the_run_or_is_replaced(tars, read, caplog):
    good = every(read(tars))
    with_bad_images(tars)
    images = read(tars)
    for index, says in ((8, "000008.png: the file is empty"), (9, "000009.jpg: not in a known image format")):
        with pytest.raises(OSError, match=rf"set-000001\.tar: {says}; data\.on_bad=skip"):
            images.pixels[np.array([0, index])]
    for options, replaced in (({}, {8: 10, 9: 10}), ({"num_classes": 3}, {8: 11, 9: 12})):
        skipping = read(tars, on_bad="skip", **options)
        expected = good.copy()
        for bad, other in replaced.items():
            expected[bad] = good[other]
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="ddpm_cli"):
            for _ in range(2):
                np.testing.assert_array_equal(every(skipping), expected)
        assert [record.message.partition(": ")[2] for record in caplog.records] == [
            "000008.png: the file is empty",
            "000009.jpg: not in a known image format",
        ]


def test_nothing_but_bad_images_ends_the_run(tmp_path, read):
    path = tar_of(tmp_path / "x.tar", *((f"{index}.jpg", b"broken") for index in range(3)))
    with pytest.raises(OSError, match=r"the next .* cannot be decoded either"):
        every(read(path, on_bad="skip"))


def test_large_images_are_decoded_by_one_process_alone(tars, read, monkeypatch):
    expected = every(read(tars))
    monkeypatch.setattr(tar_reader, "most_at_a_time", lambda workers: 4000)  # of images of 20 to 24 pixels a side
    images = read(tars, workers=2)
    np.testing.assert_array_equal(every(images), expected)
    assert len(images.pixels._alone._idle) == 1


def test_an_image_of_an_impossible_size_is_a_bad_one(tmp_path, read, monkeypatch):
    monkeypatch.setattr(decoding_memory, "MOST_FILE", 1000)
    path = tar_of(tmp_path / "x.tar", ("x.jpg", b"x" * 2000))
    with pytest.raises(OSError, match=r"x\.jpg: 2,000 bytes: too large for an image"):
        every(read(path))


# As a user runs it ----------------------------------------------------------------------------------------------------

SMALL = ["data=webdataset", "data.image_size=16", "data.workers=2", "data.window=2", "model=unet_16", *TINY]
SMALL += ["model.in_channels=3", "model.attention_resolutions=[8]", "trainer.preview_every=0"]


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_where_one_that_was_not_ends(tars, tmp_path):
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    common = [*SMALL, cache, "data.num_classes=3", "trainer.steps=40", "trainer.checkpoint_every=5"]
    straight = train(*common, "data.path=tars", "name=straight", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    assert "data     tars: 50 images, 16 x 16 x 3" in straight.stdout
    process = start("train", *common, "data.path=tars", "name=killed", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/killed/*/checkpoints/step_00000010")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed on its way"
    killed = only(tmp_path / "outputs" / "killed")
    assert not (killed / "checkpoints" / "step_00000040").exists()
    resumed = train(f"resume={killed}", 'data.path="tars/set-{000000..000006}.tar"', "data.workers=0", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"resumed  at step [1-5]\d?", resumed.stdout)
    for file in ("ema.safetensors", "training.safetensors"):
        ours, theirs = (
            load_file(only(tmp_path / "outputs" / name) / "checkpoints" / "step_00000040" / file)
            for name in ("straight", "killed")
        )
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours), file
    changed = train(f"resume={killed}", "data.window=3", "trainer.steps=70", cwd=tmp_path)
    assert_one_message(changed, "train", "data.window: cannot change when resuming: the run has 2, this command line 3")


def test_mistakes_are_one_message_before_anything_is_written(tars, tmp_path):
    cut_short = shutil.copytree(tars, tmp_path / "cut")
    os.truncate(cut_short / "set-000002.tar", 3000)
    for path, says in (
        (cut_short, r"data: 1 of 7 tar files cannot be used:\n  .*set-000002\.tar: not a complete tar file: "),
        ("http://127.0.0.1:9/x.tar", "data: path must be on this machine"),
    ):
        home = tmp_path / f"home {says[:7].count('1')}"
        home.mkdir()
        done = train(*SMALL, f"data.path='{path}'", f"data.cache_dir={tmp_path / 'cache'}", cwd=home)
        assert_one_message(done, "train", says)
        assert list(home.iterdir()) == []


def test_a_bad_image_met_while_training_is_one_message(tars, tmp_path):
    with_bad_images(tars)
    options = [*SMALL, "data.path=tars", f"data.cache_dir={tmp_path / 'cache'}", "trainer.steps=14", "name=x"]
    stopped = train(*options, "trainer.checkpoint_every=1", cwd=tmp_path)
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    assert re.search(r"step \d+: .*set-000001\.tar: 00000[89]\.(png|jpg): .*; data\.on_bad=skip", stopped.stderr)
    skipped = train(*options, "trainer.checkpoint_every=7", "data.on_bad=skip", cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    assert len(re.findall(r"skipped  .*set-000001\.tar: 00000[89]", skipped.stdout)) == 2
