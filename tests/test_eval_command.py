"""`ddpm-eval` as a user runs it: figures, their record, what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import TINY_RUN, assert_one_message, only, run, sample, train
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_cli.data.datasets import digits
from ddpm_cli.evaluation.described import details_of
from ddpm_cli.evaluation.features.classifier import Classifier
from ddpm_cli.evaluation.metrics import Measured

FEW = ["n=24", "sampler.steps=3", "features=pixels"]


def evaluate(*arguments: str, cwd: Path, **options):
    return run("eval", *arguments, cwd=cwd, **options)


def evaluated(*arguments: str, cwd: Path) -> dict:
    """The record of an evaluation that succeeds, in a directory of its own."""
    done = evaluate(*arguments, "out=out", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (path,) = (cwd / "out").glob("*.json")
    record = json.loads(path.read_text())
    shutil.rmtree(cwd / "out")
    return record


def figures(record: dict) -> dict[str, float]:
    return {figure["metric"]: figure["value"] for figure in record["metrics"] if figure["class"] is None}


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Of two sets of pictures, by the eigenvalues of the product of their covariances, which need not be symmetric."""
    x, y = (np.tile(images.reshape(len(images), -1) / 255, 3) for images in (x, y))
    a, b = (np.cov(features, rowvar=False) for features in (x, y))
    roots = np.sqrt(np.linalg.eigvals(a @ b).real.clip(min=0))
    largest = np.sort(roots)[::-1][: len(x) - 1]  # what lies beyond the rank are roots of rounding errors
    apart = x.mean(0) - y.mean(0)
    return float(apart @ apart + np.trace(a) + np.trace(b) - 2 * largest.sum())


@pytest.fixture(scope="module")
def first(finished, tmp_path_factory) -> tuple[Path, str, Path]:
    """A run that has been evaluated: its directory, what the command said, the record."""
    place = shutil.copytree(finished[0], tmp_path_factory.mktemp("evaluated") / "home")
    (directory,) = (place / "outputs" / "digits").iterdir()
    done = evaluate(f"ckpt={directory.relative_to(place)}", *FEW, "keep=true", cwd=place)
    assert done.returncode == 0, done.stderr
    (path,) = (directory / "eval").glob("*.json")
    return place, done.stdout, path


def test_the_record_says_what_was_measured_and_how(first):
    place, said, path = first
    record, run_directory = json.loads(path.read_text()), path.parents[1]
    assert path.name.startswith("step_00000004-dpmpp_2m_sde-3-pixels-")
    assert record["format"] == 1
    assert record["model"]["run"] == str(run_directory)
    assert (record["model"]["checkpoint"], record["model"]["step"]) == ("step_00000004", 4)
    samples = record["samples"]
    assert (samples["source"], samples["n"], samples["seed"]) == ("drawn", 24, 0)
    assert (samples["sampler_name"], samples["steps"], samples["network_calls"]) == ("dpmpp_2m_sde", 3, 3)
    assert (samples["guidance"]["scale"], samples["threshold"], samples["classes"]) == (1.0, "static", None)
    assert record["features"]["name"] == record["features"]["identity"]["name"] == "pixels"
    assert (record["reference"]["name"], record["reference"]["n"]) == ("digits", 1797)
    names = ["fd24_pixels", "kd24_pixels", "precision24_pixels", "recall24_pixels"]
    assert [figure["name"] for figure in record["metrics"]] == names
    assert all(re.fullmatch("[0-9a-f]{16}", figure["fingerprint"]) for figure in record["metrics"])
    assert len({figure["fingerprint"] for figure in record["metrics"]}) == 4
    assert record["images_per_second"] > 0
    assert record["command"].startswith("ddpm-eval ckpt=outputs/digits/")
    lines = said.splitlines()
    assert max(len(line) for line in lines if "/" not in line) <= 80
    for name in names:
        assert re.search(rf"^  {name} +-?[\d.]+", said, re.MULTILINE), said
    assert "24 images by dpmpp_2m_sde, 3 network calls each, seed 0" in lines
    assert "samples: 24 images for features of 768 dimensions" in " ".join(lines)
    assert "too large by about" not in said, "of so few nobody knows"
    assert str(path.relative_to(place)) in lines


