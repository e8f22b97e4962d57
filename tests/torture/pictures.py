"""A folder of images in which some are bad: all of those are named, and nothing else notices them."""

import io
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from ddpm_cli.data.folder import folder
from ddpm_cli.io.text import printable
from torture.trials import RUN, Row, Setting, command, noting, run_directories

GOOD, BAD = 950, 50
IMAGE_SIZE = 16
PATH_MAX = 4096  # bytes of a path, with the NUL at its end, that Linux takes in one piece
BOMB = 20_000  # pixels a side: 400 megapixels, in 50 kB
KINDS = [  # of good images: suffix, modes
    ("png", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16"]),
    ("jpg", ["RGB", "L", "CMYK"]),
    ("jpeg", ["RGB"]),
    ("webp", ["RGB", "RGBA"]),
    ("bmp", ["RGB", "L", "1"]),
    ("PNG", ["RGB"]),
]


def bad_images(setting: Setting) -> Row:
    """1000 images, 50 of them bad in ten ways; as many in a quick run.

    The command that stops names exactly those, each once, and begins nothing; the one that skips trains, and lists
    exactly those in its run; and the pixels are the ones of the same folder without them, in the same order.
    """
    good, mixed = setting.place / "good", setting.place / "mixed"
    _make_good_images(good, setting.random)
    shutil.copytree(good, mixed)
    names = _add_bad_images(mixed, good, setting.random)
    expected = sorted(printable(f"{mixed}/{name}") for name in names)
    failures: list[str] = []
    try:
        with noting(failures, "data.on_bad=stop"):
            _check_stopping(mixed, expected, setting.place / "stop")
        with noting(failures, "data.on_bad=skip"):
            _check_skipping(mixed, expected, setting.place / "skip")
        for workers in (0, 2):
            with noting(failures, f"the pixels, data.workers={workers}"):
                _check_pixels(good, mixed, expected, setting.place / f"cache{workers}", workers)
    finally:
        shutil.rmtree(mixed)  # now: not everything that removes folders can remove these
    figure = f"{BAD}/{BAD} named, {GOOD}/{GOOD} others unchanged, by 0 and 2 processes" if not failures else "not so"
    return Row(f"{GOOD + BAD} images, {BAD} of them bad in {len(WAYS)} ways: exactly those named", figure, failures)


# What is checked -----------------------------------------------------------------------------------------------------


def _train(path: Path, place: Path, *more: str) -> tuple[int, str]:
    """Two steps of a tiny network on a folder: exit status, and what was said."""
    network = ["model=unet_16", "model.attention_resolutions=[8]", f"data.image_size={IMAGE_SIZE}"]
    arguments = ["data=folder", f"data.path='{path}'", *network, *RUN, "name=x", "trainer.steps=2", *more]
    process = command("train", arguments, place, XDG_CACHE_HOME=f"{place}.cache")
    return process.wait(), process.said()


def _check_stopping(mixed: Path, expected: list[str], place: Path) -> None:
    status, said = _train(mixed, place)
    first, *lines = said.splitlines()
    assert status == 2, said[-500:]
    assert first.startswith(f"ddpm-train: data: {BAD} images in {mixed} "), first
    _check_names(lines, expected)
    assert list(place.iterdir()) == [], "something was begun"


def _check_skipping(mixed: Path, expected: list[str], place: Path) -> None:
    status, said = _train(mixed, place, "data.on_bad=skip")
    assert status == 0, said[-500:]
    assert f"mixed: {GOOD} images" in said, said
    assert f"skipped  {BAD} bad images, listed in skipped_images.txt" in said, said
    (run,) = run_directories(place, "x")
    _check_names((run / "skipped_images.txt").read_text(encoding="utf-8").splitlines(), expected)


def _check_pixels(good: Path, mixed: Path, expected: list[str], cache: Path, workers: int) -> None:
    alone, among = (
        folder(str(path), image_size=IMAGE_SIZE, on_bad="skip", cache_dir=str(cache / path.name), workers=workers)
        for path in (good, mixed)
    )
    assert alone.skipped == ()
    assert len(alone) == GOOD
    _check_names(list(among.skipped), expected)
    np.testing.assert_array_equal(among.pixels, alone.pixels)


def _check_names(lines: list[str], expected: list[str]) -> None:
    """Each line is "path: reason", and the paths are those expected, each once."""
    named = sorted(line.strip().partition(": ")[0] for line in lines)
    wrong = set(named) ^ set(expected)
    assert not wrong, f"{len(wrong)} wrongly named or missing: {sorted(wrong)[:3]}"
    assert named == expected, "one is named twice"


# Good images ---------------------------------------------------------------------------------------------------------


def _make_good_images(root: Path, source: random.Random) -> None:
    """Pictures of every format, mode and a few sizes, all different, in folders three deep."""
    folders = ["", "a", "a/b", "a/b/c", "a b", "ä/図", "z", "z/0", "Z"]
    generator = np.random.default_rng(source.randrange(2**32))
    for number in range(GOOD):
        place = root / source.choice(folders)
        place.mkdir(parents=True, exist_ok=True)
        suffix, modes = source.choice(KINDS)
        height, width = source.choice([(16, 16), (20, 31), (40, 17), (64, 64), (9, 12)])
        _picture(generator, height, width, source.choice(modes)).save(place / f"{number:04} good.{suffix}")


def _picture(generator: np.random.Generator, height: int, width: int, mode: str) -> Image.Image:
    noise = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0])
    return Image.fromarray(noise).convert("RGB" if mode not in ("RGBA", "LA") else "RGBA").convert(mode)


