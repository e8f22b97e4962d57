"""A network without a null label: trained with every label, and given one for each image that is drawn or measured."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import TINY_RUN, assert_one_message, only, run, train
from torch import Tensor, nn

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.guidance import Guidance
from ddpm_cli.diffusion.samplers import DDIM
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.evaluation.of_model import of_model
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.seeds import derive_seed

LABELS = ("data.num_classes=10", "model.null_label=false")
DRAWN = "classes: the network needs a label for each image; the seed draws them, each equally often"


@pytest.fixture(scope="module")
def needy(tmp_path_factory) -> Path:
    """A finished run of such a network: with previews, held-out losses and samples that were measured on the way."""
    place = tmp_path_factory.mktemp("needy")
    measured = ("data.holdout=8", "trainer.eval_every=2", "trainer.eval_images=4")
    done = train(*TINY_RUN, *LABELS, *measured, cwd=place)
    assert done.returncode == 0, done.stderr
    return only(place / "outputs" / "digits")


class Spy(nn.Module):
    """A network that needs labels and remembers them."""

    def __init__(self, num_classes: int = 4):
        super().__init__()
        self.num_classes, self.null_label = num_classes, False
        self.unit = nn.Parameter(torch.ones(()))
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.asked.append(labels)
        return x * self.unit


# In Python -----------------------------------------------------------------------------------------------------------


def test_labels_that_are_not_given_are_drawn_from_the_generator_all_as_often():
    spy = Spy()
    ddpm, sampler = DDPM(spy, linear(10)), DDIM(steps=1)
    images = {"sampler": sampler, "show_progress": False}
    ddpm.sample(2000, 1, 1, **images, generator=torch.Generator().manual_seed(3))
    ddpm.sample(2000, 1, 1, **images, generator=torch.Generator().manual_seed(3))
    ddpm.sample(2000, 1, 1, **images, generator=torch.Generator().manual_seed(4))
    same, again, other = spy.asked
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert same.bincount().sub(500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5
    assert len(same.bincount()) == 4
    given = torch.tensor([3, 0])
    ddpm.sample(2, 1, 1, **images, labels=given)
    assert torch.equal(spy.asked[-1], given)


def test_one_step_and_the_check_of_images_give_it_labels():
    spy = Spy()
    ddpm = DDPM(spy, linear(10))
    ddpm.check_images((1, 4, 4))
    ddpm.p_sample(torch.zeros(2, 1, 4, 4), torch.tensor([3, 3]), labels=torch.tensor([2, 1]))
    assert [labels.tolist() for labels in spy.asked] == [[0], [2, 1]]


def test_guidance_and_images_without_labels_are_refused():
    ddpm = DDPM(Spy(), linear(10))
    with pytest.raises(ValueError, match="scale 2 needs predictions without labels, which null_label=False rules out"):
        ddpm.denoiser(torch.tensor([1]), guidance=Guidance(scale=2))
    with pytest.raises(ValueError, match="needs a label for each image"):
        ddpm.denoiser()
    unet = UNet(8, 1, 8, (1, 2), 1, (), 0.0, norm_groups=4, num_classes=3, null_label=False)
    with pytest.raises(ValueError, match="needs a label for each image"):
        DDPM(unet, linear(10)).training_loss(torch.zeros(1, 1, 8, 8))


def test_the_bound_of_images_without_labels_is_refused():
    images = ImageSet(np.zeros((3, 1, 4, 4), np.uint8), "squares", flip="none")
    data = SimpleNamespace(trained_on=images, held_out=None)
    options = SimpleNamespace(metrics=["bpd"], likelihood_images=3, batch_size=3, seed=0)
    setting = SimpleNamespace(options=options, data=lambda: data, compute=None)
    with pytest.raises(ConfigError, match=r"bpd and heldout need a label for each image .* and squares has none"):
        of_model(setting, SimpleNamespace(ddpm=DDPM(Spy(), linear(10))), None)


# By the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_previewed_measured_and_resumed(needy: Path, tmp_path: Path):
    assert (needy / "previews" / "step_00000004.png").is_file()
    entries = [json.loads(line) for line in (needy / "metrics.jsonl").read_text().splitlines()]
    assert {"eval/heldout", "eval/fd_classifier", "eval/kd_classifier"} <= entries[-1].keys()
    run_directory = shutil.copytree(needy, tmp_path / "outputs" / "digits" / needy.name)
    done = train(f"resume={run_directory}", "trainer.steps=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def sampled(sample_here, name: str, *arguments: str) -> tuple[np.ndarray, str]:
    done = sample_here(*arguments, "sampler=ddim", "sampler.steps=2", "save=npz", f"out={name}")
    assert done.returncode == 0, done.stderr
    with np.load(Path(name) / "samples.npz") as archive:
        return archive["arr_0"], done.stdout


def test_without_classes_each_image_has_a_label_of_its_own(needy: Path, sample_here):
    images, said = sampled(sample_here, "drawn", f"ckpt={needy}", "n=3")
    assert DRAWN in said
    in_batches, _ = sampled(sample_here, "batches", f"ckpt={needy}", "n=3", "batch_size=2")
    assert np.array_equal(images, in_batches)
    labels = [derive_seed(0, "label", i) % 10 for i in range(3)]
    assert len(set(labels)) > 1
    for i, label in enumerate(labels):
        of_class, said = sampled(sample_here, f"class_{i}", f"ckpt={needy}", "n=3", f"classes=[{label}]")
        assert np.array_equal(of_class[i], images[i])
        assert f"classes: {label}: {label}" in said


REFUSED = {
    "guidance.scale=2 classes=all": r"trained with every label \(model.null_label=false\) and needs one",
    "guidance.scale=2": "guidance.scale: the network was trained with every label",
    "mode=interpolate seeds=[1,2] sampler.steps=2": "classes: the network needs a label for each .* mode=interp",
    "classes=[10]": "classes: the network knows 0 to 9, got 10",
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_it_cannot_do_without_labels_is_refused(mistake: str, needy: Path, sample_here):
    done = sample_here(f"ckpt={needy}", *mistake.split(), "out=refused")
    assert_one_message(done, "sample", REFUSED[mistake])
    assert not Path("refused").exists()


def test_between_two_seeds_a_class_is_said(needy: Path, sample_here):
    sampled(sample_here, "between", f"ckpt={needy}", "mode=interpolate", "seeds=[1,2]", "n=2", "classes=[3]")


def test_it_is_evaluated_with_the_labels_of_the_data(needy: Path, tmp_path: Path):
    few = ("n=20", "sampler.steps=2", "features=pixels", "per_class=true")
    figures = ("metrics=[fd,bpd,heldout]", "likelihood_images=4")
    done = run("eval", f"ckpt={needy}", *few, *figures, "out=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused = run("eval", f"ckpt={needy}", *few, "metrics=[fd]", "guidance.scale=2", "out=no", cwd=tmp_path)
    assert_one_message(refused, "eval", r"guidance.scale: the network was trained with every label")


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ((*LABELS, "trainer.label_dropout=0.1"), "trainer.label_dropout: model.null_label=false is for a network that"),
        (("model.null_label=false",), "model: null_label=false has no effect without labels"),
        (("data.num_classes=10", "model.null_label=null"), "model.null_label: expected true or false, got null"),
    ],
    ids=["label_dropout", "no labels", "null"],
)
def test_training_without_labels_is_refused(mistake: tuple[str, ...], says: str, tmp_path: Path):
    assert_one_message(train(*TINY_RUN, *mistake, cwd=tmp_path), "train", says)
    assert not (tmp_path / "outputs").exists()


def test_no_dropout_of_labels_is_what_there_is(tmp_path: Path):
    few = ("trainer.steps=1", "trainer.preview_every=0", "trainer.checkpoint_every=0")
    done = train(*TINY_RUN, *few, *LABELS, "trainer.label_dropout=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
