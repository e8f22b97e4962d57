"""The well-known data sets as they are published, but small: archives in the real format, and their checksums."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ddpm_cli.data import datasets as sources


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx_file(values: np.ndarray) -> bytes:
    """MNIST's format for uint8 arrays, gzipped."""
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def cifar_archive(pixels: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """cifar-10-python.tar.gz with `pixels` `[5n, 3, 32, 32]` and `labels` `[5n]`, its checksums told to torchvision."""
    from torchvision.datasets import CIFAR10

    parts = zip(pixels.reshape(5, -1, 3072), labels.reshape(5, -1).tolist(), strict=True)
    entries = [(f"data_batch_{i}", {"data": data, "labels": part}) for i, (data, part) in enumerate(parts, start=1)]
    entries += [("test_batch", entries[0][1]), ("batches.meta", {"label_names": "a"})]
    members = {name: pickle.dumps(entry) for name, entry in entries}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sums = [[name, md5(content)] for name, content in members.items()]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:6])
    monkeypatch.setitem(CIFAR10.meta, "md5", sums[6][1])
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(packed.getvalue()))
    return packed.getvalue()


class Published:
    """A data set as published: `pixels` and `labels`, and the source that reads them.

    `content` is the archive that holds the pixels, `place` is where it goes below the root. The labels of MNIST-like
    sets are in a second one; CIFAR-10's are in the same, and `labels_place` is "".
    """

    def __init__(self, name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
        from torchvision import datasets

        self.source = getattr(sources, name)
        self.monkeypatch = monkeypatch
        self.labels = rng.permutation(10)
        self.labels_content, self.labels_place = b"", ""
        if name == "cifar10":
            self.kind = datasets.CIFAR10
            self.pixels = rng.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
            self.content = cifar_archive(self.pixels, self.labels, monkeypatch)
            self.place = "cifar-10-python.tar.gz"
        else:
            self.kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
            self.pixels = rng.integers(0, 256, (10, 1, 28, 28), dtype=np.uint8)
            self.content, self.labels_content = idx_file(self.pixels[:, 0]), idx_file(self.labels)
            files = [("train-images-idx3-ubyte.gz", self.content), ("train-labels-idx1-ubyte.gz", self.labels_content)]
            self.place, self.labels_place = (f"{self.kind.__name__}/raw/{file}" for file, _ in files)
            resources = [(file, md5(content)) for file, content in files]
            monkeypatch.setattr(self.kind, "resources", [*resources, *self.kind.resources[2:]])

    def put(self, root: Path, content: bytes) -> Path:
        """The archive that holds the pixels, with `content`."""
        return _write(root / self.place, content)

    def put_labels(self, root: Path, content: bytes) -> Path:
        """The archive that holds the labels of an MNIST-like set, with `content`."""
        assert self.labels_place
        return _write(root / self.labels_place, content)

    def put_all(self, root: Path):
        self.put(root, self.content)
        if self.labels_place:
            self.put_labels(root, self.labels_content)

    def put_test_split(self, root: Path) -> slice:
        """The files of a test split, of some of the same images; returns of which. CIFAR-10 has it in its archive."""
        if not self.labels_place:
            return slice(0, 2)
        shown, resources = slice(4, 10), []
        for kind, values in (("images-idx3", self.pixels[shown, 0]), ("labels-idx1", self.labels[shown])):
            file, content = f"t10k-{kind}-ubyte.gz", idx_file(values)
            _write(root / Path(self.place).parent / file, content)
            resources.append((file, md5(content)))
        self.monkeypatch.setattr(self.kind, "resources", [*self.kind.resources[:2], *resources])
        return shown

    def serve_at(self, address: str):
        if hasattr(self.kind, "mirrors"):
            self.monkeypatch.setattr(self.kind, "mirrors", [f"{address}/gone/", f"{address}/"])
        else:
            self.monkeypatch.setattr(self.kind, "url", f"{address}/{self.place}")


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