# Bad images ----------------------------------------------------------------------------------------------------------


def _add_bad_images(root: Path, good: Path, source: random.Random) -> list[str]:
    """Put BAD of them among the good ones, and a few things that are no images; returns the names to be named."""
    folders = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())
    names = []
    for number in range(BAD):
        way = WAYS[number % len(WAYS)]
        suffix = ["png", "jpg", "webp", "bmp", "jpeg"][number // len(WAYS)]
        name = f"{source.choice(folders)}/{source.randrange(GOOD):04} {way.__name__.strip('_')} {number}.{suffix}"
        names.append(way(root / name, good, name) or name)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    os.mkfifo(root / "a" / "pipe")
    return names


def _truncated(path: Path, good: Path, name: str) -> None:
    content = io.BytesIO()
    picture = _picture(np.random.default_rng(0), 64, 64, "RGB")
    picture.save(content, Image.registered_extensions()[path.suffix])
    path.write_bytes(content.getvalue()[: len(content.getvalue()) * 2 // 3])


def _empty(path: Path, good: Path, name: str) -> None:
    path.touch()


def _no_image(path: Path, good: Path, name: str) -> None:
    path.write_text("<html><title>404 Not Found</title></html>\n" * 20)


def _garbage(path: Path, good: Path, name: str) -> None:
    """The first bytes are right, and nothing after them."""
    magic = {
        ".png": b"\x89PNG\r\n\x1a\n",
        ".jpg": b"\xff\xd8\xff\xe0",
        ".jpeg": b"\xff\xd8\xff\xe1",
        ".webp": b"RIFF\x00\x10\x00\x00WEBPVP8 ",
        ".bmp": b"BM",
    }
    path.write_bytes(magic[path.suffix] + random.Random(name).randbytes(4096))


def _pixel_bomb(path: Path, good: Path, name: str) -> None:
    """A few kilobytes that are 400 megapixels."""
    packed = zlib.compressobj()
    rows = bytes(1 + BOMB // 8) * (BOMB // 100)
    data = b"".join(packed.compress(rows) for _ in range(100)) + packed.flush()
    header = struct.pack(">IIBBBBB", BOMB, BOMB, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks)))


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text_bomb(path: Path, good: Path, name: str) -> None:
    """A small picture with a comment of 100 megabytes in 100 kilobytes."""
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "x" * 100_000_000, zip=True)
    content = io.BytesIO()
    _picture(np.random.default_rng(0), 16, 16, "RGB").save(content, "PNG", pnginfo=comment)
    path.write_bytes(content.getvalue())


def _link_outside(path: Path, good: Path, name: str) -> None:
    path.symlink_to(min(good.rglob("*.png")))


def _broken_link(path: Path, good: Path, name: str) -> None:
    path.symlink_to("gone.png")


def _fifo(path: Path, good: Path, name: str) -> None:
    """To open it is to wait for somebody to write into it."""
    os.mkfifo(path)


def _too_deep(path: Path, good: Path, name: str) -> str:
    """A picture further down than a path can say. Returns the first folder that cannot be listed."""
    parts = [path.with_suffix("").name, *["d" * 250] * 20]
    with _inside(path.parent):
        for part in parts:
            os.mkdir(part)
            os.chdir(part)
        Image.new("L", (16, 16)).save("deep.png")
    root, below = str(path).removesuffix(name), str(Path(name).parent)
    deeper = ("/".join([below, *parts[:depth]]) for depth in range(1, len(parts) + 1))
    return next(where for where in deeper if len(os.fsencode(root + where)) >= PATH_MAX)


@contextmanager
def _inside(place: Path) -> Iterator[None]:
    here = os.getcwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(here)


WAYS: list[Callable[[Path, Path, str], str | None]] = [
    _truncated,
    _empty,
    _no_image,
    _garbage,
    _pixel_bomb,
    _text_bomb,
    _link_outside,
    _broken_link,
    _fifo,
    _too_deep,
]