def test_the_images_are_those_of_ddpm_sample_and_the_distance_is_theirs(first, tmp_path: Path):
    path = first[2]
    kept = np.load(path.with_suffix(".npz"))["arr_0"]
    drawn = sample(
        f"ckpt={path.parents[1]}", "n=24", "sampler=dpmpp_2m_sde", "sampler.steps=3", "save=npz", "out=o", cwd=tmp_path
    )
    assert drawn.returncode == 0, drawn.stderr
    assert np.array_equal(kept, np.load(tmp_path / "o" / "samples.npz")["arr_0"])
    found = figures(json.loads(path.read_text()))["fd"]
    assert found == pytest.approx(frechet(kept[..., 0], digits(image_size=16).pixels[:, 0]), rel=1e-4)


def test_given_again_it_says_what_there_is_and_another_command_overwrites_nothing(first):
    place, _, path = first
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    again = evaluate(f"ckpt={path.parents[1].relative_to(place)}", *FEW, "keep=true", cwd=place)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith(f"{path.relative_to(place)} holds these figures already:\n")
    assert "fd24_pixels" in again.stdout
    assert {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()} == before
    saved = place / "statistics.npz"
    also = evaluate(f"ckpt={path.parents[1]}", *FEW, "keep=true", f"reference.save={saved}", cwd=place)
    assert "holds these figures already" in also.stdout, also.stderr
    pixels = digits(image_size=16).pixels.reshape(1797, 256) / 255
    np.testing.assert_allclose(np.load(saved)["mu"], np.tile(pixels.mean(0), 3), rtol=1e-5, err_msg="made all the same")
    other = evaluate(f"ckpt={path.parents[1]}", *FEW, "seed=1", cwd=place)
    assert other.returncode == 0, other.stderr
    assert all(file.read_bytes() == content for file, content in before.items())
    assert len(list(path.parent.glob("*.json"))) == 2


def test_figures_are_a_matter_neither_of_batches_nor_of_who_has_drawn(first, tmp_path: Path):
    _, _, path = first
    run_directory = path.parents[1]
    expected = figures(json.loads(path.read_text()))
    batches = evaluated(f"ckpt={run_directory}", *FEW, "batch_size=7", cwd=tmp_path)
    assert figures(batches) == pytest.approx(expected, rel=1e-3)
    given = evaluated(f"ckpt={run_directory}", f"samples={path.with_suffix('.npz')}", "features=pixels", cwd=tmp_path)
    assert figures(given) == pytest.approx(expected, rel=1e-9)
    assert given["model"] is None
    assert given["samples"]["source"].endswith(".npz")
    both = [{figure["fingerprint"] for figure in record["metrics"]} for record in (batches, given)]
    assert both[0] == both[1], "comparable, whoever has drawn"


def test_tensorboard_shows_figures_and_training_goes_on(first, tmp_path: Path):
    place = shutil.copytree(first[0], tmp_path / "home")
    (directory,) = (place / "outputs" / "digits").iterdir()
    shown = EventAccumulator(str(directory / "eval" / "tensorboard")).Reload()
    (event, *_) = shown.Scalars("eval/fd24_pixels")
    assert event.step == 4
    done = train(f"resume={directory.relative_to(place)}", "trainer.steps=5", cwd=place)
    assert done.returncode == 0, done.stderr
    assert EventAccumulator(str(directory / "eval" / "tensorboard")).Reload().Scalars("eval/fd24_pixels")[0] == event


def test_a_curve_over_all_checkpoints(trained, tmp_path: Path):
    directory, _ = trained
    done = evaluate(f"ckpt={directory}", *FEW, "checkpoints=all", "metrics=[fd,kd]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^step +fd24_pixels +kd24_pixels\n +2 .*\n +4 .*$", done.stdout, re.MULTILINE), done.stdout
    steps = {json.loads(path.read_text())["model"]["step"] for path in (directory / "eval").glob("*.json")}
    assert steps == {2, 4}


