"""Pictures with transparency: trained on, drawn, edited and evaluated with a fourth channel; and options renamed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY_RUN, assert_one_message, only, run, sample, train
from PIL import Image

from ddpm_cli.checkpoint.migrate import upgrade
from ddpm_cli.cli.contact_sheet import contact_sheet
from ddpm_cli.data.decoded_cache import _key
from ddpm_cli.data.degenerate import degenerate
from ddpm_cli.data.image_file import ImageFile
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.reading import AS_STORED
from ddpm_cli.evaluation.features.extractor import opaque
from ddpm_cli.evaluation.features.pixels import Pixels
from ddpm_cli.io.images import BETWEEN, CHECKS, grid, on_checks, save_gif, save_png

SMALL = [*TINY_RUN, "model=unet_16", "model.norm_groups=4", "data.workers=0", "data.cache_dir=cache"]
DATA = ["data=folder", "data.path=cut_out", "data.image_size=8"]


def cut_outs(place: Path, rng: np.random.Generator, count: int = 8) -> None:
    """Discs of one colour that have been cut out, 12 pixels high and wide."""
    place.mkdir()
    rows, columns = np.mgrid[:12, :12] - 5.5
    for number in range(count):
        straight = np.zeros((12, 12, 4), np.uint8)
        straight[..., :3] = rng.integers(0, 256, 3)
        straight[..., 3] = 255 * (rows**2 + columns**2 < 25)
        Image.fromarray(straight).save(place / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory in which a run on such pictures has ended."""
    place = tmp_path_factory.mktemp("cut_outs")
    cut_outs(place / "cut_out", np.random.default_rng(0))
    done = train(*DATA, *SMALL, "data.background=keep", cwd=place)
    assert done.returncode == 0, done.stderr
    said = "pictures scaled to cover 8 x 8, cropped at the centre; transparency in a fourth channel, half of them"
    assert said in done.stdout
    assert "cut_out: 8 images, 8 x 8 x 4" in done.stdout
    return place


@pytest.fixture
def ckpt(place) -> str:
    return f"ckpt={only(place / 'outputs' / 'cut_out')}"


def test_what_people_look_at_is_opaque_and_images_have_alpha(place, ckpt, tmp_path):
    directory = only(place / "outputs" / "cut_out")
    for picture in (directory / "data.png", *(directory / "previews").glob("*.png")):
        with Image.open(picture) as image:
            assert image.mode == "RGB"
    done = sample(ckpt, "n=3", "sampler.steps=2", "save=images", "save_trajectory=true", f"out={tmp_path}/a", cwd=place)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a" / "images" / "000001.png") as image:
        assert (image.mode, image.size) == ("RGBA", (8, 8))
        drawn = np.asarray(image)
    with Image.open(tmp_path / "a" / "samples.png") as picture:
        assert picture.mode == "RGBA"
        whole = np.asarray(picture)
    assert whole[0, 0].tolist() == [BETWEEN, BETWEEN, BETWEEN, 255]
    np.testing.assert_array_equal(whole[2:66:8, 68:132:8], drawn)  # each pixel is enlarged to 8 x 8
    done = sample(ckpt, "n=3", "sampler.steps=2", "save=npz", f"out={tmp_path}/b", cwd=place)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "b" / "samples.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"][1], drawn)


def test_pictures_that_are_edited_keep_their_alpha(place, ckpt, tmp_path):
    edit = ["mode=edit", "image=cut_out/0.png", "strength=0.2", "n=1", "sampler.steps=3", f"out={tmp_path}/a"]
    done = sample(ckpt, *edit, cwd=place)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a" / "samples.png") as picture:
        given = np.asarray(picture)[2:66:8, 2:66:8]
    assert given[0, 0].tolist() == [0, 0, 0, 0]
    assert given[4, 4, 3] == 255
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    inpaint = ["mode=inpaint", "image=cut_out/0.png", f"mask={tmp_path}/mask.png", "sampler=ddpm", "mode.jump_length=1"]
    done = sample(ckpt, *inpaint, "n=1", "sampler.steps=3", f"out={tmp_path}/b", cwd=place)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "b" / "samples.png") as picture:
        shown = np.asarray(picture)
    assert shown[2 + 8 * 4, 68 + 8 * 4].tolist() == [127, 127, 127, 255], "a hole is grey, and seen"
    assert shown[2, 134].tolist() == [0, 0, 0, 0], "what is outside stays"


