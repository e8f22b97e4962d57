"""Data sets and pictures that recipes read: made, not kept, and the same every time."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import smooth
from PIL import Image
from published import Published

CLASSES = 3
PICTURES = 18  # in the folder and in the tar files
PER_SHARD = 5


def make(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything in `place`, whose checksums torchvision is told by `monkeypatch`.

    published/        MNIST, Fashion-MNIST and CIFAR-10 of ten images each, as they are published
    folder/, broken/  pictures of all modes in class folders; the second with some that cannot be read
    shards/           the same in tar files
    given/            two pictures; beside it grey.png and mask.png: for the modes of ddpm-sample; wide_mask.png is what
                      an earlier version made of mask.png for a network of 16 x 24: it stretched masks to any shape
    """
    random = np.random.default_rng(0)
    for name in ("mnist", "fashion_mnist", "cifar10"):
        Published(name, random, monkeypatch).put_all(place / "published")
    pictures = [_encoded(random, number) for number in range(PICTURES)]
    for folder in ("folder", "broken"):
        for number, (suffix, content) in enumerate(pictures):
            broken = folder == "broken" and number % 7 == 5
            file = place / folder / f"class_{number % CLASSES}" / f"{number:03d}.{suffix}"
            _write(file, b"no picture" if broken else content)
    for first in range(0, PICTURES, PER_SHARD):
        numbered = list(enumerate(pictures))[first : first + PER_SHARD]
        _write(place / "shards" / f"set-{first // PER_SHARD:03d}.tar", _tar(numbered))
    for number in range(2):
        _write(place / "given" / f"{number}.png", _png(smooth(random, 20 + number, 24)))
    _write(place / "grey.png", _png(smooth(random, 16, 16).convert("L")))
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 3:9] = 255
    _write(place / "mask.png", _png(Image.fromarray(mask)))
    stretched = Image.fromarray(mask).resize((24, 16), Image.Resampling.BICUBIC, box=(0, 8 / 3, 16, 40 / 3))
    _write(place / "wide_mask.png", _png(stretched))


def _encoded(random: np.random.Generator, number: int) -> tuple[str, bytes]:
    """A suffix and a file's content: PNG or JPEG, of several sizes and modes."""
    picture = smooth(random, 20 + number % 5, 24 + number % 3)
    if number % 4 == 3:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=90)
        return "jpg", content.getvalue()
    return "png", _png(picture.convert(("RGB", "L", "P")[number % 4]))


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _tar(numbered: list[tuple[int, tuple[str, bytes]]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number, (suffix, picture) in numbered:
            extra = json.dumps({"number": number}).encode()
            for end, data in ((suffix, picture), ("cls", str(number % CLASSES).encode()), ("json", extra)):
                info = tarfile.TarInfo(f"{number:03d}.{end}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
