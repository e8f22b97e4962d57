"""What drew some images, as it stands beside them and in their PNGs: enough to draw them again, and nothing else."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import TINY, train
from PIL import Image, PngImagePlugin

from ddpm_cli.io.images import save_png
from ddpm_cli.io.run_identity import find
from ddpm_cli.sampling import provenance
from ddpm_cli.sampling.provenance import KEYWORD, about

FEW = ["n=2", "sampler=ddim", "sampler.steps=3", "batch_size=3"]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def text_in(file: Path) -> str:
    with Image.open(file) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert picture.text.keys() == {"Software", KEYWORD}
        return picture.text[KEYWORD]


def test_the_configuration_beside_the_images_draws_them_again(labelled: Path, sample_here, tmp_path: Path):
    """Its checkpoint too: the run may have been trained further since."""
    run = shutil.copytree(labelled, tmp_path / "run")
    options = [*FEW, "classes=[3,7]", "guidance.scale=2", "seed=5", "save=images", "save_trajectory=true"]
    done = sample_here(f"ckpt={run}", *options, "out=first")
    assert done.returncode == 0, done.stderr
    kept = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    newest = run / "checkpoints" / "step_00000004"
    assert (kept["ckpt"], kept["seed"], kept["classes"]) == (str(newest), 5, [3, 7])
    assert kept["ckpt_sha256"] == hashlib.sha256((newest / "manifest.json").read_bytes()).hexdigest()
    assert kept["guidance"]["scale"] == 2
    identity = json.loads((tmp_path / "first" / "samples.json").read_text())
    assert f"# checkpoint: {identity['ckpt']}\n" in (tmp_path / "first" / "config.yaml").read_text()
    done = train(f"resume={run}", "trainer.steps=6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = sample_here("--config-path", "first", "--config-name", "config", "out=again")
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "again") == contents(tmp_path / "first")
    shutil.copy(run / "checkpoints" / "step_00000006" / "manifest.json", newest / "manifest.json")
    refused = sample_here("--config-path", "first", "--config-name", "config", "out=other")
    assert refused.returncode == 2
    assert "is not the one asked for: its SHA-256 is" in refused.stderr


@pytest.mark.parametrize("mode", ["edit", "interpolate"])
def test_of_every_mode(mode: str, labelled: Path, sample_here, tmp_path: Path, rng: np.random.Generator):
    Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / "given.png")
    options = {"edit": ["image=given.png", "strength=0.5"], "interpolate": ["seeds=[1,2]"]}[mode]
    done = sample_here(f"ckpt={labelled}", f"mode={mode}", *options, "n=2", "sampler=ddpm", "out=first")
    assert done.returncode == 0, done.stderr
    again = sample_here("--config-path", "first", "--config-name", "config", "out=again")
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "again") == contents(tmp_path / "first")
    other = {"edit": "strength=0.9", "interpolate": "seeds=[3,4]"}[mode]
    changed = sample_here("--config-path", "first", "--config-name", "config", other, "out=changed")
    assert changed.returncode == 0, changed.stderr
    assert contents(tmp_path / "changed")["samples.png"] != contents(tmp_path / "first")["samples.png"]


def test_every_png_says_what_drew_it(labelled: Path, sample_here, tmp_path: Path):
    for out in ("one", "two"):
        options = [*FEW, "classes=[3,7]", "save=images", "save_trajectory=true", f"out={tmp_path}/{out}"]
        done = sample_here(f"ckpt={labelled}", *options)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two"), "wherever they lie"
    config = (tmp_path / "one" / "config.yaml").read_text()
    assert [text_in(tmp_path / "one" / name) for name in ("samples.png", "steps.png")] == [config, config]
    for i, label in enumerate((3, 3, 7, 7)):
        said = text_in(tmp_path / "one" / "images" / f"{i:06d}.png")
        assert said == f"# image {i} of 4, class {label}: {label}\n{config}"


def test_a_home_is_not_told_and_files_alone_have_their_own_hash(
    labelled: Path, sample_here, tmp_path: Path, monkeypatch
):
    (tmp_path / "secret").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "secret"))
    (average,) = labelled.glob("checkpoints/step_00000004/ema.safetensors")
    shutil.copy(average, tmp_path / "secret")
    done = sample_here(f"ckpt={tmp_path}/secret/ema.safetensors", *FEW, "out=out")
    assert done.returncode == 0, done.stderr
    said = text_in(tmp_path / "out" / "samples.png")
    assert yaml.safe_load(said)["ckpt"] == "~/ema.safetensors"
    assert yaml.safe_load(said)["ckpt_sha256"] == hashlib.sha256(average.read_bytes()).hexdigest()
    assert str(tmp_path).encode() not in (tmp_path / "out" / "samples.png").read_bytes()
    assert "secret" not in said
    again = sample_here("--config-path", "out", "--config-name", "config", "out=again")
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_text_is_no_larger_than_it_may_be_and_says_what_is_cut(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(provenance, "MOST_TEXT", 1000)
    said = about("classes:\n" + "- 7\n" * 1000, "image 3 of 9, class 1: K\u00e4fer\x1b")
    save_png(torch.zeros(1, 2, 2, dtype=torch.uint8), tmp_path / "x.png", said)
    said = text_in(tmp_path / "x.png")
    assert said.startswith("# image 3 of 9, class 1: K\\xe4fer\\x1b\nclasses:\n- 7\n- 7\n")
    assert said.endswith("\n- 7\n# and more, in config.yaml\n")
    assert len(said) < 1030
    assert set(yaml.safe_load(said)["classes"]) == {7}


def test_the_configuration_of_a_training_in_the_same_directory_stays(tmp_path: Path, sample_here):
    assert train(*TINY, "trainer.steps=1", "hydra.run.dir=run", cwd=tmp_path).returncode == 0
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    done = sample_here("ckpt=run", *FEW, "out=run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert done.stdout.splitlines()[-1] == "run/samples.png"


def test_what_was_drawn_is_no_run_of_that_name(labelled: Path, sample_here, tmp_path: Path):
    (average,) = labelled.glob("checkpoints/step_00000004/ema.safetensors")
    shutil.copy(average, tmp_path)
    assert sample_here("ckpt=ema.safetensors", *FEW).returncode == 0
    (drawn,) = (tmp_path / "outputs" / "samples").iterdir()
    assert (drawn / "config.yaml").is_file()
    assert find(tmp_path / "outputs", "samples").directory is None
    (tmp_path / "outputs" / "samples" / "begun").mkdir()
    (tmp_path / "outputs" / "samples" / "begun" / "config.yaml").touch()
    assert find(tmp_path / "outputs", "samples").directory == tmp_path / "outputs" / "samples" / "begun"
