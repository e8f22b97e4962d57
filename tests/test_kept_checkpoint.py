"""A checkpoint written by version 0.1.0 is kept here: every later version must sample from it and go on with it."""

import shutil
from pathlib import Path

import pytest
import torch
from commands import sample, train

from ddpm_cli.checkpoint.pretrained import load

EXPECTED = [-0.0064537986, -0.0024505276, 0.0020317566, 0.0041775648]
KEPT = Path(__file__).parent / "kept" / "format_1"


def test_it_is_small():
    assert sum(file.stat().st_size for file in KEPT.rglob("*") if file.is_file()) < 50_000


def test_it_computes_what_it_computed():
    """The answer for one image, as the version that wrote the checkpoint gave it."""
    found = load(KEPT)
    assert found.step == 3
    assert found.image_shape == (1, 8, 8)
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    with torch.no_grad():
        out = found.ddpm.model(x, torch.tensor([5])).flatten()
    assert out[[0, 9, 33, 63]].tolist() == pytest.approx(EXPECTED, abs=1e-6)


def test_it_is_sampled_from_and_gone_on_with(tmp_path: Path):
    run = shutil.copytree(KEPT, tmp_path / "run")
    drawn = sample(f"ckpt={run}", "n=4", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    resumed = train(f"resume={run}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed  at step 3" in resumed.stdout
    assert "step 4/4" in resumed.stdout
