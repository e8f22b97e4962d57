"""`ddpm-sample` as a user runs it."""

from pathlib import Path

import numpy as np
from commands import sample
from PIL import Image


def test_sampling_needs_only_the_checkpoint(home: Path, trained):
    directory, _ = trained
    done = sample(f"ckpt={directory}", "n=5", cwd=home)
    assert done.returncode == 0, done.stderr
    (picture,) = (directory / "samples").glob("*/samples.png")
    assert str(picture) in done.stdout
    with Image.open(picture) as grid:
        assert grid.mode == "L"
        assert grid.size == (3 * 66 + 2, 2 * 66 + 2), "16 x 16 images enlarged four times, three in a row"


def test_image_i_is_the_same_for_every_batch_size_and_every_kind_of_ckpt(home: Path, trained, tmp_path: Path):
    directory, _ = trained
    newest = sorted((directory / "checkpoints").iterdir())[-1]
    found = {}
    for name, ckpt, batch_size in [
        ("run", directory, 5), ("checkpoint", newest, 2), ("file", newest / "ema.safetensors", 1)
    ]:  # fmt: skip
        out = tmp_path / name
        done = sample(f"ckpt={ckpt}", f"batch_size={batch_size}", "n=5", "save=npz", f"out={out}", cwd=home)
        assert done.returncode == 0, done.stderr
        with np.load(out / "samples.npz") as archive:
            found[name] = archive["arr_0"]
    assert found["run"].shape == (5, 16, 16, 1)
    assert found["run"].dtype == np.uint8
    for name in ("checkpoint", "file"):
        difference = np.abs(found["run"].astype(int) - found[name].astype(int))
        assert difference.max() <= 1, "kernels for other batch sizes may round the last bit the other way"
    assert not np.array_equal(found["run"][0], found["run"][1])


def test_films_single_images_and_the_other_weights(home: Path, trained, tmp_path: Path):
    directory, _ = trained
    arguments = [f"ckpt={directory}", "n=3", "batch_size=2", "sampler=ddim", "sampler.steps=6", "seed=4"]
    done = sample(*arguments, "save=images", "save_steps=true", f"out={tmp_path}/a", cwd=home)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "a" / "images").iterdir()) == [f"{i:06d}.png" for i in range(3)]
    with Image.open(tmp_path / "a" / "steps.png") as strip:
        assert strip.size == (6 * 66 + 2, 3 * 66 + 2), "a row per image, a column per step"
    with Image.open(tmp_path / "a" / "steps.gif") as film:
        assert film.n_frames == 6
    done = sample(*arguments, "weights=model", f"out={tmp_path}/b", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "samples.png").read_bytes() != (tmp_path / "b" / "samples.png").read_bytes()
    again = sample(*arguments, f"out={tmp_path}/a", cwd=home)
    assert again.returncode == 2
    assert "already holds samples.png" in again.stderr


def test_the_checkpoints_variance_is_used_unless_another_is_chosen(home: Path, trained, tmp_path: Path):
    directory, _ = trained
    pictures = {}
    for name, extra in {"own": [], "small": ["variance=fixed_small"], "large": ["variance=fixed_large"]}.items():
        done = sample(f"ckpt={directory}", "n=2", "sampler.steps=5", *extra, f"out={tmp_path}/{name}", cwd=home)
        assert done.returncode == 0, done.stderr
        pictures[name] = (tmp_path / name / "samples.png").read_bytes()
    assert pictures["own"] == pictures["small"] != pictures["large"]
