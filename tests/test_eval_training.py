"""What is measured while training: that it is right, changes no training, survives kills, and chooses the best."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY_RUN, Process, assert_one_message, only, run_ranks, sample, start, train
from safetensors.torch import load_file
from test_build import build

from ddpm_cli.checkpoint import CheckpointError, find
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.figures import check_figures
from ddpm_cli.data.holdout import hold_out, others
from ddpm_cli.evaluation.features.pixels import Pixels
from ddpm_cli.evaluation.likelihood import held_out_loss
from ddpm_cli.io.images import to_uint8
from ddpm_cli.io.metrics_file import last_loss, lines_of, recorded_to
from ddpm_cli.io.run_dir import run_and_checkpoint
from ddpm_cli.runtime.interruptible import finished
from ddpm_cli.runtime.seeds import ImageNoise
from ddpm_cli.training.best import Best, best_on_record
from ddpm_cli.training.evaluator import Evaluator
from ddpm_cli.training.measured import figure, last_evaluation, outcome
from ddpm_cli.training.trainer_config import TrainerConfig

EVALUATED = [*TINY_RUN, "trainer.preview_every=0", "trainer.eval_every=3", "trainer.steps=6", "name=x"]
HELD_OUT = [*EVALUATED, "data.holdout=8"]


# What is measured -----------------------------------------------------------------------------------------------------


class Coarse:
    """Features of 4 x 4 pixels: their means."""

    name, dimensions = "coarse", 16

    def identity(self) -> dict[str, object]:
        return {}

    def prepare(self, data: object, device: object) -> None:
        pass

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.float(), 4).flatten(1)

    def class_probabilities(self, features: torch.Tensor) -> None:
        return None


def test_the_figures_are_those_of_the_averages_samples_and_of_all_training_images():
    """Made again in one batch, with a Frechet distance by the eigenvalues of the product of the covariances."""
    training = build("trainer.eval_every=2", "trainer.eval_images=20", "data.holdout=40", "trainer.batch_size=8")
    trainer = training.trainer
    for batch in (trainer.batches.batch(0), trainer.batches.batch(1)):
        trainer.train_step(batch)
    evaluator = Evaluator(training)
    assert isinstance(evaluator.extractor, Pixels)
    evaluator.extractor = Coarse()
    expected, yields = evaluator.calls(), []
    found = finished(evaluator.evaluate(), lambda: yields.append(1))
    assert len(yields) == expected
    assert list(found.figures) == ["eval/heldout", "eval/fd_coarse", "eval/kd_coarse"]
    assert found.step == 2

    average = trainer.ddpm.with_model(trainer.ema.model)
    assert training.held_out is not None
    chosen = hold_out(trainer.batches.images, 40, seed=0)
    loss = held_out_loss(average, training.held_out, compute=trainer.compute, seed=0, batch_size=100)
    assert figure(found.figures, "heldout") == pytest.approx(finished(loss).loss, rel=1e-5)
    noise = ImageNoise(0, range(20), (1, 16, 16))
    times = training.sampler.times(average.schedule)
    x = torch.empty(0)
    for x in average.reverse_process(  # noqa: B007
        training.sampler.solve(average.denoiser(), average.schedule, times, noise(), noise)
    ):
        pass
    ours = Coarse()(to_uint8(x)).double().numpy()
    images = trainer.batches.images
    theirs = Coarse()(torch.from_numpy(np.asarray(images.pixels[others(images, chosen)]))).double().numpy()
    assert figure(found.figures, "fd") == pytest.approx(frechet(ours, theirs), rel=1e-4)
    assert found.errors["eval_error/kd_coarse"] > 0

    again = finished(evaluator.evaluate())
    assert again == found
    assert evaluator.calls() < expected, "the training images were looked at once"


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0))
    apart = a.mean(0) - b.mean(0)
    return float(apart @ apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum())


def test_samples_that_are_not_finite_have_no_distance():
    training = build("trainer.eval_every=2", "trainer.eval_images=4")
    with torch.no_grad():
        next(training.trainer.ema.model.parameters()).fill_(math.nan)
    found = finished(Evaluator(training).evaluate())
    assert all(math.isnan(value) for value in found.figures.values())
    assert math.isnan(outcome("kd", 0.5, found.figures))


@pytest.mark.parametrize(
    ("trainer", "others", "says"),
    [
        ({"eval_every": 3}, {}, "trainer.eval_every: there is nothing to measure"),
        ({"eval_every": 3, "eval_images": 4}, {"objective": "heldout"}, r"objective: .*; add data.holdout=N"),
        ({"eval_every": 3, "keep_best": "fd"}, {"data": {"holdout": 4}}, r"keep_best: .*; add trainer.eval_images=N"),
        (
            {},
            {"data": {"holdout": 4}, "objective": "heldout"},
            r"objective: heldout is measured while training; add tr",
        ),
    ],
)
def test_what_is_asked_for_without_what_makes_it_is_refused(trainer: dict, others: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        check_figures({"trainer": trainer, "data": {}} | others)
    check_figures(
        {"trainer": {"keep_best": "heldout", "eval_every": 1}, "data": {"holdout": 1}, "objective": "heldout"}
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"eval_images": 1}, "eval_images must be 0 or at least 2"),
        ({"eval_every": -1}, "eval_every must not be negative"),
        ({"keep_best": "fid"}, "keep_best must be one of heldout, fd, kd or null, got 'fid'"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        TrainerConfig(steps=1, batch_size=1, **options)


def test_mistakes_are_one_message_before_anything_is_written(tmp_path: Path):
    done = train(*HELD_OUT, "objective=held_out", cwd=tmp_path)
    assert_one_message(
        done, "train", r"objective: expected one of heldout, fd, kd \(did you mean 'heldout'\?\) or null"
    )
    done = train(*EVALUATED, cwd=tmp_path)
    assert_one_message(done, "train", "trainer.eval_every: there is nothing to measure")
    assert list(tmp_path.iterdir()) == []


# Beside training ------------------------------------------------------------------------------------------------------


def state(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "training.safetensors")


def evaluations(run: Path) -> list[dict]:
    """Its lines of metrics, without what a clock says."""
    return [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in lines_of(run / "metrics.jsonl")
        if "eval/heldout" in line
    ]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of six steps that was never stopped; not to be changed."""
    place = tmp_path_factory.mktemp("whole")
    done = train(*HELD_OUT, "trainer.keep_best=fd", "trainer.eval_images=4", cwd=place)
    assert done.returncode == 0, done.stderr
    return only(place / "outputs" / "x")


