"""Training on labels, and at timesteps that are not drawn evenly: what reaches the network, and what is logged."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import TINY_RUN, assert_one_message, only, train
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import Metadata
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.data.datasets import digits
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.ema.ema import EMA
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.device import choose_compute
from ddpm_cli.sampling import build as prepare_sampling
from ddpm_cli.training.optimizers import adamw
from ddpm_cli.training.step_stats import Progress
from ddpm_cli.training.timestep_samplers import LossSecondMoment, Uniform
from ddpm_cli.training.train_state import capture, restore
from ddpm_cli.training.trainer import Trainer
from ddpm_cli.training.trainer_config import TrainerConfig


def make_trainer(
    *,
    num_classes: int | None = 10,
    images: ImageSet | None = None,
    timestep_sampler: Uniform | None = None,
    T: int = 100,
    rank: int = 0,
    ranks: int = 1,
    **config,
) -> Trainer:
    images = digits(image_size=8, num_classes=num_classes) if images is None else images
    compute = choose_compute("cpu", "fp32")
    torch.manual_seed(0)
    unet = UNet(8, 1, 16, (1, 2), 1, (4,), 0.0, norm_groups=4, num_classes=num_classes)
    compute.place(unet)
    options = {"steps": 6, "batch_size": 16, "log_every": 1, "device": "cpu"} | config
    return Trainer(
        Spy(unet, cosine(T)),
        BatchLoader(images, options["batch_size"], seed=0, rank=rank, world_size=ranks),
        optimizer=adamw(unet.parameters(), lr=2e-3),
        ema=EMA(unet, decays=[0.99]),
        config=TrainerConfig(**options),
        compute=compute,
        seed=0,
        timestep_sampler=timestep_sampler,
    )


class Spy(DDPM):
    """Remembers what it was trained on."""

    seen: list[tuple[Tensor, Tensor | None]]

    def losses(self, x_0: Tensor, t: Tensor, noise: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        self.__dict__.setdefault("seen", []).append((x_0, labels))
        return super().losses(x_0, t, noise, labels)


def run(trainer: Trainer) -> list[Progress]:
    return [progress for progress in trainer.run() if progress is not None]


# Labels --------------------------------------------------------------------------------------------------------------


def test_without_any_label_a_network_with_classes_trains_as_one_without():
    """Not clipped: the norm of the whole gradient is summed in another order where there is one more tensor."""
    options = {"grad_clip": None, "warmup_steps": 2}
    plain, labelled = make_trainer(num_classes=None, **options), make_trainer(label_dropout=1.0, **options)
    own = labelled.ddpm.model.get_parameter("label_embedding.weight")
    before = own.detach().clone()
    for one, other in zip(run(plain), run(labelled), strict=True):
        assert torch.equal(one.losses, other.losses)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-6)
    assert torch.equal(own, before)
    assert before.abs().max() > 0
    found = labelled.ddpm.model.state_dict()
    for name, value in plain.ddpm.model.state_dict().items():
        assert torch.equal(value, found.pop(name)), name
    assert list(found) == ["label_embedding.weight"]


@pytest.mark.parametrize(("label_dropout", "share"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_labels_are_dropped_as_often_as_asked_for_however_a_batch_is_split(label_dropout: float | None, share: float):
    options = {"label_dropout": label_dropout, "batch_size": 100}
    whole, first, second = (make_trainer(**options, rank=rank, ranks=ranks) for rank, ranks in ((0, 1), (0, 2), (1, 2)))
    labels = torch.arange(100) % 10
    dropped = 0
    for step in range(100):
        for trainer in (whole, first, second):
            trainer.step = step
        found = whole._drop_labels(labels)
        halves = torch.cat([first._drop_labels(labels[:50]), second._drop_labels(labels[50:])])
        assert torch.equal(found, halves)
        assert torch.equal(found[found >= 0], labels[found >= 0])
        dropped += int((found == -1).sum())
    assert abs(dropped - 10_000 * share) <= 4 * (10_000 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_image_is_trained_with_its_own_label(accumulate: int):
    """Images tell their class by their brightest pixel, and by its place whether they were mirrored."""
    labels = np.arange(40) % 10
    pixels = np.zeros((40, 1, 8, 8), dtype=np.uint8)
    pixels[:, 0, 3, 1] = 25 * labels + 20
    images = ImageSet(pixels, "bright", flip="horizontal", labels=labels, class_names=tuple("0123456789"))
    trainer = make_trainer(images=images, accumulate=accumulate, label_dropout=0.25)
    run(trainer)
    seen = trainer.ddpm.__dict__["seen"]
    assert len(seen) == 6 * accumulate
    x_0, found = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(x_0) == 6 * 16
    told = (((x_0.amax((1, 2, 3)) + 1) * 127.5).round() - 20) / 25
    kept = found >= 0
    assert torch.equal(found[kept].float(), told[kept])
    assert 5 < (~kept).sum() < 45
    mirrored = x_0[:, 0, 3, 6] > x_0[:, 0, 3, 1]
    assert 20 < mirrored.sum() < 76
    expected = np.concatenate([labels[trainer.batches.indices(step)] for step in range(6)])
    assert torch.equal(found, torch.where(kept, torch.from_numpy(expected), -1))


def test_labels_change_what_is_learned_and_data_without_labels_has_none():
    labelled, plain = make_trainer(label_dropout=0.0), make_trainer(num_classes=None)
    before = labelled.ddpm.model.get_parameter("label_embedding.weight").detach().clone()
    run(labelled)
    assert (labelled.ddpm.model.get_parameter("label_embedding.weight") != before).any(1).all(), "of every class"
    run(plain)
    assert {labels for _, labels in plain.ddpm.__dict__["seen"]} == {None}


# Timesteps of large losses -------------------------------------------------------------------------------------------


def loss_second_moment(**config) -> Trainer:
    """Its history is full after a step or two."""
    options = {"steps": 9, "batch_size": 32, "log_every": 4, "warmup_steps": 3} | config
    return make_trainer(T=4, timestep_sampler=LossSecondMoment(linear(4), history=2, uniform=0.1), **options)


def test_a_run_that_remembers_losses_resumes_to_the_bit(tmp_path: Path):
    straight = loss_second_moment()
    logged = run(straight)
    stopped = loss_second_moment()
    steps = stopped.run()
    first = [progress for progress in (next(steps) for _ in range(6)) if progress is not None]
    steps.close()
    weights = torch.stack([result.weights for result in stopped.pending])
    assert weights.shape == (2, 32)
    assert weights.std() > 0.05, "timesteps are no longer drawn evenly"
    description = Metadata(step=6, image_shape=(1, 8, 8), images=1797, config={}, versions={})
    path = checkpoint.save(
        tmp_path, ema=stopped.ema.model.state_dict(), training=capture(stopped), description=description
    )
    resumed = loss_second_moment()
    found = checkpoint.verify(path, *checkpoint.FILES)
    restore(resumed, checkpoint.load_training(found), checkpoint.load_ema(found))
    assert isinstance(resumed.timestep_sampler, LossSecondMoment)
    assert isinstance(stopped.timestep_sampler, LossSecondMoment)
    assert torch.equal(resumed.timestep_sampler.probabilities(), stopped.timestep_sampler.probabilities())
    again = first + run(resumed)
    assert [(p.step, p.loss, p.grad_norm) for p in again] == [(p.step, p.loss, p.grad_norm) for p in logged]
    assert all(torch.equal(one.t, other.t) for one, other in zip(again, logged, strict=True))
    assert capture(straight).keys() == capture(resumed).keys()
    for name, value in capture(straight).items():
        assert torch.equal(value, capture(resumed)[name]), name


def test_a_run_without_such_a_history_is_not_gone_on_with_by_one_that_needs_it():
    plain = make_trainer(T=4, steps=1)
    run(plain)
    with pytest.raises(ValueError, match="the training state does not fit this configuration: 'losses'"):
        restore(loss_second_moment(), capture(plain), plain.ema.model.state_dict())


def test_the_logged_loss_is_the_weighted_mean_and_so_is_the_gradient():
    trainer = loss_second_moment(steps=8)
    results, step = [], trainer.train_step

    def watching(*batch):
        results.append(step(*batch))
        return results[-1]

    trainer.train_step = watching
    logged = run(trainer)
    assert [progress.step for progress in logged] == [4, 8]
    for progress, steps in zip(logged, (results[:4], results[4:]), strict=True):
        products = torch.cat([result.weights * result.losses for result in steps])
        assert progress.loss == pytest.approx(products.mean().item(), rel=1e-6)
        assert torch.equal(progress.losses, torch.cat([result.losses for result in steps])), "these are as they are"
    assert logged[1].loss != pytest.approx(logged[1].losses.mean().item(), rel=1e-3)
    trainer = loss_second_moment(steps=9, grad_clip=None)
    steps = trainer.run()
    for _ in range(6):
        next(steps)
    twin = loss_second_moment()  # at the same step, with the same weights: its gradient is worked out by hand
    restore(twin, {name: value.clone() for name, value in capture(trainer).items()}, trainer.ema.model.state_dict())
    drawn, noise = twin._draw(torch.Size((1, 8, 8)))
    assert drawn.weights.std() > 0.05
    batch = twin.batches.batch(6)
    assert batch.pixels is not None
    losses = twin.ddpm.losses(batch.pixels / 127.5 - 1, drawn.t, noise, twin._drop_labels(batch.labels))
    (drawn.weights * losses).mean().backward()
    next(steps)
    steps.close()
    for name, parameter in trainer.ddpm.model.named_parameters():
        found, expected = parameter.grad, twin.ddpm.model.get_parameter(name).grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


# A run ---------------------------------------------------------------------------------------------------------------


def test_a_run_with_labels_leaves_what_one_without_does(labelled: Path, trained):
    plain, _ = trained
    kept = sorted(path.name for path in plain.iterdir())
    assert sorted(path.name for path in labelled.iterdir() if path.name != "samples") == kept
    for run_directory in (plain, labelled):
        assert sorted(path.name for path in (run_directory / "previews").iterdir()) == [
            "step_00000002.png", "step_00000004.png"
        ]  # fmt: skip
    entries = [[json.loads(line) for line in (d / "metrics.jsonl").open()] for d in (plain, labelled)]
    assert [list(entry) for entry in entries[0]] == [list(entry) for entry in entries[1]]
    tags = []
    for directory in (plain, labelled):
        events = EventAccumulator(str(directory / "tensorboard"))
        events.Reload()
        tags.append(events.Tags())
    assert tags[0] == tags[1]


def test_image_i_of_a_preview_is_of_class_i(labelled: Path, sample_here, tmp_path: Path):
    """As ddpm-sample makes it of the same noise, with the sampler of the run's previews."""
    options = [
        "classes=[0,1,2,3]",
        "n=1",
        "sampler=dpmpp_2m_sde",
        "sampler.steps=3",
        "save=images",
        f"out={tmp_path}/out",
    ]
    done = sample_here(f"ckpt={labelled}", *options)
    assert done.returncode == 0, done.stderr
    with Image.open(labelled / "previews" / "step_00000004.png") as picture:
        preview = np.asarray(picture).astype(int)
    assert preview.shape == (2 * 66 + 2, 2 * 66 + 2)
    for i in range(4):
        top, left = 2 + 66 * (i // 2), 2 + 66 * (i % 2)
        with Image.open(tmp_path / "out" / "images" / f"{i:06d}.png") as image:
            assert np.abs(preview[top : top + 64 : 4, left : left + 64 : 4] - np.asarray(image)).max() <= 1


def test_a_run_is_not_gone_on_with_where_its_classes_have_other_names(tmp_path: Path):
    for place, names in (("one", "ab"), ("other", "ac")):
        for name in names:
            (tmp_path / place / name).mkdir(parents=True)
            Image.new("L", (16, 16), ord(name)).save(tmp_path / place / name / "picture.png")
    folder = ["data=folder", "model=unet_16", "data.image_size=16", "data.channels=1", "data.num_classes=2"]
    begun = train(
        *TINY_RUN, *folder, "data.path=one", "data.cache_dir=cache", "trainer.preview_every=0", "name=x", cwd=tmp_path
    )
    assert begun.returncode == 0, begun.stderr
    assert "classes  0: a, 1: b" in begun.stdout
    run = only(tmp_path / "outputs" / "x")
    moved = train(f"resume={run}", "data.path=other", "trainer.steps=6", cwd=tmp_path)
    assert_one_message(moved, "train", "data: the run was trained on other classes: 'b' then, 'c' now")


def test_classes_of_a_network_that_never_saw_a_label_are_refused():
    ddpm = SimpleNamespace(num_classes=3, needs_labels=False)
    pretrained = SimpleNamespace(ddpm=ddpm, label_dropout=1.0)
    with pytest.raises(ConfigError, match="classes: the network was trained with every label left out"):
        prepare_sampling._classes(pretrained, SimpleNamespace(classes="all"))
    pretrained.label_dropout = 0.5
    assert prepare_sampling._classes(pretrained, SimpleNamespace(classes="all")) == [0, 1, 2]
