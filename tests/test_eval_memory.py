"""An evaluation of many images takes no more memory than one of few: a batch, and the sums."""

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from commands import only, start

from ddpm_cli.config.eval_options import OF_FEATURES
from ddpm_cli.evaluation import frechet, memorization, metrics, neighbours, statistics
from ddpm_cli.evaluation.metrics import Comparison, Side

MIB = 2**20

# Figures --------------------------------------------------------------------------------------------------------------

DIMENSIONS = 256
FEW, MANY = 500, 2500
BLOCK = 128  # rows
ALL_MORE = 4 * DIMENSIONS * (MANY - FEW)  # bytes that the features of many take more, were they in memory
MOST_MORE = ALL_MORE // 4  # for what is kept of an image beside its features, such as its nearest neighbour


@pytest.fixture
def small_blocks(monkeypatch):
    """All arrays that are parts of a whole are full with few features already."""
    monkeypatch.setattr(statistics, "CHUNK_BYTES", 8 * DIMENSIONS * BLOCK)
    monkeypatch.setattr(frechet, "_ROWS", BLOCK)
    monkeypatch.setattr(memorization, "ROWS", BLOCK)
    for name, value in (("ROWS", BLOCK), ("COLUMNS", BLOCK), ("_EXACT_VALUES", DIMENSIONS * BLOCK)):
        monkeypatch.setattr(neighbours, name, value)


def peak(metric: str, file: Path, reference: Side, count: int) -> int:
    """The most bytes that numpy's arrays take at a time, of those features that come first."""
    features = np.memmap(file, np.float32, mode="r", shape=(count, DIMENSIONS))

    def probabilities():
        for first in range(0, count, BLOCK):
            p = np.exp(features[first : first + BLOCK], dtype=np.float64)
            yield p / p.sum(axis=1, keepdims=True)

    comparison = Comparison(samples=Side(features=features), reference=reference, seed=0, probabilities=probabilities)
    tracemalloc.start()
    try:
        found = list(metrics.measure(comparison, [metric], per_class=False))
        if metric == "fd":
            assert list(metrics.remarks(comparison, found, "wide"))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("metric", OF_FEATURES)
def test_a_figure_of_many_features_takes_no_more_memory_than_one_of_few(metric: str, small_blocks, tmp_path: Path):
    random = np.random.default_rng(0)
    features = random.standard_normal((MANY, DIMENSIONS), np.float32)
    features.tofile(tmp_path / "features")
    other = np.array(features[::10])  # copies, too
    reference = Side(features=other, known=statistics.FeatureSums.of(other).statistics())
    few, many = (peak(metric, tmp_path / "features", reference, count) for count in (FEW, MANY))
    assert many - few < MOST_MORE, (few, many)


# The command ----------------------------------------------------------------------------------------------------------

WIDE = """
import torch

class Wide:
    name, dimensions = "wide", 2048

    def identity(self):
        return {"name": self.name}

    def prepare(self, data, device):
        self.matrix = torch.randn(256, 2048, generator=torch.Generator().manual_seed(0)) / 8

    def __call__(self, images):
        return (images.flatten(1).float() / 127.5 - 1) @ self.matrix

    def class_probabilities(self, features):
        return None
"""


def most_anonymous(count: int, ckpt: Path, cwd: Path) -> int:
    """Bytes of memory that no file stands behind, of an evaluation of `count` images; looked at all the time."""
    told = [f"n={count}", "batch_size=500", "sampler=ddim", "sampler.steps=1", "metrics=[fd,kd]", f"out=of_{count}"]
    process = start(
        "eval", "--config-dir", "conf", f"ckpt={ckpt}", "features=wide", *told, cwd=cwd, PYTHONPATH=str(cwd)
    )
    status, most = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        lines = status.read_text().splitlines() if status.exists() else []
        most = max([most, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))])
        time.sleep(0.01)
    assert process.returncode == 0, process.communicate()
    (path,) = (cwd / f"of_{count}").glob("*.json")
    assert [figure["n"] for figure in json.loads(path.read_text())["metrics"]] == [count, count]
    return most


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="who else has it, nobody is told here")
def test_fifty_thousand_images_take_no_more_memory_than_five_thousand(finished, tmp_path: Path):
    """Of 2048 features each, which would take 352 MiB more."""
    (tmp_path / "conf" / "features").mkdir(parents=True)
    (tmp_path / "conf" / "features" / "wide.yaml").write_text("_target_: wide.Wide\n")
    (tmp_path / "wide.py").write_text(WIDE)
    ckpt = only(finished[0] / "outputs" / "digits")
    few, many = (most_anonymous(count, ckpt, tmp_path) for count in (5_000, 50_000))
    assert many - few < 64 * MIB, (few // MIB, many // MIB)