def test_a_sweep_shows_the_first_figure_of_each_run(trained, tmp_path: Path):
    directory, _ = trained
    done = evaluate("-m", f"ckpt={directory}", *FEW[:1], FEW[2], "sampler.steps=2,3", "metrics=[kd]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        len(re.findall(r"^  [01]  .*sampler.steps=[23].*  kd24_pixels -?\d+\.\d{4}$", done.stdout, re.MULTILINE)) == 2
    )
    assert len(list((directory / "eval").glob("*.json"))) == 2


def test_each_class_by_itself_with_as_many_of_each_as_the_data_have(labelled: Path, tmp_path: Path):
    options = ["n=180", "sampler.steps=2", "features=pixels", "metrics=[precision_recall]", "per_class=true"]
    record = evaluated(f"ckpt={labelled}", *options, cwd=tmp_path)
    assert record["samples"]["classes"] == "classes as in the reference"
    of_classes = [figure for figure in record["metrics"] if figure["class"] is not None]
    counts = {figure["class"]: figure["n"] for figure in of_classes}
    data = np.bincount(digits(num_classes=10).labels)
    assert counts == {str(number): pytest.approx(count / 1797 * 180, abs=1) for number, count in enumerate(data)}
    assert sum(counts.values()) == 180
    assert {figure["metric"] for figure in of_classes} == {"precision", "recall"}
    assert len({figure["fingerprint"] for figure in of_classes}) == len(of_classes)


def test_details_are_those_of_all_images():
    found = [Measured(metric="fd_inf", value=1.0, n=8, of_class=name, detail={"of": name}) for name in (None, "a", "b")]
    assert details_of(found) == {"fd_inf": {"of": None}}
    assert details_of([*found[1:], Measured(metric="kd", value=1.0, n=8)]) == {}


def test_copies_among_samples_are_found_and_shown(trained, tmp_path: Path):
    data = digits(image_size=16).pixels.transpose(0, 2, 3, 1)
    noise = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), np.uint8)
    np.savez(tmp_path / "given.npz", np.concatenate([data[[5, 77, 900]], noise]))
    options = [f"ckpt={trained[0]}", "samples=given.npz", "features=pixels", "metrics=[memorization]", "out=out"]
    done = evaluate(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text())
    assert figures(record) == {"memorization": pytest.approx(3 / 9)}
    nearest = record["details"]["memorization"]["nearest"][:3]
    assert {(pair["sample"], pair["training"]) for pair in nearest} == {(0, 5), (1, 77), (2, 900)}
    sheet = np.array(Image.open(path.with_name(f"{path.stem}_nearest.png")))
    above, below = (sheet[2 + i * 66 : 66 + i * 66] for i in range(2))  # of 64 pixels each, and 2 between them
    assert np.array_equal(above[:, : 3 * 66], below[:, : 3 * 66]), "copies stand above what they are copies of"
    assert not np.array_equal(above, below)


