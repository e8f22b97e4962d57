"""Data that is exchanged under a run: other data is refused by name, and a damaged cache is not trained on."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image

from ddpm_cli.data.folder import folder
from ddpm_cli.io import run_dir
from torture.reference import LAST, NAME, Reference
from torture.trials import RUN, Row, Setting, command, noting, run_directories

COUNT, SIZE, PER_SHARD = 60, 16, 15
EXCHANGED_AT = 30  # steps
NETWORK = ["model=unet_16", "model.attention_resolutions=[8]", "model.in_channels=3", f"data.image_size={SIZE}"]
WHERE = ["data.path=data", "data.cache_dir=cache", "data.workers=0"]
SETS = {"folder": ["data=folder", "data.num_classes=3"], "shards": ["data=webdataset", "data.window=2"]}


def data_exchanged(setting: Setting) -> Row:
    """100 runs, half-way: their images, order, labels, shards or cache are exchanged, and they are resumed.

    Other data is refused with exit status 2 in one message that names it and `fork=`, and nothing of the run changes;
    a cache that is damaged is decoded again, or where it is met while training, named. With the right data in its place
    every run ends as one whose data was left alone.
    """
    prepared = {name: _prepare(setting.place / name, name) for name in SETS}
    failures: list[str] = []
    refused = equal = 0
    trials = setting.count(100)
    for number in range(trials):
        kind, (name, exchange, says) = list(KINDS.items())[number % len(KINDS)]
        place, source = setting.place / f"{number}", random.Random(f"{setting.seed} {number}")
        with noting(failures, f"{kind} {number}"):
            shutil.copytree(prepared[name].place, place)
            right = hashlib.sha256(repr(_files(place)).encode()).hexdigest()
            exchange(place, source)
            refused += _refused(place, says)
            shutil.rmtree(place / "cache", ignore_errors=True)
            shutil.rmtree(place / "data")
            shutil.copytree(prepared[name].place / "data", place / "data")
            assert hashlib.sha256(repr(_files(place)).encode()).hexdigest() == right, "the run was changed"
            assert _resume(place)[0] == 0, "refused with the right data in its place"
            wrong = prepared[name].reference.differences(run_directories(place, NAME)[0])
            assert not wrong, wrong
            equal += 1
        if equal == number + 1 - len(failures):
            shutil.rmtree(place, ignore_errors=True)
    figure = f"named {refused}/{trials}; with the right data bit-equal {equal}/{trials}"
    return Row(
        f"images, order, labels, shards or the cache exchanged under a run, in {len(KINDS)} ways", figure, failures
    )


class _Prepared:
    """A set of images with a run on it that has stopped half-way, and what it becomes if it is just resumed."""

    def __init__(self, place: Path, reference: Reference):
        self.place = place
        self.reference = reference


def _prepare(place: Path, name: str) -> _Prepared:
    half, whole = place / "half", place / "whole"
    half.mkdir(parents=True)
    _make_data(half / "data", name, seed=0)
    arguments = [*SETS[name], *NETWORK, *RUN, *WHERE, f"name={NAME}", f"trainer.steps={EXCHANGED_AT}"]
    process = command("train", arguments, half)
    assert process.wait() == 0, process.said()
    shutil.rmtree(half / "cache")
    _forget_where_it_was_begun(run_directories(half, NAME)[0] / run_dir.RUN_FILE)
    shutil.copytree(half, whole)
    assert _resume(whole)[0] == 0, "an undisturbed run cannot be resumed"
    return _Prepared(half, Reference(run_directories(whole, NAME)[0]))


def _forget_where_it_was_begun(file: Path) -> None:
    """Copies of run and data stand for a run whose data was exchanged: their relative paths mean their own data."""
    identity = json.loads(file.read_text(encoding="utf-8"))
    del identity["begun_in"]
    file.write_text(json.dumps(identity), encoding="utf-8")


def _make_data(place: Path, name: str, seed: int) -> None:
    """Pictures of noise in folders of their classes, or in tar files; all files of a kind have the same size."""
    generator = np.random.default_rng(seed)
    pictures = place if name == "folder" else place.with_name(f"{place.name}.pictures")
    for index in range(COUNT):
        path = pictures / f"class{index * 3 // COUNT}" / f"{index:03}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    if name == "folder":
        return
    place.mkdir()
    with wds.ShardWriter(f"{place}/set-%d.tar", maxcount=PER_SHARD, verbose=0, mtime=0) as sink:
        for path in sorted(pictures.rglob("*.bmp")):
            sink.write({"__key__": path.stem, "bmp": path.read_bytes()})
    shutil.rmtree(pictures)


def _resume(place: Path, *more: str) -> tuple[int, str]:
    (run,) = run_directories(place, NAME)
    process = command("train", [f"resume={run.relative_to(place)}", f"trainer.steps={LAST}", *more], place)
    return process.wait(), process.said()


def _refused(place: Path, says: str) -> bool:
    if says == "the cache":
        return _mended_or_named(place)
    status, said = _resume(place)
    assert status == 2, f"exit status {status}: {said[-300:]}"
    assert said.startswith("ddpm-train: data: "), said
    assert len(said.splitlines()) == 1, said
    assert says in said, said
    assert "fork=" in said, said
    return True


def _mended_or_named(place: Path) -> bool:
    """Of a copy of the run: from the damaged cache as it lies there it ends early, or as if the cache were whole."""
    copy = shutil.copytree(place / "outputs", place / "copy")
    try:
        file = next((place / "cache").glob("*.npy"))
        status, said = _resume(place, "data.memory_mb=0")
        if status == 1:
            assert f"{file.name} is damaged" in said, said
            assert "remove that file" in said, said
            assert "Traceback" not in said, said
            status, said = _resume(place)
        assert status == 0, said
        assert file.name in said, said
        assert "decoding the images again" in said, said
    finally:
        shutil.rmtree(place / "outputs")
        copy.rename(place / "outputs")
    return True


def _files(place: Path) -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(place)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted((place / "outputs").rglob("*"))
        if path.is_file()
    ]


# What is exchanged ---------------------------------------------------------------------------------------------------


def _all_images(place: Path, source: random.Random) -> None:
    shutil.rmtree(place / "data")
    _make_data(place / "data", "folder", seed=1 + source.randrange(2**16))


def _one_pixel(place: Path, source: random.Random) -> None:
    _flip(source.choice(sorted((place / "data").rglob("*.bmp"))), 54, source)


def _two_images(place: Path, source: random.Random) -> None:
    """Each gets the other's name, in the same class or not: order or labels."""
    one, other = source.sample(sorted((place / "data").rglob("*.bmp")), 2)
    one.rename(place / "aside")
    other.rename(one)
    (place / "aside").rename(other)


