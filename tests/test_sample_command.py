"""`ddpm-sample` as a user runs it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, assert_one_message, sample, train
from pictures import smooth
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_cli.data.datasets import digits


def test_sampling_needs_only_the_checkpoint(home: Path, trained):
    directory, _ = trained
    done = sample(f"ckpt={directory}", "n=5", cwd=home)
    assert done.returncode == 0, done.stderr
    (picture,) = (directory / "samples").glob("*/samples.png")
    assert str(picture) in done.stdout
    with Image.open(picture) as grid:
        assert grid.mode == "L"
        assert grid.size == (3 * 66 + 2, 2 * 66 + 2), "16 x 16 images enlarged four times, three in a row"


def test_image_i_is_the_same_for_every_batch_size_and_every_kind_of_ckpt(trained, sample_here, tmp_path: Path):
    directory, _ = trained
    newest = sorted((directory / "checkpoints").iterdir())[-1]
    found = {}
    for name, ckpt, batch_size in [
        ("run", directory, 5), ("checkpoint", newest, 2), ("file", newest / "ema.safetensors", 1)
    ]:  # fmt: skip
        out = tmp_path / name
        done = sample_here(f"ckpt={ckpt}", f"batch_size={batch_size}", "n=5", "save=npz", f"out={out}")
        assert done.returncode == 0, done.stderr
        with np.load(out / "samples.npz") as archive:
            found[name] = archive["arr_0"]
    assert found["run"].shape == (5, 16, 16, 1)
    assert found["run"].dtype == np.uint8
    for name in ("checkpoint", "file"):
        difference = np.abs(found["run"].astype(int) - found[name].astype(int))
        assert difference.max() <= 1, "kernels for other batch sizes may round the last bit the other way"
    assert not np.array_equal(found["run"][0], found["run"][1])


def test_films_single_images_and_the_other_weights(trained, sample_here, tmp_path: Path):
    directory, _ = trained
    arguments = [f"ckpt={directory}", "n=3", "batch_size=2", "sampler=ddim", "sampler.steps=6", "seed=4"]
    done = sample_here(*arguments, "save=images", "save_trajectory=true", f"out={tmp_path}/a")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "a" / "images").iterdir()) == [f"{i:06d}.png" for i in range(3)]
    with Image.open(tmp_path / "a" / "steps.png") as strip:
        beside, above = strip.width - (7 * 66 + 2), strip.height - (3 * 2 * 66 + 2)
        assert 20 < beside < 66, "what each row is, x_t or x_0 of an image; a column per step, and the end"
        assert 16 < above < 66, "its t"
    with Image.open(tmp_path / "a" / "steps.gif") as film:
        assert film.n_frames == 7
    done = sample_here(*arguments, "weights=model", f"out={tmp_path}/b")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "samples.png").read_bytes() != (tmp_path / "b" / "samples.png").read_bytes()
    again = sample_here(*arguments, f"out={tmp_path}/a")
    assert again.returncode == 2
    assert "save_trajectory: was True, now False" in again.stderr


def test_the_checkpoints_variance_is_used_unless_another_is_chosen(trained, sample_here, tmp_path: Path):
    directory, _ = trained
    pictures = {}
    for name, extra in {"own": [], "small": ["variance=fixed_small"], "large": ["variance=fixed_large"]}.items():
        done = sample_here(f"ckpt={directory}", "n=2", "sampler.steps=5", *extra, f"out={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr
        pictures[name] = shown(tmp_path / name)
    assert pictures["own"] == pictures["small"] != pictures["large"]


# Classes and guidance ------------------------------------------------------------------------------------------------


def shown(out: Path) -> bytes:
    """The pixels of the picture of all images."""
    with Image.open(out / "samples.png") as picture:
        return picture.tobytes()


def pixels_of(out: Path) -> np.ndarray:
    """Of save=npz, `[N, H, W, C]` in whole numbers."""
    with np.load(out / "samples.npz") as archive:
        return archive["arr_0"].astype(int)


def test_each_class_has_a_row_of_its_own_images(labelled: Path, sample_here, tmp_path: Path):
    done = sample_here(f"ckpt={labelled}", "classes=[0,3]", "n=3", "save=images", f"out={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "two" / "samples.png") as picture:
        assert picture.height == 2 * 66 + 2
        assert 16 < picture.width - (3 * 66 + 2) < 66, "the names of the classes"
    assert len(list((tmp_path / "two" / "images").iterdir())) == 6
    done = sample_here(
        f"ckpt={labelled}", "classes=all", "n=2", "save=npz", "save_trajectory=true", f"out={tmp_path}/all"
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "all" / "samples.png") as picture:
        assert picture.height == 10 * 66 + 2
    assert pixels_of(tmp_path / "all").shape == (20, 16, 16, 1)
    with Image.open(tmp_path / "all" / "steps.gif") as film:
        assert film.width > 8 * 66 + 2
        assert film.height > 2 * 66 + 2
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "config.yaml", "samples.json", "samples.npz", "samples.png", "steps.gif", "steps.png"
    ]  # fmt: skip


def test_an_image_of_a_class_is_the_same_in_every_batch_and_from_the_file_of_the_average(
    labelled: Path, sample_here, tmp_path: Path
):
    (newest,) = (labelled / "checkpoints").glob("step_00000004")
    shutil.copy(newest / "ema.safetensors", tmp_path / "alone.safetensors")
    for name, ckpt, batch_size in (("run", labelled, 64), ("file", tmp_path / "alone.safetensors", 2)):
        options = ["classes=[7,1]", "guidance.scale=3", "n=3", "save=npz", f"batch_size={batch_size}"]
        done = sample_here(f"ckpt={ckpt}", *options, f"out={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr
    assert np.abs(pixels_of(tmp_path / "run") - pixels_of(tmp_path / "file")).max() <= 1


@pytest.fixture
def outspoken(labelled: Path, tmp_path: Path) -> Path:
    """An average with weights from nowhere: after four steps of training classes make no difference that shows."""
    (file,) = labelled.glob("checkpoints/step_00000004/ema.safetensors")
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.1 * torch.randn(value.shape, generator=generator) + (value.ndim == 1) * value
        for name, value in load_file(file).items()
    }
    save_file(weights, tmp_path / "outspoken.safetensors", metadata)
    return tmp_path / "outspoken.safetensors"


def test_guidance_of_scale_one_is_none_and_of_scale_zero_is_without_classes(
    outspoken: Path, sample_here, tmp_path: Path
):
    steps = ["sampler=ddim", "sampler.steps=5", "save=npz"]
    for name, options in {
        "plain": ["classes=[5]", "n=4"],
        "one": ["classes=[5]", "n=4", "guidance.scale=1"],
        "zero": ["classes=[5]", "n=4", "guidance.scale=0"],
        "without": ["n=4"],
        "strong": ["classes=[5]", "n=4", "guidance.scale=50"],
    }.items():
        done = sample_here(f"ckpt={outspoken}", *steps, *options, f"out={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr
    files = {name: (tmp_path / name / "samples.npz").read_bytes() for name in ("plain", "one")}
    assert files["plain"] == files["one"]
    found = {name: pixels_of(tmp_path / name) for name in ("plain", "zero", "without", "strong")}
    assert np.abs(found["zero"] - found["without"]).max() <= 1
    assert not np.array_equal(found["plain"], found["without"])
    assert not np.array_equal(found["plain"], found["strong"])


@pytest.fixture(scope="session")
def all_labelled(tmp_path_factory) -> Path:
    """A network of one step that was never without labels, and says its variance itself."""
    place = tmp_path_factory.mktemp("all_labelled")
    also = ["data.num_classes=10", "trainer.label_dropout=0", "variance=learned_range", "loss=hybrid"]
    done = train(*TINY, *also, "trainer.steps=1", "trainer.preview_every=0", cwd=place)
    assert done.returncode == 0, done.stderr
    (directory,) = (place / "outputs" / "digits").iterdir()
    return directory


def test_a_network_that_knows_nothing_without_labels_is_asked_with_them(all_labelled: Path, sample_here, tmp_path):
    for name, options in {"learned": [], "small": ["variance=fixed_small"], "own": ["variance=learned_range"]}.items():
        done = sample_here(f"ckpt={all_labelled}", "classes=all", "n=1", *options, f"out={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr
    pictures = {name: shown(tmp_path / name) for name in ("learned", "small", "own")}
    assert pictures["learned"] == pictures["own"] != pictures["small"]


# Pictures of one's own -----------------------------------------------------------------------------------------------


@pytest.fixture
def given(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder: a PNG of the network's size, an RGB JPEG of another; beside it a mask, and files that are none."""
    folder = tmp_path / "given"
    (folder / "below").mkdir(parents=True)
    smooth(rng, 16, 16).convert("L").save(folder / "a.png")
    smooth(rng, 60, 90).save(folder / "below" / "b.jpg")
    (folder / "notes.txt").write_text("no picture, and no picture's name")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    return folder