def test_the_model_itself_is_asked_about_images_it_has_not_seen(tmp_path: Path):
    assert train(*TINY_RUN, "data.holdout=40", cwd=tmp_path).returncode == 0
    (directory,) = (tmp_path / "outputs" / "digits").iterdir()
    record = evaluated(f"ckpt={directory}", "metrics=[heldout,bpd]", "likelihood_images=16", cwd=tmp_path)
    assert record["samples"] is None
    assert record["features"] is None
    assert list(figures(record)) == ["heldout", "bpd"]
    assert all(figure["n"] == 16 and figure["standard_error"] > 0 for figure in record["metrics"])
    assert len(record["details"]["bpd"]["terms"]) == 20
    assert sum(record["details"]["bpd"]["terms"]) + record["details"]["bpd"]["prior"] == pytest.approx(
        figures(record)["bpd"], rel=1e-6
    )
    assert record["remarks"] == [
        f"{name} is of 16 images of digits that were kept from training" for name in ("bpd", "heldout")
    ]
    for seed in (0, 1):
        done = evaluate(f"ckpt={directory}", "metrics=[bpd]", "likelihood_images=16", f"seed={seed}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (directory / "eval").glob("*.json")]
    assert len(records) == len({figures(record)["bpd"] for record in records}) == 2, "another seed, another noise"


MISTAKES = {
    "": "ckpt: must be given, as ckpt=RUN; or samples=DIR",
    "ckpt=nowhere": "ckpt: nowhere does not exist",
    f"ckpt={'a' * 300}": "ckpt: a+ does not exist",
    "ckpt=RUN metrics=[fd,kdd]": r"metrics: no such metric 'kdd' \(did you mean 'kd'\?\)",
    "ckpt=RUN metrics=[fd,fd]": "metrics: names fd twice",
    "ckpt=RUN metrics=[]": "metrics: is empty; choose from fd",
    "ckpt=RUN n=1": "n: must be at least 2, got 1",
    "ckpt=RUN batch_size=0": "batch_size: must be at least 1",
    "ckpt=RUN guidance.scale=2 features=pixels": "guidance.scale: has no effect, the network was trained without",
    "ckpt=RUN per_class=true features=pixels": "per_class: needs a network trained on labels",
    "ckpt=RUN metrics=[bpd] sampler.steps=3": r"sampler.steps: has no effect with metrics=\[bpd\]",
    "ckpt=RUN metrics=[bpd] features=pixels": r"features: has no effect with metrics=\[bpd\]",
    "ckpt=RUN metrics=[heldout]": "metrics: heldout is measured on held-out images, and the run held out none",
    "ckpt=RUN likelihood_images=3 features=pixels": "likelihood_images: has an effect only with",
    "ckpt=RUN sampler.steps=99 features=pixels": "sampler: steps must be between 1 and the schedule's 20",
    "ckpt=RUN metrics=[inception_score] features=pixels": "metrics: inception_score needs features=inception",
    "ckpt=RUN metrics=[bpd] reference.split=train": r"reference.split: has no effect with metrics=\[bpd\]",
    "ckpt=RUN n=100000000000": "n: must be at most 10,000,000, got",
    "ckpt=RUN data.holdout=8": "data.holdout: no such option; data takes path.*; the checkpoint has all other options",
    "ckpt=RUN +data.holdout=8": "data.holdout: no such option; data takes path.*; the checkpoint has all other options",
    "ckpt=RUN data.num_classes=10": "data.num_classes: no such option; data takes path",
    "ckpt=RUN reference.save=/proc/x.npz": "reference.save: /proc",
    "ckpt=RUN data.path=x": "data.path: the run's data have no such option",
    "ckpt=RUN featurs=pixels": r"featurs: no such option \(did you mean 'features'\?\)",
    "ckpt=RUN samples=nowhere features=pixels": "samples: .*nowhere",
    "ckpt=RUN samples=given.npz sampler.steps=3": "sampler.steps: has no effect with samples=",
    "ckpt=RUN samples=given.npz features=pixels n=10": "n: given.npz has only 9 images",
    "ckpt=RUN samples=given.npz checkpoints=all": "checkpoints: evaluates several",
    "ckpt=RUN samples=given.npz keep=true": "keep: has no effect with samples=",
    "ckpt=RUN samples=large.npz features=pixels": "samples: the samples are 32 x 32 x 1, the ref.* 16 x",
    "ckpt=RUN samples=float.npz features=pixels": "samples: .*must be uint8",
    "ckpt=RUN samples=empty features=pixels": "samples: no images in",
    "samples=given.npz features=pixels": "reference: data needs a run, ckpt=RUN",
    "samples=given.npz metrics=[bpd]": "metrics: bpd is measured on a model",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A directory with files that are no samples of the run, and one that is."""
    place = tmp_path_factory.mktemp("given")
    np.savez(place / "given.npz", np.zeros((9, 16, 16, 1), np.uint8))
    np.savez(place / "large.npz", np.zeros((9, 32, 32, 1), np.uint8))
    np.savez(place / "float.npz", np.full((9, 16, 16, 1), np.nan, np.float32))
    (place / "empty").mkdir()
    return place


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_and_leaves_nothing(mistake: str, first, given: Path, eval_here):
    run_directory = first[2].parents[1]
    before = sorted(run_directory.rglob("*"))
    done = eval_here(given, *mistake.replace("RUN", str(run_directory)).split())
    assert_one_message(done, "eval", MISTAKES[mistake])
    assert sorted(run_directory.rglob("*")) == before
    assert sorted(path.name for path in given.iterdir()) == ["empty", "float.npz", "given.npz", "large.npz"]


@pytest.mark.parametrize("mistake", ["sampler.steps=99", "sampler=ddim variance=fixed_small"])
def test_no_classifier_is_trained_for_an_evaluation_that_cannot_be(mistake: str, first, eval_here, monkeypatch):
    monkeypatch.setattr(Classifier, "prepare", lambda *_: pytest.fail("it comes last"))
    refused = eval_here(first[0], f"ckpt={first[2].parents[1]}", *mistake.split())
    assert_one_message(refused, "eval", mistake.partition("=")[0].partition(".")[0])


def test_data_that_are_gone_or_others_are_told(first, tmp_path: Path, eval_here):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        Image.fromarray(np.full((16, 16), 30 * number, np.uint8)).save(pictures / f"{number}.png")
    folder = ["data=folder", "data.path=pictures", "data.image_size=16", "data.channels=1", "data.cache_dir=cache"]
    assert train(*folder, *TINY_RUN, "model.attention_resolutions=[8]", "name=x", cwd=tmp_path).returncode == 0
    directory = only(tmp_path / "outputs" / "x")
    (tmp_path / "moved").mkdir()
    pictures.rename(tmp_path / "moved" / "pictures")
    options = [f"ckpt={directory}", "n=8", "sampler.steps=2", "features=pixels", "metrics=[fd]"]
    gone = eval_here(tmp_path, *options)
    assert_one_message(gone, "eval", r"data: .*pictures.*If the images have been moved, set data.path=")
    assert eval_here(tmp_path, *options, "data.path=moved/pictures").returncode == 0
    elsewhere = ["reference=images", "reference.path=moved/pictures"]
    assert eval_here(tmp_path, *options, *elsewhere).returncode == 0
    unread = eval_here(tmp_path, *options, *elsewhere, "data.path=moved/pictures", "seed=2")
    assert_one_message(unread, "eval", "data.path: has no effect; these features and reference use no image")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "moved" / "pictures" / "7.png")
    other = eval_here(tmp_path, *options, "data.path=moved/pictures", "seed=1")
    assert_one_message(other, "eval", "data: .*are not those that the run was trained on.*reference=images")


HASTY = """
from ddpm_cli.evaluation.features import classifier_network
classifier_network.FEWEST = classifier_network.MOST = 256
from ddpm_cli.eval import main
main()
"""


def test_a_classifier_that_is_trained_is_told_of_once(trained, tmp_path: Path):
    options = [f"ckpt={trained[0]}", "n=8", "sampler.steps=2", "metrics=[fd]"]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = evaluate(*options, cwd=tmp_path, code=HASTY, **cache)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^features a classifier of digits, trained in \d+ s: \d.*% of 179 held-out", done.stdout), (
        done.stdout
    )
    again = evaluate(*options, "seed=1", cwd=tmp_path, code=HASTY, **cache)
    assert (again.returncode, again.stderr) == (0, "")
    assert "a classifier of" not in again.stdout


@pytest.mark.slow
def test_a_longer_training_scores_better_by_what_is_taken_when_nothing_is_said(tmp_path: Path):
    lengths = ["trainer.steps=160", "trainer.checkpoint_every=80", "trainer.preview_every=0"]
    assert train("experiment=quickstart", *lengths, cwd=tmp_path, timeout=900).returncode == 0
    directory = only(tmp_path / "outputs" / "quickstart")
    done = evaluate(f"ckpt={directory}", "checkpoints=all", "n=100", "sampler.steps=10", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (directory / "eval").glob("*.json")]
    of_steps = {record["model"]["step"]: figures(record) for record in records}
    assert sorted(of_steps) == [80, 160]
    assert {record["features"]["name"] for record in records} == {"classifier"}, "digits have labels"
    assert of_steps[160]["fd"] < 0.9 * of_steps[80]["fd"]