def _one_more(place: Path, source: random.Random) -> None:
    path = source.choice(sorted((place / "data").rglob("*.bmp")))
    shutil.copyfile(path, path.with_name("zzz.bmp"))


def _labels(place: Path, source: random.Random) -> None:
    """The last images of a class become the first ones of the next: their order is what it was."""
    number = source.choice([0, 1])
    for path in sorted((place / "data" / f"class{number}").iterdir())[-source.randrange(1, 5) :]:
        path.rename(place / "data" / f"class{number + 1}" / path.name)


def _shard(place: Path, source: random.Random) -> None:
    """For one with as many images of the same names, sizes and times."""
    _make_data(place / "others", "shards", seed=1 + source.randrange(2**16))
    name = f"set-{source.randrange(COUNT // PER_SHARD)}.tar"
    shutil.copyfile(place / "others" / name, place / "data" / name)


def _shards_in_another_order(place: Path, source: random.Random) -> None:
    (place / "data" / f"set-{source.randrange(COUNT // PER_SHARD - 1)}.tar").rename(place / "data" / "set-9.tar")


def _cache_of(place: Path) -> Path:
    folder(str(place / "data"), image_size=SIZE, num_classes=3, cache_dir=str(place / "cache"), workers=0)
    return next((place / "cache").glob("*.npy"))


def _bytes_of_the_cache(place: Path, source: random.Random) -> None:
    """One in every image, so that the first batch meets one."""
    path = _cache_of(place)
    content = bytearray(path.read_bytes())
    for image in range(COUNT):
        content[128 + image * 3 * SIZE**2 + source.randrange(3 * SIZE**2)] ^= 1 << source.randrange(8)
    path.write_bytes(content)


def _zeroed_cache(place: Path, source: random.Random) -> None:
    path = _cache_of(place)
    whole = source.choice([True, False])
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)) if whole else content[:128] + bytes(len(content) - 128))


def _flip(path: Path, first: int, source: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[source.randrange(first, len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(content)


OTHERS = f"these {COUNT} images are not those"
KINDS: dict[str, tuple[str, Callable[[Path, random.Random], None], str]] = {
    "all images": ("folder", _all_images, OTHERS),
    "a shard": ("shards", _shard, OTHERS),
    "labels": ("folder", _labels, "labels have changed"),
    "bytes of the cache": ("folder", _bytes_of_the_cache, "the cache"),
    "a zeroed cache": ("folder", _zeroed_cache, "the cache"),
    "two images": ("folder", _two_images, "another order"),
    "one pixel": ("folder", _one_pixel, OTHERS),
    "one more": ("folder", _one_more, f"trained on {COUNT} images, but there are {COUNT + 1}"),
    "the order of shards": ("shards", _shards_in_another_order, "another order"),
}
