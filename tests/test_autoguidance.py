"""`guidance=autoguidance` by the commands: a checkpoint that guides another."""

import io
import json
import shutil
from pathlib import Path

import pytest
from commands import TINY_RUN, assert_one_message, only, run, sample, train
from PIL import Image

from ddpm_cli.io.own_output import GRID_FILE

DRAW = ["n=4", "sampler=ddim", "sampler.steps=3"]


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory) -> Path:
    """A directory with the links `run`, and `guide`, one of its earlier checkpoints."""
    place = shutil.copytree(finished[0], tmp_path_factory.mktemp("guided") / "home")
    directory = only(place / "outputs" / "digits")
    directory.rename(place / "run")
    shutil.copytree(sorted((place / "run" / "checkpoints").iterdir())[0], place / "guide")
    return place


def picture(place: Path, *options: str) -> bytes:
    done = sample("ckpt=run", *DRAW, *options, cwd=place)
    assert done.returncode == 0, done.stderr
    (out,) = [option.partition("=")[2] for option in options if option.startswith("out=")]
    return (place / out / GRID_FILE).read_bytes()


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


def test_another_checkpoint_guides(place: Path):
    plain = picture(place, "out=plain")
    done = sample("ckpt=run", *DRAW, "guidance=autoguidance", "guidance.guide=guide", "out=guided", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "guided away from step 2 of guide" in done.stdout
    assert pixels((place / "guided" / GRID_FILE).read_bytes()) != pixels(plain)
    itself = picture(place, "guidance=autoguidance", "guidance.guide=run", "guidance.scale=3", "out=itself")
    assert pixels(itself) == pixels(plain), "the difference from itself is none"


def test_images_are_known_again_by_what_is_in_the_guide(place: Path):
    options = [*DRAW, "guidance=autoguidance", "out=twice"]
    assert sample("ckpt=run", *options, "guidance.guide=guide", cwd=place).returncode == 0
    shutil.copytree(place / "guide", place / "moved")
    again = sample("ckpt=run", *options, "guidance.guide=moved", cwd=place)
    assert "holds these images already" in again.stdout
    other = sample("ckpt=run", *options, "guidance.guide=run", cwd=place)
    assert_one_message(other, "sample", "out: .*guidance.guide")


def test_a_record_says_by_what_was_guided_and_counts_both_networks(place: Path):
    options = ["n=8", "sampler=ddim", "sampler.steps=3", "features=pixels", "metrics=[fd]", "out=eval"]
    done = run("eval", "ckpt=run", *options, "guidance=autoguidance", "guidance.guide=guide", cwd=place)
    assert done.returncode == 0, done.stderr
    samples = json.loads(next((place / "eval").glob("*.json")).read_text())["samples"]
    assert samples["network_calls"] == 6
    assert samples["guidance"]["guide"] == "step 2 of guide"
    assert samples["guidance"]["scale"] == 2


MISTAKES = {
    "guidance=autoguidance": "guidance.guide: must be given",
    "guidance=autoguidance guidance.guide=nowhere": "guidance.guide: nowhere does not exist",
    "guidance=autoguidance guidance.guide=guide guidance.scale=1": "guidance: scale 1 leaves the guide without effect",
    "guidance=autoguidance guidance.guide=guide guidance.weights=emma": "guidance.weights: this checkpoint has ema",
    "guidance=autoguidance guidance.guide=guide guidance.interval=[0,999]": "guidance.interval: must be below",
    "guidance=autoguidance guidance.guide=small": r"guidance.guide: its images are \[1, 8, 8\], ckpt's are \[1, 16",
}


@pytest.fixture(scope="module")
def small(place: Path) -> Path:
    told = ["data.image_size=8", "model.attention_resolutions=[4]", "name=small"]
    assert train(*TINY_RUN, *told, cwd=place).returncode == 0
    only(place / "outputs" / "small").rename(place / "small")
    return place


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_and_leaves_nothing(mistake: str, small: Path):
    done = sample("ckpt=run", *DRAW, *mistake.split(), "out=refused", cwd=small)
    assert_one_message(done, "sample", MISTAKES[mistake])
    assert not (small / "refused").exists()