def test_a_run_says_and_records_what_it_measures(whole: Path):
    log = (whole / "train.log").read_text()
    assert "eval     every 3 steps: the loss on 8 held-out images, fd and kd of 4 samples" in log
    assert "eval     step 3: heldout " in log
    found = evaluations(whole)
    assert [line["step"] for line in found] == [3, 6]
    groups = {"step", "epoch", "images", "eval", "eval_error", "heldout_by_t"}
    assert {key.partition("/")[0] for key in found[0]} == groups
    steps = [line["step"] for line in lines_of(whole / "metrics.jsonl")]
    assert steps == [2, 3, 4, 6, 6]
    assert recorded_to(whole / "metrics.jsonl") == 6
    assert math.isfinite(last_loss(whole / "metrics.jsonl")), "the last line is of an evaluation"


# In the middle of an evaluation, at the fourth call of the network, something happens.
INTERRUPTED = (
    "import os, signal, time; from ddpm_cli.training.evaluator import Evaluator; evaluate = Evaluator.evaluate\n"
    "def interrupted(self):\n"
    "    work = evaluate(self)\n"
    "    for call in range(3):\n"
    "        next(work)\n"
    "        yield\n"
    "    os.kill(os.getpid(), signal.{name})\n"
    "    return (yield from work)\n"
    "Evaluator.evaluate = interrupted; from ddpm_cli.train import main; main()"
)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_run_that_ends_in_an_evaluation_goes_on_to_the_same_bits_and_figures(name: str, whole: Path, tmp_path: Path):
    options = [*HELD_OUT, "trainer.keep_best=fd", "trainer.eval_images=4"]
    process = start("train", *options, cwd=tmp_path, code=INTERRUPTED.format(name=name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == {"SIGKILL": -signal.SIGKILL, "SIGTERM": 75}[name], said
    directory = only(tmp_path / "outputs" / "x")
    assert evaluations(directory) == []
    saved = max(int(path.name[-8:]) for path in (directory / "checkpoints").iterdir())
    assert saved == {"SIGKILL": 2, "SIGTERM": 3}[name]
    again = train(*options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert evaluations(directory) == evaluations(whole)
    assert_same(state(directory), state(whole))
    assert (directory / "best.json").read_text() == (whole / "best.json").read_text()
    done = train(*options, cwd=tmp_path)
    assert "has done its 6 steps" in done.stdout


def test_a_stop_in_the_last_evaluation_leaves_it_to_do(whole: Path, tmp_path: Path):
    options = [*HELD_OUT, "trainer.eval_every=6", "objective=heldout"]
    process = start("train", *options, cwd=tmp_path, code=INTERRUPTED.format(name="SIGTERM"))
    process.communicate(timeout=60)
    assert process.returncode == 75
    directory = only(tmp_path / "outputs" / "x")
    assert_same(state(directory), state(whole))
    again = train(*options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    (found,) = evaluations(directory)
    assert found["eval/heldout"] == evaluations(whole)[-1]["eval/heldout"]
    assert "has done its 6 steps" in train(*options, cwd=tmp_path).stdout


def test_evaluations_change_no_bit_of_training(whole: Path, tmp_path: Path):
    done = train(*HELD_OUT, "trainer.eval_every=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    without = only(tmp_path / "outputs" / "x")
    assert_same(state(without), state(whole))
    kept = [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in lines_of(whole / "metrics.jsonl")
        if "loss/mean" in line
    ]
    ours = [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in lines_of(without / "metrics.jsonl")
    ]
    assert ours == kept


@pytest.mark.slow
def test_ranks_share_an_evaluation(whole: Path, tmp_path: Path):
    done = run_ranks("train", *HELD_OUT, "trainer.keep_best=fd", "trainer.eval_images=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours = evaluations(only(tmp_path / "outputs" / "x"))
    for line, expected in zip(ours, evaluations(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_features_of_a_classifier_where_there_are_labels_change_no_bit_either(tmp_path: Path):
    options = [*EVALUATED, "data.num_classes=10"]
    (tmp_path / "without").mkdir()
    for place, more in ((tmp_path, ["trainer.eval_images=8"]), (tmp_path / "without", ["trainer.eval_every=0"])):
        done = train(*options, *more, cwd=place, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
    runs = [only(place / "outputs" / "x") for place in (tmp_path, tmp_path / "without")]
    assert_same(state(runs[0]), state(runs[1]))
    last = last_evaluation(lines_of(runs[0] / "metrics.jsonl"))
    assert last is not None
    assert last["eval/fd_classifier"] > 0


# The best checkpoint --------------------------------------------------------------------------------------------------

# The figure is what is planned for each step.
PLANNED = (
    "from ddpm_cli.training.evaluator import Evaluator; from ddpm_cli.training.measured import Evaluation\n"
    "def planned(self):\n"
    "    yield\n"
    "    value = {plan}[self.trainer.step]\n"
    "    return Evaluation(step=self.trainer.step, figures={{'eval/heldout': value}})\n"
    "Evaluator.evaluate = planned; from ddpm_cli.train import main; main()"
)
PLAN = {1: 0.9, 2: 0.5, 3: 0.7, 4: 0.6, 5: 0.4, 6: 0.5}
KEPT = [*HELD_OUT, "trainer.eval_every=1", "trainer.keep_best=heldout", "trainer.keep_last=1"]


def planned(*options: str, cwd: Path, plan: dict[int, float] | None = None) -> Process:
    process = start("train", *options, cwd=cwd, code=PLANNED.format(plan=PLAN if plan is None else plan))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return process


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name[-8:]) for path in (run / "checkpoints").glob("step_*"))


def test_the_best_checkpoint_is_kept_until_a_better_one_has_been_saved(tmp_path: Path):
    planned(*KEPT, "trainer.steps=4", cwd=tmp_path)
    run = only(tmp_path / "outputs" / "x")
    assert checkpoints(run) == [2, 4], "of two that are kept one is the best, and one the last"
    best = {"figure": "heldout", "value": 0.5, "step": 2, "checkpoint": "step_00000002"}
    assert json.loads((run / "best.json").read_text()) == best
    drawn = sample(f"ckpt={run}/best.json", "n=1", "sampler.steps=2", f"out={tmp_path}/drawn", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "step 2" in drawn.stdout + (tmp_path / "drawn" / "samples.json").read_text()
    assert run_and_checkpoint(str(run / "best.json")) == (run, run / "checkpoints" / "step_00000002")

    (run / "best.json").unlink()  # as a kill before it was written leaves it
    planned(f"resume={run}", "trainer.steps=6", cwd=tmp_path)
    assert checkpoints(run) == [5, 6], "5, which would not have been saved but for that"
    assert json.loads((run / "best.json").read_text())["value"] == 0.4


def test_what_is_best_is_cut_back_with_the_records(tmp_path: Path):
    planned(*KEPT, "trainer.steps=4", "trainer.keep_last=4", "trainer.checkpoint_every=1", cwd=tmp_path)
    run = only(tmp_path / "outputs" / "x")
    planned(f"resume={run}/checkpoints/step_00000001", "trainer.steps=3", cwd=tmp_path, plan={2: 2.0, 3: 0.8})
    assert json.loads((run / "best.json").read_text())["step"] == 3
    planned(f"resume={run}", "trainer.steps=4", "trainer.keep_best=null", cwd=tmp_path, plan={4: 1.0})
    assert not (run / "best.json").exists()


def test_of_the_records_only_checkpoints_that_are_there_count(tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "eval/heldout": 0.1},
        {"step": 2, "eval/heldout": None, "eval/fd_pixels": 3},
        {"step": 3, "eval/heldout": 0.3, "eval/fd_pixels": 2.5},
        {"step": 3, "loss/mean": 0.01},
        {"step": 4, "eval/heldout": 0.3},
    ]
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 5, "eval/heldout": 0.0')
    assert best_on_record(metrics, "heldout", {2, 3, 4, 5}) == Best("heldout", 0.3, 3)
    assert best_on_record(metrics, "fd", {2, 3}) == Best("fd", 2.5, 3)
    assert best_on_record(metrics, "kd", {2, 3}) is None
    assert best_on_record(tmp_path / "none", "fd", {2}) is None
    metrics.write_text("[" * 100_000 + "\n")
    assert best_on_record(metrics, "heldout", {1}) is None


@pytest.mark.parametrize("content", ['{"step": "../../x"}', "[]", '{"step": 7}', '{"step": -1}', "x" * 5000, ""])
def test_a_best_json_that_names_nothing_is_refused(content: str, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"best\.json names "):
        find(tmp_path / "best.json")


# What a run returns ---------------------------------------------------------------------------------------------------


def test_a_sweep_gets_the_objective_and_keeps_it_by_its_name(tmp_path: Path):
    options = [option for option in HELD_OUT if not option.startswith("name=")]
    done = train(*options, "objective=heldout", "-m", "optimizer.lr=1e-4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only(tmp_path / "outputs" / "sweeps") / "0"
    result = json.loads((run / "result.json").read_text())
    value = evaluations(run)[-1]["eval/heldout"]
    assert (result["figure"], result["final_loss"]) == ("heldout", value)
    assert f"heldout {value:.4f}" in done.stdout


def test_the_outcome_is_the_last_loss_or_the_figure_by_name():
    record = {"step": 3, "eval/heldout": 0.25, "eval/fd_classifier": 3.5, "heldout_by_t/0000": 9.0}
    assert outcome(None, 0.5, record) == 0.5
    assert outcome("heldout", 0.5, record) == 0.25
    assert outcome("fd", 0.5, record) == 3.5
    assert math.isnan(outcome("kd", 0.5, record))
    assert math.isnan(outcome("fd", 0.5, None))