def test_features_are_of_what_is_seen_over_white(place, ckpt, tmp_path):
    done = run("eval", ckpt, "n=4", "sampler.steps=2", "metrics=[kd,memorization]", f"out={tmp_path}/eval", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "features are of the images over white" in done.stdout
    (record,) = (tmp_path / "eval").glob("*.json")
    assert "over white" in " ".join(json.loads(record.read_text())["remarks"])
    (nearest,) = (tmp_path / "eval").glob("*_nearest.png")
    with Image.open(nearest) as picture:
        assert picture.mode == "RGB"
    # The same pictures as files, with their alpha, are at a distance of nothing.
    done = run("eval", ckpt, "samples=cut_out", f"out={tmp_path}/other", "metrics=[fd]", cwd=place)
    assert done.returncode == 2
    assert "samples: the samples are 12 x 12 x 3, the reference's images 8 x 8 x 4" in done.stderr


def test_rgba_and_the_same_over_white_have_the_same_features(rng):
    rgba = torch.from_numpy(rng.integers(0, 256, (3, 4, 16, 16), dtype=np.uint8))
    white = np.stack([_over_white(image) for image in rgba.numpy()])
    assert np.abs(opaque(rgba).numpy().astype(int) - white).max() <= 1
    extractor = Pixels()
    extractor.prepare(None, torch.device("cpu"))
    torch.testing.assert_close(extractor(rgba), extractor(torch.from_numpy(white)), atol=1.01 / 255, rtol=0)
    assert opaque(rgba[:, :3]).equal(rgba[:, :3])


def _over_white(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image.transpose(1, 2, 0).copy())
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB")).transpose(2, 0, 1)


def test_a_checkerboard_shows_through_what_is_transparent():
    picture = torch.zeros(4, 16, 16, dtype=torch.uint8)
    picture[0, :, 8:], picture[3, :8, 8:], picture[3, 8:, 8:] = 255, 255, 51
    shown = on_checks(picture)
    assert shown[:, 0, 0].tolist() == [CHECKS[0]] * 3
    assert shown[:, 8, 0].tolist() == [CHECKS[1]] * 3
    assert shown[:, 0, 8].tolist() == [255, 0, 0]
    expected = [255 * 0.2 + CHECKS[0] * 0.8, *[CHECKS[0] * 0.8] * 2]
    assert np.abs(np.array(shown[:, 8, 8].tolist()) - expected).max() <= 0.5
    assert on_checks(picture[:3]).equal(picture[:3])


def test_grids_of_transparent_pictures_are_pictures_that_others_read(tmp_path):
    picture = grid(torch.zeros(2, 4, 64, 64, dtype=torch.uint8))
    for name in ("a.png", "b.png"):
        save_png(picture, tmp_path / name)
    save_gif([on_checks(picture)] * 2, tmp_path / "x.gif")
    sheet = contact_sheet([(["a=1"], tmp_path / "a.png"), (["a=2"], tmp_path / "b.png")])
    assert sheet is not None
    assert sheet.mode == "RGB"


@pytest.mark.parametrize(("colour", "alpha", "name"), [(0, 0, "transparent"), (255, 255, "white")])
def test_a_set_of_which_nothing_is_seen_is_told(colour, alpha, name, rng):
    pixels = np.full((10, 4, 4, 4), colour, np.uint8)
    pixels[:, 3] = alpha
    pixels[8:] = rng.integers(0, 256, (2, 4, 4, 4))
    said = degenerate(ImageSet(pixels, "x"), pixels, ("background",))
    assert said[0].startswith(f"8 of 10 images looked at are entirely {name}")
    assert said[0].endswith("data.background=ignore drops the alpha")


def test_alpha_that_hides_nothing_is_said(rng):
    pixels = rng.integers(0, 256, (10, 4, 4, 4), dtype=np.uint8)
    pixels[:, 3] = 255
    assert degenerate(ImageSet(pixels, "x"), pixels, ()) == ["channel alpha is 255 in every pixel"]


# What is asked for wrongly -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("data.alpha=ignore", r"data.alpha: no such option \(it is called data.background now\)"),
        ("+data.alpha=white", r"data.alpha: no such option \(it is called data.background now\)"),
        ("data.flip=true", r"data.flip: expected one of none, .* got true \(it is called horizontal now\)"),
        ("data.flip=false", r"data.flip: expected one of none, .* got false \(it is called none now\)"),
        ("data.flip=vertical", "data.flip: expected one of none, horizontal, both, got \"vertical\""),
        ("data.crop=centre", "data.crop: expected one of center, random, pad .*center.*, got \"centre\""),
        ("data.background=transparent", "data.background: expected one of white, black, keep, ignore or a list of "),
        ("data.background=[1,2]", r"data: background must be white, black, \[red, green, blue\] from 0 to 255"),
        ("data.background=[1,2,256]", "data: background must be white, black"),
        ("data.background=keep data.channels=3", "data: channels must be 4 with background=keep"),
        ("data.channels=4", r"data: channels must be 1 \(grey\) or 3 \(RGB\), got 4; with background=keep it is 4"),
        ("data.background=ignore data.crop=pad", "data: crop=pad needs a background, and .* a colour"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(argument, says, place, tmp_path):
    done = train(*DATA, *SMALL, *argument.split(), f"output_dir={tmp_path}/outputs", cwd=place)
    assert_one_message(done, "train", says)
    assert not (tmp_path / "outputs").exists()


def test_what_a_run_was_begun_with_may_not_change(place, ckpt):
    resume = ckpt.replace("ckpt=", "resume=")
    for argument, says in (
        (
            "data.alpha=white",
            r"data.alpha: cannot change when resuming: the run has no such option \(it is called data.b",
        ),
        (
            "data.flip=true",
            r"data.flip: cannot change when resuming: the run has 'horizontal' \(it is called horizontal",
        ),
        ("data.background=white", "data.background: cannot change when resuming: the run has 'keep'"),
    ):
        assert_one_message(train(resume, argument, cwd=place), "train", says)


# Runs of before ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["folder", "webdataset"])
@pytest.mark.parametrize(("alpha", "flip", "flipped"), [("white", True, "horizontal"), ("ignore", False, "none")])
def test_old_names_are_read_as_new_ones(target, alpha, flip, flipped):
    node = upgrade({"data": {"_target_": target, "path": "x", "flip": flip, "alpha": alpha}}, 3)["data"]
    assert (node["background"], node["crop"], node["flip"]) == (alpha, "center", flipped)
    assert "alpha" not in node
    assert list(node)[:4] == ["_target_", "path", "flip", "background"]


def test_what_is_a_users_own_is_left_as_it_is():
    node = {"_target_": "mine.pictures", "flip": True, "alpha": 3}
    assert upgrade({"data": node}, 3)["data"] == node | {"holdout": 0}
    assert upgrade({"data": {"_target_": ["digits"], "flip": {}}}, 3)["data"]["flip"] == {}


def test_a_run_of_before_there_were_backgrounds_resumes_by_its_name(tmp_path, rng):
    """As an earlier version has written it: with `alpha`, and a flip that is true or false."""
    cut_outs(tmp_path / "cut_out", rng)
    before = (
        "import re\n"
        "from ddpm_cli.checkpoint import metadata\n"
        "as_json = metadata.Metadata.as_json\n"
        "def of_before(self):\n"
        '    text = as_json(self).replace(\'"background": "ignore"\', \'"alpha": "ignore"\')\n'
        '    text = text.replace(\'"flip": "horizontal"\', \'"flip": true\')\n'
        "    return re.sub(r'\"crop\": \"center\",', '', text)\n"
        "metadata.Metadata.as_json = of_before\n"
        "from ddpm_cli import train; train.main()"
    )
    command = [*DATA, *SMALL, "name=x", "data.background=ignore"]
    first = train(*command, cwd=tmp_path, code=before)
    assert first.returncode == 0, first.stderr
    (description,) = tmp_path.glob("outputs/x/*/checkpoints/step_00000004/checkpoint.json")
    stored = json.loads(description.read_text())["config"]["data"]
    assert (stored["alpha"], stored["flip"]) == ("ignore", True)
    assert not stored.keys() & {"background", "crop"}
    further = train(*command, "trainer.steps=6", cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    assert "resumed  at step 4" in further.stdout


def test_decoded_images_of_before_are_found():
    """The name of a set in the cache is what it was, where the options are what they were."""
    assert _key("/pictures", [ImageFile("a.png", 3, 4)], AS_STORED) == "db8d960efdff75f5add01acbf80d2650"