def test_a_folder_of_pictures_is_edited(given: Path, labelled: Path, sample_here, tmp_path: Path):
    options = ["mode=edit", f"image={given}", "classes=[3]", "n=2", "save=npz", f"out={tmp_path}/out"]
    done = sample_here(f"ckpt={labelled}", *options)
    assert done.returncode == 0, done.stderr
    assert pixels_of(tmp_path / "out").shape == (4, 16, 16, 1)
    with Image.open(tmp_path / "out" / "samples.png") as picture, Image.open(given / "a.png") as first:
        assert picture.mode == "L"
        left = picture.width - (3 * 66 + 2)
        assert 0 < left < 66, "the class"
        assert picture.height == 2 * 66 + 2, "a row of each, which begins with the picture"
        assert np.array_equal(np.asarray(picture)[2:66:4, left + 2 : left + 66 : 4], np.asarray(first))


def test_what_the_mask_keeps_is_in_the_file_to_the_bit(given: Path, labelled: Path, sample_here, tmp_path: Path):
    options = ["mode=inpaint", f"image={given}/a.png", f"mask={tmp_path}/mask.png", "n=3", "save=images"]
    options += ["sampler.steps=20", "mode.jump_length=5", "mode.resamplings=2", "save_trajectory=true"]
    done = sample_here(f"ckpt={labelled}", *options, f"out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    white = np.zeros((16, 16), dtype=bool)
    white[4:12, 4:12] = True
    with Image.open(given / "a.png") as original:
        kept = np.asarray(original)
    for file in sorted((tmp_path / "out" / "images").iterdir()):
        with Image.open(file) as painted:
            pixels = np.asarray(painted)
        assert np.array_equal(pixels[~white], kept[~white])
        assert (pixels[white] != kept[white]).mean() > 0.8
    with Image.open(tmp_path / "out" / "samples.png") as picture:
        assert picture.size == (5 * 66 + 2, 66 + 2), "the picture, its hole, and three ways to fill it"


def test_the_ends_of_an_interpolation_are_the_images_of_their_seeds(labelled: Path, sample_here, tmp_path: Path):
    steps = ["sampler.steps=4", "save=npz", "batch_size=1"]
    done = sample_here(
        f"ckpt={labelled}", "mode=interpolate", "sampler=ddim", "seeds=[5,8]", "n=4", *steps, f"out={tmp_path}/way"
    )
    assert done.returncode == 0, done.stderr
    way = pixels_of(tmp_path / "way")
    with Image.open(tmp_path / "way" / "samples.png") as picture:
        assert picture.height == 66 + 2, "a row, as the images follow each other"
        assert picture.width > 4 * 66 + 2
    for seed, end in ((5, way[0]), (8, way[-1])):
        done = sample_here(f"ckpt={labelled}", "sampler=ddim", f"seed={seed}", "n=1", *steps, f"out={tmp_path}/{seed}")
        assert done.returncode == 0, done.stderr
        assert np.array_equal(pixels_of(tmp_path / str(seed))[0], end)


def test_a_picture_is_reconstructed(given: Path, labelled: Path, sample_here, tmp_path: Path):
    options = ["mode=reconstruct", f"image={given}", "sampler.steps=20", "save=npz", "save_trajectory=true"]
    done = sample_here(f"ckpt={labelled}", *options, f"out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert pixels_of(tmp_path / "out").shape == (2, 16, 16, 1)
    with Image.open(tmp_path / "out" / "steps.gif") as film:
        assert film.n_frames == 16


@pytest.mark.slow
@pytest.mark.parametrize(("prediction", "steps"), [("eps", 100), ("x0", 400)])
def test_a_network_of_minutes_brings_a_picture_back(prediction: str, steps: int, tmp_path: Path):
    """Of eps, x_0 says nothing at the last t of the cosine schedule, where alpha is 5e-5; of x_0, eps at the first."""
    network = ["data.image_size=8", "model.base_channels=16", "model.channel_mults=[1,2]", "model.norm_groups=8"]
    of_minutes = [f"trainer.steps={steps}", "trainer.batch_size=32", "trainer.warmup_steps=10"]
    of_minutes += ["trainer.preview_every=0", "optimizer.lr=2e-3", f"prediction={prediction}"]
    done = train(*network, "model.attention_resolutions=[4]", *of_minutes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "digits").iterdir()
    pixels = np.asarray(digits(image_size=8).pixels)[:8, 0]
    (tmp_path / "given").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "given" / f"{i}.png")
    done = sample(f"ckpt={run}", "mode=reconstruct", "image=given", "save=npz", "out=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    error = pixels_of(tmp_path / "out")[..., 0].astype(float) - pixels
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 30


# Mistakes ------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "classes=[0,10]": r"classes: the network knows 0 to 9, got 10$",
    "classes=[-1]": "classes: the network knows 0 to 9, got -1",
    "classes=[]": "classes: is empty",
    "classes=some": "classes: no class is called 'some'; the classes are 0: 0, 1: 1, 2: 2",
    "classes=[0,some]": "classes: no class is called 'some'; the classes are 0: 0, 1: 1, 2: 2",
    "classes=1.5": "classes: no class is called '1.5'; the classes are 0: 0, 1: 1",
    "guidance.scale=2": r"guidance.scale: has no effect without classes=\.\.\.",
    "guidance.scale=-1 classes=all": "guidance: scale must not be negative, got -1",
    "guidance.rescale=0.5 classes=all": "guidance: interval and rescale have no effect with scale 1",
    "guidance.interval=[3,5] classes=all": "guidance: interval and rescale have no effect with scale 1",
    "guidance.scale=2 guidance.interval=[3,20] classes=all": "guidance.interval: must be below the schedule's 20",
    "guidance.scale=2 guidance.interval=[5] classes=all": "guidance.interval: expected a list of 2 whole numbers",
    "threshold=dynamic threshold.quantile=2": r"threshold: quantile must lie in \(0, 1\], got 2",
    "sampler=ddim variance=fixed_small": "variance: has no effect with sampler=ddim",
    "variance=learned_range": "variance: the network does not predict a variance; choose fixed_small or fixed_large",
    "image=given": "image: has no effect with mode=generate",
    "strength=0.5": "strength: has no effect with mode=generate",
    "mode=edit image=given mask=mask.png": "mask: has no effect with mode=edit",
    "mode=edit image=given/a.png classes=[1,2]": "classes: 2 classes, but only 1 rows",
    "mode=edit": r"mode=edit: image must be given, as image=\.\.\.",
    "mode=edit image=nowhere.png": "mode=edit: nowhere.png: No such file",
    "mode=edit image=broken.png": "mode=edit: broken.png: not in a known image format",
    "mode=edit image=empty": "mode=edit: no pictures in empty",
    "mode=edit image=given strength=0": r"mode=edit: strength must lie in \(0, 1\], got 0",
    "mode=edit image=given strength=1.5": r"mode=edit: strength must lie in \(0, 1\], got 1.5",
    "mode=edit image=given strength=0.2 sampler.steps=5": "mode=edit: strength 0.2 begins at t = 3: steps must be",
    "mode=inpaint image=given sampler.steps=20": r"mode=inpaint: mask must be given, as mask=\.\.\.",
    "mode=inpaint image=given mask=broken.png sampler.steps=20": "mode=inpaint: broken.png: not in a known",
    "mode=inpaint image=given mask=black.png sampler.steps=20": "mode=inpaint: black.png has no white",
    "mode=inpaint image=given mask=mask.png sampler=ddim sampler.steps=9": "mode=inpaint: .*choose sampler=ddpm",
    "mode=inpaint image=given mask=mask.png sampler.steps=9": "mode=inpaint: jump_length must be between 1 and 8",
    "mode=interpolate sampler.steps=9 seed=3": "seed: has no effect with mode=interpolate",
    "mode=interpolate sampler.steps=9 seeds=[4]": "mode=interpolate: seeds must be at least two",
    "mode=interpolate sampler.steps=9 seeds=[4,4]": "mode=interpolate: seeds must change from one to the next",
    "mode=interpolate sampler.steps=9 seeds=null": "mode=interpolate: seeds must be given",
    "mode=reconstruct image=given sampler.steps=9 sampler.eta=0.5": "mode=reconstruct: .*sampler.eta=0",
    "mode=reconstruct image=given sampler.steps=9 n=3": "mode=reconstruct: n must be 1",
    "mode=edti": "mode=edti: no such option .*choose from edit, generate, inpaint, interpolate, reconstruct",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_and_leaves_nothing(mistake: str, given: Path, labelled: Path, sample_here):
    before = sorted(given.parent.rglob("*")), sorted(labelled.rglob("*"))
    done = sample_here(f"ckpt={labelled}", *mistake.split())
    assert_one_message(done, "sample", MISTAKES[mistake])
    assert (sorted(given.parent.rglob("*")), sorted(labelled.rglob("*"))) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["classes=all"], r"classes: has no effect, the network was trained without labels \(data.num_classes\)"),
        (["guidance.scale=2"], "guidance.scale: has no effect without classes=.*needs a network trained on labels"),
    ],
)
def test_a_network_without_labels_takes_no_classes(options: list[str], says: str, trained, sample_here):
    assert_one_message(sample_here(f"ckpt={trained[0]}", *options), "sample", says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], r"classes: the network was trained with every label \(label_dropout=0\); choose classes=all"),
        (["classes=all", "guidance.scale=2"], "guidance.scale: the network was trained with every label"),
    ],
)
def test_a_network_that_had_every_label_cannot_do_without(options: list[str], says: str, all_labelled, sample_here):
    assert_one_message(sample_here(f"ckpt={all_labelled}", *options), "sample", says)


def test_modes_in_a_process_of_their_own(given: Path, labelled: Path, tmp_path: Path):
    """What the tests above do in theirs, once as a user does it."""
    arguments = [f"ckpt={labelled}", "mode=edit", "image=given/below/b.jpg", "classes=[3]", "guidance.scale=2", "n=2"]
    done = sample(*arguments, "out=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["classes: 3: 3", "out/samples.png"]
