"""Images that are kept from training: which, that no batch holds one, and that nothing else changes."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import TINY_RUN, assert_one_message, only, train
from safetensors.torch import load_file
from test_same_data import make_pictures, write_shards

from ddpm_cli.checkpoint.migrate import upgrade
from ddpm_cli.config.common_options import without_common
from ddpm_cli.data.datasets import digits
from ddpm_cli.data.folder import folder
from ddpm_cli.data.holdout import hold_out, others, selected
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.data.stored_pixels import StoredPixels
from ddpm_cli.data.tar_reader import TarReader
from ddpm_cli.data.webdataset import webdataset


def in_memory(place: Path) -> ImageSet:
    return digits(image_size=8, num_classes=10)


def in_the_cache(place: Path) -> ImageSet:
    images = folder(str(make_pictures(place / "p")), image_size=8, memory_mb=0, cache_dir=str(place / "c"), workers=0)
    assert isinstance(images.pixels, StoredPixels)
    return images


def in_tar_files(place: Path) -> ImageSet:
    write_shards(place / "data", make_pictures(place / "p"))
    images = webdataset(str(place / "data"), image_size=8, window=2, cache_dir=str(place / "c"), workers=0)
    assert isinstance(images.pixels, TarReader)
    return images


@pytest.mark.parametrize("read", [in_memory, in_the_cache, in_tar_files])
def test_no_batch_holds_one_and_an_epoch_has_all_others(read, tmp_path: Path):
    images = read(tmp_path)
    count = len(images) // 3
    chosen = hold_out(images, count, seed=1)
    assert len(set(chosen.tolist())) == count
    kept = others(images, chosen)
    assert sorted([*kept, *chosen]) == list(range(len(images)))
    batch = BatchLoader(images, len(kept), seed=5, held_out=chosen)
    assert batch.count == len(kept)
    for epoch in range(3):
        assert sorted(batch.indices(epoch)) == kept.tolist()
    assert batch.indices(0).tolist() != batch.indices(1).tolist()
    assert len(batch.first_images(len(images))) == len(kept)

    held_out = selected(images, chosen)
    assert held_out.shape == images.shape
    assert len(held_out) == count
    for place in (0, count - 1):
        one = held_out.pixels[np.array([place], np.int64)]
        assert (one == images.pixels[chosen[[place]]]).all()
    if images.labels is not None:
        assert held_out.labels is not None
        assert (held_out.labels == images.labels[chosen]).all()


def test_the_seed_chooses_and_fewer_are_among_more():
    images = digits(image_size=8)
    few, many, another = (hold_out(images, count, seed) for count, seed in ((20, 1), (200, 1), (200, 2)))
    assert set(few) < set(many)
    assert len(set(many) & set(another)) < 60, "of 200 in 1797, 22 by chance"
    assert hold_out(images, 0, 1).tolist() == []
    for count in (-1, 1797):
        with pytest.raises(ValueError, match=rf"must be from 0 to 1796, of 1797 images, got {count}"):
            hold_out(images, count, 1)


def test_a_bad_image_is_not_replaced_by_one_that_is_held_out(tmp_path: Path):
    images = in_tar_files(tmp_path)
    assert isinstance(images.pixels, TarReader)
    chosen = set(hold_out(images, len(images) // 2, seed=0).tolist())
    for image in range(len(images)):
        following = images.pixels._following(image)
        assert following
        assert all((other in chosen) == (image in chosen) for other in following)


def test_what_a_target_of_ones_own_is_not_told():
    node = {"_target_": "mine.stripes", "image_size": 8}
    assert without_common(node | {"holdout": 3}) == (node, (3,))
    assert without_common(node) == (node, (0,))
    with pytest.raises(ValueError, match="holdout must be a whole number, got 'x'"):
        without_common({"_target_": "mine.takes_anything", "holdout": "x"})


def trained(*arguments: str, cwd: Path) -> Path:
    done = train(*TINY_RUN, "trainer.preview_every=0", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return only(cwd / "outputs" / "digits")


def test_a_run_resumes_exactly_and_guards_the_whole_set(tmp_path: Path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = trained("data.holdout=1000", cwd=tmp_path / "whole")
    parts = trained("data.holdout=1000", "trainer.steps=2", cwd=tmp_path / "parts")
    assert "1,797 images, 16 x 16 x 1; held out: 1,000" in (parts / "train.log").read_text()
    for refused in ("data.holdout=0", "seed=1"):
        done = train(f"resume={parts}", refused, "trainer.steps=4", cwd=tmp_path)
        assert_one_message(done, "train", f"{refused.partition('=')[0]}: cannot change when resuming")
    done = train(f"resume={parts}", "trainer.steps=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    states = [load_file(run / "checkpoints" / "step_00000004" / "training.safetensors") for run in (whole, parts)]
    for name, tensor in states[0].items():
        assert (tensor == states[1][name]).all(), name
    described = json.loads((parts / "checkpoints" / "step_00000004" / "checkpoint.json").read_text())
    assert described["images"] == 1797
    assert described["config"]["data"]["holdout"] == 1000
    for option, warns in (("data.holdout=1001", True), ("data.holdout=999", False)):
        forked = train(f"fork={parts}", option, "trainer.steps=5", f"name=warns_{warns}", cwd=tmp_path)
        assert forked.returncode == 0, forked.stderr
        assert ("was trained on some of the images that are held out now" in forked.stdout) == warns, option


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("data.holdout=1797", r"data.holdout: must be from 0 to 1796, of 1797 images, got 1797"),
        ("data.holdout=-1", r"data: holdout must not be negative, got -1"),
        ("data.holdout=1790", r"data.holdout: leaves 7 of 1797 images, fewer than a batch \(trainer.batch_size=8\)"),
        ("data.holdout=some", "data.holdout: expected a whole number"),
    ],
)
def test_what_cannot_be_held_out_is_refused(option: str, says: str, tmp_path: Path):
    done = train(*TINY_RUN, option, cwd=tmp_path)
    assert_one_message(done, "train", says)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_before_there_were_any_held_nothing_out():
    for target in ("digits", "mine.own"):
        assert upgrade({"data": {"_target_": target}}, 3)["data"]["holdout"] == 0
    assert upgrade({"data": {"_target_": "digits", "holdout": 3}}, 3)["data"]["holdout"] == 3
