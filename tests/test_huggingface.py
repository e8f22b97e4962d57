"""Data sets of the datasets package: they give what folders give, and nothing is fetched that was not asked for."""

import io
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import TINY_RUN, assert_one_message, only, train
from pictures import smooth
from PIL import Image
from safetensors.torch import load_file

from ddpm_cli.data.folder import folder
from ddpm_cli.data.huggingface import huggingface
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.evaluation.run_data import test_images as images_of_test_split

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")

COUNT, KINDS = 12, ("cat", "dog", "emu")
FEATURES = {
    "picture": datasets.Image(),
    "kind": datasets.ClassLabel(names=list(KINDS)),
    "text": datasets.Value("string"),
}
SMALL = [
    *TINY_RUN,
    "data.image_size=16",
    "data.workers=0",
    "data.cache_dir=cache",
    "model=unet_16",
    "model.norm_groups=4",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """The package keeps what it makes in a directory of the test's own, and nobody reaches the network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)

    def refused(*_address, **_options):
        raise AssertionError("somebody asks for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def pictures(rng) -> list[bytes]:
    """PNGs of several sizes and modes."""
    found = []
    for number in range(COUNT):
        image, file = smooth(rng, 20 + number % 5, 24), io.BytesIO()
        image.convert(("RGB", "L", "P")[number % 3]).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.fixture
def expected(pictures, tmp_path) -> np.ndarray:
    """What a folder of the same pictures is read as."""
    (tmp_path / "same").mkdir()
    for number, content in enumerate(pictures):
        (tmp_path / "same" / f"{number:02}.png").write_bytes(content)
    images = folder(str(tmp_path / "same"), image_size=16, workers=0, cache_dir=str(tmp_path / "cache"))
    return np.asarray(images.pixels)


def table(pictures: list[bytes | None]):
    rows = [None if content is None else {"bytes": content, "path": None} for content in pictures]
    columns = {
        "picture": rows,
        "kind": [i % 3 for i in range(len(rows))],
        "text": [f"t{i % 2}" for i in range(len(rows))],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(FEATURES))


def read(dataset: Path | str, tmp_path: Path, **options) -> ImageSet:
    return huggingface(str(dataset), **{"image_size": 16, "workers": 0, "cache_dir": str(tmp_path / "cache")} | options)


def parquet(place: Path, pictures: list[bytes]) -> Path:
    table(pictures).to_parquet(place / "pets.parquet")
    return place / "pets.parquet"


def shards(place: Path, pictures: list[bytes]) -> Path:
    (place / "pets").mkdir()
    for part in range(2):
        rows = table(pictures).select(range(part * 6, part * 6 + 6))
        rows.to_parquet(place / "pets" / f"train-{part:05}-of-00002.parquet")
    table(pictures[:4]).to_parquet(place / "pets" / "test-00000-of-00001.parquet")
    return place / "pets"


def saved(place: Path, pictures: list[bytes]) -> Path:
    table(pictures).save_to_disk(place / "pets")
    return place / "pets"


def saved_splits(place: Path, pictures: list[bytes]) -> Path:
    splits = {"train": table(pictures), "test": table(pictures[:4])}
    datasets.DatasetDict(splits).save_to_disk(place / "pets")
    return place / "pets"


def imagefolder(place: Path, pictures: list[bytes]) -> Path:
    for number, content in enumerate(pictures):
        file = place / "pets" / KINDS[number * 3 // COUNT] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return place / "pets"


def arrow(place: Path, pictures: list[bytes]) -> Path:
    (file,) = saved(place, pictures).glob("*.arrow")
    return file.rename(place / "pets.arrow")


WAYS: dict[str, Callable[[Path, list[bytes]], Path]] = {
    way.__name__: way for way in (parquet, shards, saved, saved_splits, imagefolder, arrow)
}


# What there is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_gives_the_pictures_and_labels(way, pictures, expected, tmp_path, decoded):
    place = WAYS[way](tmp_path, pictures)
    decoded.clear()
    images = read(place, tmp_path, num_classes=3)
    np.testing.assert_array_equal(images.pixels[np.arange(COUNT)], expected)
    assert (images.name, images.class_names, images.shape) == ("pets", KINDS, (3, 16, 16))
    labels = np.arange(COUNT) * 3 // COUNT if way == "imagefolder" else np.arange(COUNT) % 3
    np.testing.assert_array_equal(images.labels, labels)
    again = read(place, tmp_path)
    assert again.labels is None
    assert again.fingerprint is not None
    assert images.fingerprint is not None
    assert again.fingerprint["images"] == images.fingerprint["images"]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2, "one of the folder, one of this"


def test_splits_and_parts_of_them(pictures, expected, tmp_path):
    place = shards(tmp_path, pictures)
    for split, numbers in (("test", range(4)), ("train[3:6]", range(3, 6)), ("test+train[:1]", [0, 1, 2, 3, 0])):
        images = read(place, tmp_path, split=split)
        np.testing.assert_array_equal(images.pixels[np.arange(len(images))], expected[list(numbers)])
    with pytest.raises(ValueError, match=r"^split: no split 'dev'; choose from train, test$"):
        read(place, tmp_path, split="dev")


def test_other_columns_and_labels_of_other_kinds(pictures, expected, tmp_path):
    rows = table(pictures)
    features = {"raw": datasets.Value("binary"), "number": datasets.Value("int64"), "name": datasets.Value("string")}
    columns = {
        "raw": pictures,
        "number": [i % 2 for i in range(COUNT)],
        "name": [str(10 - i % 3) for i in range(COUNT)],
    }
    raw = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.concatenate_datasets([rows, raw], axis=1).to_parquet(tmp_path / "x.parquet")
    images = read("x.parquet", tmp_path, image="raw", num_classes=2, label="number")
    np.testing.assert_array_equal(images.pixels, expected)
    assert images.class_names == ("0", "1")
    images = read("x.parquet", tmp_path, num_classes=3, label="name")
    assert images.class_names == ("8", "9", "10"), "in natural order"
    assert images.labels is not None
    assert [images.class_names[label] for label in images.labels] == columns["name"]


def test_what_has_been_fetched_once_is_found_without_the_network(pictures, expected, tmp_path):
    """The package keeps what it has made of a data set under its name, wherever the files were."""
    place = shards(tmp_path, pictures)
    read("pets", tmp_path)
    place.rename(tmp_path / "gone")
    images = read("pets", tmp_path)
    np.testing.assert_array_equal(images.pixels, expected)
    assert images.remarks[0].startswith(f"dataset  pets: read from {tmp_path / 'hf'}")


def test_files_that_hf_download_has_brought_are_found(pictures, expected, tmp_path):
    cached = tmp_path / "hf" / "hub" / "datasets--somebody--pets"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shards(tmp_path, pictures).rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", cached / "snapshots" / ("0" * 40))
    images = read("somebody/pets", tmp_path)
    np.testing.assert_array_equal(images.pixels, expected)
    assert images.name == "pets"


@pytest.mark.parametrize("download", [False, True])
def test_the_package_is_offline_unless_download_is_said(download, pictures, tmp_path, monkeypatch):
    place, flags = parquet(tmp_path, pictures), []
    original = datasets.load_dataset_builder

    def recording(*arguments, **options):
        import datasets.config
        import huggingface_hub.constants

        flags.extend([datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE])
        return original(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", recording)
    read(place, tmp_path, download=download)
    assert flags == [not download] * 2
    assert datasets.config.HF_HUB_OFFLINE is False


# What is wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_are_named_or_left_out(workers, pictures, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_cli.data.decode_once.FEW_IMAGES", 1)
    rows: list[bytes | None] = list(pictures)
    rows[5], rows[7] = b"no picture", None
    table(rows).to_parquet(tmp_path / "x.parquet")
    reasons = "x.parquet/train/row 5: not in a known image format\n  x.parquet/train/row 7: it has no image"
    with pytest.raises(ValueError, match=rf"(?s)^2 images in x.parquet/train \(data.on_bad=skip .*{reasons}$"):
        read("x.parquet", tmp_path, workers=workers)
    images = read("x.parquet", tmp_path, workers=workers, on_bad="skip", num_classes=3)
    good = [i for i in range(COUNT) if i not in (5, 7)]
    np.testing.assert_array_equal(images.pixels, expected[good])
    np.testing.assert_array_equal(images.labels, np.array(good) % 3)
    assert len(images.skipped) == 2


def test_a_path_in_a_table_is_no_way_to_the_network_or_out_of_here(pictures, tmp_path):
    rows = [{"bytes": None, "path": path} for path in ("https://example.org/x.png", "x.png", "/dev/zero")]
    rows.append({"bytes": pictures[0], "path": None})
    pyarrow.parquet.write_table(pyarrow.table({"picture": rows}), tmp_path / "x.parquet")  # as other programs do
    images = read("x.parquet", tmp_path, image="picture", on_bad="skip")
    assert [line.rpartition(": ")[2] for line in images.skipped] == [
        *["it has no bytes, and its path is not a file on this machine"] * 2,
        "not a regular file",
    ]


COLUMNS = r"The columns are picture \(Image\), kind \(ClassLabel\), text \(string\)"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image": "text"}, rf"image: text holds no images\. {COLUMNS}"),
        ({"image": "img"}, rf"image: no column 'img'\. {COLUMNS}"),
        ({"num_classes": 3, "label": "animal"}, rf"label: no column 'animal'\. {COLUMNS}"),
        ({"num_classes": 5}, "num_classes is 5, but kind has 3 classes: cat, dog, emu"),
        ({"num_classes": 3, "label": "text"}, "num_classes is 3, but text has 2 classes: t0, t1"),
        ({"label": "kind"}, "label=kind has no effect without num_classes, the number of its classes"),
        ({"split": "test"}, "split: no split 'test'; choose from train"),
        ({"subset": "small"}, "subset: pets.parquet is a file, which has no subsets"),
        (
            {"dataset": "somebody/pets"},
            "somebody/pets is neither a file or folder here, nor in .*: set data.download=true",
        ),
        ({"dataset": "./pets"}, "no such file or folder: .*/pets"),
        ({"dataset": ""}, "dataset is empty"),
        ({"dataset": "imagefolder"}, "dataset: imagefolder is a kind of file; give the path of the files"),
        ({"dataset": "notes"}, r"notes holds files of another kind \(text\): parquet, arrow, imagefolder are read"),
        ({"dataset": "empty"}, "empty cannot be read: "),
        ({"dataset": "broken.parquet"}, "broken.parquet cannot be read: "),
        ({"dataset": "notes/a.txt"}, ".*a.txt is not a .parquet or .arrow file"),
    ],
)
def test_mistakes_are_named(options, says, pictures, tmp_path):
    parquet(tmp_path, pictures)
    for place in ("notes", "empty"):
        (tmp_path / place).mkdir()
    (tmp_path / "notes" / "a.txt").write_text("not a picture")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises((ValueError, OSError), match=f"^{says}"):
        read(**{"dataset": "pets.parquet", "tmp_path": tmp_path} | options)


def test_two_columns_of_pictures_are_one_too_many(pictures, tmp_path):
    rows = table(pictures)
    masks = table(pictures).select_columns("picture").rename_column("picture", "mask")
    datasets.concatenate_datasets([rows, masks], axis=1).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"^image: there are 2 columns of images; choose one with data.image=NAME"):
        read("x.parquet", tmp_path)
    assert len(read("x.parquet", tmp_path, image="mask")) == COUNT


def test_a_row_without_a_label_is_named(pictures, tmp_path):
    rows = table(pictures)
    rows = rows.remove_columns("kind").add_column("kind", [0, -1, *[1] * (COUNT - 2)], feature=FEATURES["kind"])
    rows.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"but 1 of 12 rows have no label from 0 to 2 in kind, e.g. row 1: -1$"):
        read("x.parquet", tmp_path, num_classes=3)


def test_without_the_package_the_message_says_how_it_comes(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^datasets is not installed: pip install 'ddpm-cli\[hub\]'$"):
        huggingface("somebody/pets")


# In a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_on_no_other_pictures(pictures, tmp_path):
    shards(tmp_path, pictures)
    data = ["data=huggingface", "data.dataset=pets", "data.num_classes=3", *SMALL]
    straight = train(*data, "name=straight", "data.crop=random", "data.flip=both", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    assert "classes  0: cat, 1: dog, 2: emu" in straight.stdout
    assert "cropped at random along the longer side" in straight.stdout
    first = train(*data, "name=twice", "data.crop=random", "data.flip=both", "trainer.steps=2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    further = train(f"resume={only(tmp_path / 'outputs' / 'twice')}", "trainer.steps=4", cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    ends = [only(tmp_path / "outputs" / name) / "checkpoints" / "step_00000004" for name in ("straight", "twice")]
    one, other = (load_file(end / "training.safetensors") for end in ends)
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)

    table(pictures[::-1]).select(range(6)).to_parquet(tmp_path / "pets" / "train-00000-of-00002.parquet")
    refused = train(f"resume={only(tmp_path / 'outputs' / 'twice')}", "trainer.steps=6", cwd=tmp_path)
    assert_one_message(refused, "train", "data: pets: these 12 images are not those that the run was trained on")


def test_mistakes_are_one_message_and_nothing_is_written(pictures, tmp_path):
    parquet(tmp_path, pictures)
    for arguments, says in (
        (
            ["data.dataset=somebody/pets"],
            "data: somebody/pets is neither a file or folder here, nor in .*download=true",
        ),
        (
            ["data.dataset=pets.parquet", "data.image=text"],
            "data: image: text holds no images. The columns are picture",
        ),
        ([], "data.dataset: must be given"),
    ):
        assert_one_message(train("data=huggingface", *arguments, *SMALL, cwd=tmp_path), "train", says)
    assert not (tmp_path / "outputs").exists()


def test_the_test_split_can_be_evaluated_against(pictures, expected, tmp_path):
    from ddpm_cli.checkpoint.metadata import Metadata

    metadata = Metadata(step=0, image_shape=(3, 16, 16), images=COUNT, config={}, versions={})
    node = {"_target_": "ddpm_cli.data.huggingface.huggingface", "dataset": str(shards(tmp_path, pictures))}
    images = images_of_test_split(
        metadata, node | {"image_size": 16, "workers": 0, "cache_dir": str(tmp_path / "cache")}
    )
    np.testing.assert_array_equal(images.pixels, expected[:4])


def test_transparent_pictures_are_read_as_those_of_a_folder(tmp_path):
    straight = np.zeros((8, 8, 4), np.uint8)
    straight[2:6] = (255, 0, 0, 255)
    file = io.BytesIO()
    Image.fromarray(straight).save(file, "PNG")
    table([file.getvalue()]).to_parquet(tmp_path / "x.parquet")
    kept = read("x.parquet", tmp_path, image_size=8, background="keep", channels=4)
    np.testing.assert_array_equal(kept.pixels[0].transpose(1, 2, 0), straight)
    black = read("x.parquet", tmp_path, image_size=8, background="black")
    np.testing.assert_array_equal(black.pixels[0].transpose(1, 2, 0), straight[..., :3])
