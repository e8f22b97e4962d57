"""What of a folder or of tar files is not trained on, and what is said of it: by kind, own output, links, classes."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from commands import TINY_RUN, only, sample, train
from pictures import add_to_tar, smooth
from PIL import Image

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.data.decode import decode
from ddpm_cli.data.folder import folder
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.labels import natural
from ddpm_cli.data.webdataset import webdataset
from ddpm_cli.sampling.classes import class_numbers, classes_text

SMALL = ["model=unet_16", "model.norm_groups=4", *TINY_RUN, "trainer.preview_every=0", "data.workers=0"]


@pytest.fixture
def read(tmp_path):
    return lambda root, **options: folder(str(root), image_size=8, cache_dir=str(tmp_path / "cache"), **options)


@pytest.fixture
def pictures(tmp_path, rng) -> Path:
    """One of each format, under the names that such files have and under others; and files that are none."""
    root = tmp_path / "pictures"
    root.mkdir()
    for name in ("a.png", "b.jpg", "c.tif", "d.gif", "e.jfif", "f.pgm", "g.TIFF"):
        smooth(rng, 12, 12).convert("L").save(root / name)
    for name, kind in (("h", "PNG"), ("i.dat", "JPEG"), ("j", "TIFF")):
        smooth(rng, 12, 12).save(root / name, format=kind)
    shutil.copy(root / "a.png", root / "a.png.bak")
    (root / "k.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (root / "l.nef").write_bytes(b"MM\0*" + bytes(60))
    (root / "m.txt").write_text("a caption")
    (root / ".DS_Store").touch()
    return root


def test_what_the_decoder_reads_is_read_and_everything_else_counted(pictures, read):
    images = read(pictures, extensions=None)
    names = ["a.png", "b.jpg", "c.tif", "d.gif", "e.jfif", "f.pgm", "g.TIFF", "h", "i.dat", "j"]
    np.testing.assert_array_equal(images.pixels, [decode(pictures / name, (8, 8), 3) for name in names])
    assert images.left_out == "1 .bak, 1 .heic, 1 .nef, 1 .txt, 1 hidden"
    listed = read(pictures, extensions=["png", "TIF"])
    np.testing.assert_array_equal(listed.pixels, images.pixels[[0, 2]])
    assert listed.left_out.startswith("2 without a suffix, 1 .bak, 1 .dat, 1 .gif, 1 .heic, ")
    assert listed.left_out.endswith(", 4 of other kinds")


def test_a_folder_without_an_image_says_what_it_holds(pictures, read, tmp_path):
    with pytest.raises(ValueError, match=r"no images in .*ends in \.webp; left out: 2 without a suffix, 1 \.bak"):
        read(pictures, extensions=["webp"])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "x.txt").touch()
    with pytest.raises(ValueError, match=r"no images in .*no file in it is PNG, JPEG, .*; left out: 1 \.txt$"):
        read(tmp_path / "texts", extensions=None)


def test_runs_samples_and_sweeps_below_the_path_are_never_an_input(pictures, read, rng):
    before = read(pictures).pixels
    own = {
        "run/run.json": "run/previews/step_00000002.png run/data.png run/samples/x/samples.png",
        "old/config.yaml old/checkpoints/x": "old/previews/step_00000002.png",
        "drawn/samples.json": "drawn/samples.png drawn/images/000000.png drawn/steps.gif",
        "half/.unfinished/identity.json": "half/images/000000.png",
        "sweep/0/result.json sweep/0/samples.json": "sweep/contact_sheet.png sweep/0/samples.png",
    }
    for marks, outputs in own.items():
        for name in (*marks.split(), *outputs.split()):
            (pictures / name).parent.mkdir(parents=True, exist_ok=True)
            smooth(rng, 8, 8).save(pictures / name, format="GIF")
    images = read(pictures)
    np.testing.assert_array_equal(images.pixels, before)
    assert "11 outputs of ddpm-cli" in images.left_out
    # Somebody's own pictures beside them, and under the same names elsewhere, are images.
    for name in ("run/own.png", "drawn/own.png", "images/000000.png", "previews/x.png"):
        (pictures / name).parent.mkdir(exist_ok=True)
        smooth(rng, 8, 8).save(pictures / name)
    assert len(read(pictures)) == len(before) + 4


def test_what_commands_leave_in_the_data_is_no_data(tmp_path, rng):
    """As they are used: everything below one folder, where a second run and a resumed one see the same images."""
    root = tmp_path / "here"
    root.mkdir()
    for i in range(3):
        smooth(rng, 16, 16).save(root / f"{i}.png")
    data = ["data=folder", "data.path=.", "data.image_size=8", "data.cache_dir=../cache", *SMALL]
    first = train(*data, "trainer.preview_every=2", "name=x", cwd=root)
    assert first.returncode == 0, first.stderr
    run = only(root / "outputs" / "x")
    drawn = sample(f"ckpt={run}", "n=2", "save=images", "sampler=ddim", "sampler.steps=2", "out=drawn", cwd=root)
    assert drawn.returncode == 0, drawn.stderr
    further = train(*data, "trainer.preview_every=2", "name=x", "trainer.steps=6", cwd=root)
    assert further.returncode == 0, further.stderr
    assert "data     here: 3 images, 8 x 8 x 3; left out:" in further.stdout
    assert "outputs of ddpm-cli" in further.stdout
    with Image.open(run / "data.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("follow", [False, True])
def test_links_that_lead_out_are_followed_on_demand(follow, pictures, read, tmp_path, rng):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    smooth(rng, 8, 8).save(elsewhere / "x.png")
    (elsewhere / "back").symlink_to(pictures)
    (pictures / "linked").symlink_to(elsewhere)
    (pictures / "z.png").symlink_to(elsewhere / "x.png")
    if follow:
        images = read(pictures, follow_links=True)
        assert len(images) == len(read(pictures, on_bad="skip")) + 2
    else:
        with pytest.raises(ValueError, match=r"outside the folder \(data\.follow_links=true follows it\)"):
            read(pictures)


def test_members_of_tar_files_are_counted(tmp_path, rng):
    png = io.BytesIO()
    smooth(rng, 8, 8).save(png, "PNG")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("1.png", "1.jpg", "1.json", "1.cls", "2.tif", "2.cls", "3.PNG", "README", ".x.png"):
            add_to_tar(tar, name, b"1" if name.endswith("cls") else png.getvalue())
        add_to_tar(tar, "4.png", type=tarfile.SYMTYPE, linkname="1.png")
        add_to_tar(tar, "below", type=tarfile.DIRTYPE)
    options = {"image_size": 8, "workers": 0, "cache_dir": str(tmp_path / "cache"), "extensions": ["png", "jpg"]}
    for _ in range(2):  # the second time out of the cache
        images = webdataset(str(tmp_path), **options)
        assert len(images) == 2
        expected = "2 .cls, 2 hidden or without a suffix, 1 .jpg, 1 .json, 1 .tif, 1 links or devices"
        assert images.left_out == expected
    with pytest.raises(ValueError, match=r"ends in \.webp; left out: 2 \.cls"):
        webdataset(str(tmp_path), **options | {"extensions": ["webp"]})


# Classes -------------------------------------------------------------------------------------------------------------


def test_numbers_in_names_count_as_numbers():
    names = ["10", "2", "1", "a10b", "a2b", "a", "B", "01", "x2y10", "x2y9"]
    assert sorted(names, key=natural) == ["01", "1", "2", "10", "B", "a", "a2b", "a10b", "x2y9", "x2y10"]


def in_classes(root: Path, *names: str) -> Path:
    """A picture for each class, of a grey value that is ten times its name."""
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("L", (8, 8), 10 * int(name)).save(root / name / "x.png")
    return root


def test_classes_are_in_natural_order_and_what_is_none_is_named(tmp_path, read):
    root = in_classes(tmp_path / "classes", "1", "2", "10")
    (root / "empty").mkdir()
    images = read(root, channels=1, num_classes=3)
    assert images.class_names == ("1", "2", "10")
    assert [10 * int(images.class_names[label]) for label in images.labels] == images.pixels[:, 0, 0, 0].tolist()
    assert images.remarks == ("classes  left out: 1 without an image: empty",)
    (root / "2" / "x.png").write_bytes(b"broken")
    assert "classes  1: 2 has no usable image" in read(root, num_classes=3, on_bad="skip").remarks


def test_a_run_keeps_the_numbers_that_its_classes_had():
    images = ImageSet(
        np.zeros((3, 1, 2, 2), np.uint8), "x", flip="none", labels=np.array([2, 0, 1]), class_names=("1", "2", "10")
    )
    before = images.numbered_as(("1", "10", "2"))
    assert (before.class_names, before.labels.tolist()) == (("1", "10", "2"), [1, 0, 2])
    assert before.numbered_as(images.class_names).labels.tolist() == images.labels.tolist()
    for others in ((), ("1", "2"), ("1", "2", "3")):
        assert images.numbered_as(others) is images


def test_a_run_of_before_there_was_an_order_resumes_with_its_own(tmp_path):
    """Its classes were sorted as text, its extensions were a list: its checkpoint is made to say so."""
    in_classes(tmp_path / "classes", "1", "2", "10")
    Image.new("L", (8, 8), 50).save(tmp_path / "classes" / "10" / "y.gif")
    data = ["data=folder", "data.path=classes", "data.num_classes=3", "data.image_size=8", "data.channels=1"]
    command = [*data, "data.cache_dir=cache", "name=x", *SMALL]
    before = (
        "import re\n"
        "from ddpm_cli.data import labels\n"
        "labels.natural = lambda name: name\n"
        "from ddpm_cli.checkpoint import metadata\n"
        "as_json = metadata.Metadata.as_json\n"
        "later = r'\"(extensions|follow_links|cache_gb|value_range|background|crop)\": (\\[[^]]*\\]|[^,\\n]*),'\n"
        "metadata.Metadata.as_json = lambda self: re.sub(later, '', as_json(self))\n"
        "from ddpm_cli import train; train.main()"
    )
    first = train(*command, "data.extensions=[png,jpg,jpeg,webp,bmp]", cwd=tmp_path, code=before)
    assert first.returncode == 0, first.stderr
    assert "classes  0: 1, 1: 10, 2: 2" in first.stdout
    (description,) = tmp_path.glob("outputs/x/*/checkpoints/step_00000004/checkpoint.json")
    assert '"background"' not in description.read_text()
    further = train(*command, "trainer.steps=6", cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    assert "classes  0: 1, 1: 10, 2: 2" in further.stdout
    assert "3 images, 8 x 8 x 1; left out: 1 .gif" in further.stdout
    named = ["n=1", "sampler.steps=2", 'classes=["10"]', f"out={tmp_path}/drawn"]
    done = sample(f"ckpt={description.parents[2]}", *named, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "classes: 1: 10" in done.stdout


NAMES = ("1", "10", "2", "cat", "cat ")


def test_classes_are_named_by_number_or_by_name():
    assert class_numbers(None, NAMES) is None
    assert class_numbers("all", NAMES) == "all"
    assert class_numbers("cat", NAMES) == [3]
    assert class_numbers(0, NAMES) == [0]
    assert class_numbers(["10", 2, "cat "], NAMES) == [1, 2, 4]
    assert classes_text([1, 3, 7], NAMES) == "1: 10, 3: cat, 7"


@pytest.mark.parametrize(
    ("chosen", "names", "says"),
    [
        (
            "cats",
            NAMES,
            r"no class is called 'cats' \(did you mean 'cat'\?\); the classes are 0: 1, 1: 10, 2: 2, 3: cat, 4: cat $",
        ),
        ([10], NAMES, r"no class number 10; .*needs quotes: 'classes=\[\"10\"\]'"),
        ("cat", ("cat", "cat"), "more than one class is called 'cat', give its number"),
        ("cat", (), "the checkpoint does not know the names of its classes, got 'cat'"),
    ],
)
def test_a_class_that_is_none_is_named_beside_those_there_are(chosen, names, says):
    with pytest.raises(ConfigError, match=f"^classes: {says}"):
        class_numbers(chosen, names)
