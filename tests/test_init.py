"""A new run from trained weights: they arrive, nothing else does, what does not fit is named, and it resumes alone."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import TINY, assert_one_message, only, run_ranks, sample, start, train, wait_for
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_cli import load
from ddpm_cli.data.datasets import digits
from ddpm_cli.data.loader import BatchLoader, augment
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.runtime.seeds import generator

ONE_STEP = [*TINY, "trainer.steps=1", "trainer.log_every=1", "trainer.preview_every=0", "name=tuned"]
# Steps so small that weights stay what they were, to float32.
STANDING = [*ONE_STEP, "trainer.warmup_steps=1000000", "optimizer.lr=1e-9", "optimizer.weight_decay=0"]


def tuned(home: Path, name: str = "tuned") -> Path:
    return only(home / "outputs" / name)


def saved(run: Path, file: str = "training") -> dict[str, Tensor]:
    return load_file(only(run / "checkpoints") / f"{file}.safetensors")


def first_loss(run: Path) -> float:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss/mean"]


def loss_of_first_batch(ddpm: DDPM, *, holdout: np.ndarray | None = None) -> float:
    """What a run of 8 images a step has to log first, with these weights."""
    batch = BatchLoader(digits(image_size=16), 8, seed=0, held_out=holdout).batch(0)
    assert batch.pixels is not None
    source = generator(0, "diffusion", 0)
    t = torch.randint(ddpm.schedule.timesteps, (8,), generator=source)
    noise = torch.randn((8, 1, 16, 16), generator=source)
    with torch.no_grad():
        return ddpm.losses(augment(batch.pixels, batch.flips), t, noise).mean().item()


# The weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_the_first_loss_is_that_of_the_source(weights: str, home: Path, trained):
    directory, _ = trained
    own = [f"init.weights={weights}"] if weights != "ema" else []
    done = train(f"init={directory}", *own, *ONE_STEP, cwd=home)
    assert done.returncode == 0, done.stderr
    ddpm, *_ = load(directory, weights=weights)
    expected = loss_of_first_batch(ddpm)
    assert first_loss(tuned(home)) == pytest.approx(expected, rel=1e-5)
    other, *_ = load(directory, weights="model" if weights == "ema" else "ema")
    assert abs(loss_of_first_batch(other) - expected) > 1e-4 * expected
    assert f"init from the {weights} weights of {directory / 'checkpoints' / 'step_00000004'}" in done.stdout


def test_weights_and_averages_are_the_sources_and_nothing_else_is(home: Path, trained):
    directory, _ = trained
    done = train(f"init={directory}", *STANDING, "ema.decays=[0.995,0.9]", cwd=home)
    assert done.returncode == 0, done.stderr
    source = load_file(directory / "checkpoints" / "step_00000004" / "ema.safetensors")
    found, ema = saved(tuned(home)), saved(tuned(home), "ema")
    for name, value in source.items():
        for own in (found[f"model.{name}"], ema[name], found[f"ema.0.9.{name}"]):
            torch.testing.assert_close(own, value, rtol=1e-6, atol=1e-7)
        assert found[f"optimizer.{name}.step"] == 1
    assert (found["counter.step"], found["counter.ema_updates"]) == (1, 1)


@pytest.mark.parametrize(
    "place", ["best.json", "checkpoints/step_00000002", "checkpoints/step_00000002/ema.safetensors"]
)
def test_it_takes_what_samples_are_drawn_from(place: str, home: Path, trained):
    directory, _ = trained
    (directory / "best.json").write_text('{"step": 2}')
    done = train(f"init={directory / place}", *ONE_STEP, cwd=home)
    assert done.returncode == 0, done.stderr
    ddpm, *_ = load(directory / "checkpoints" / "step_00000002")
    assert first_loss(tuned(home)) == pytest.approx(loss_of_first_batch(ddpm), rel=1e-5)


def test_another_recipe_is_said_and_trained(home: Path, trained):
    directory, _ = trained
    recipe = ["prediction=v", "schedule=linear", "optimizer=adam", "ema=short", "data.holdout=16", "seed=3"]
    done = train(f"init={directory}", *ONE_STEP, *recipe, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "the weights predict x0, and must first learn to predict v" in done.stdout
    assert "was trained on some of the images that are held out now" in done.stdout
    lines = (tuned(home) / "config.yaml").read_text().splitlines()
    assert lines[0].startswith("# init from the ema weights of ")
    assert {"#   prediction: was 'X0', now 'Velocity'", "#   schedule: was 'cosine', now 'linear'"} < set(lines)
    identity = json.loads((tuned(home) / "run.json").read_text())
    assert identity["init_of"] == json.loads((directory / "run.json").read_text())["id"]
    assert identity["init_weights"] == "ema"


# What does not fit ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named_with_what_would(home: Path, trained):
    directory, _ = trained
    plain = [option for option in ONE_STEP if not option.startswith("model.")]
    before = sorted(home.rglob("*"))
    refused = train(f"init={directory}", *plain, cwd=home)
    assert_one_message(refused, "train", r"init: .*time_mlp.0.weight was \[32, 8\], is \[128, 32\] here")
    assert sorted(home.rglob("*")) == before, "nothing was begun"
    _, cure, otherwise = refused.stderr.splitlines()
    assert "init.strict=false" in otherwise
    options = shlex.split(cure.partition(" gives the network")[0])
    assert {option.partition("=")[0] for option in options} == {
        "model.base_channels", "model.channel_mults", "model.norm_groups",
    }  # fmt: skip
    again = train(f"init={directory}", *plain, *options, cwd=home)
    assert again.returncode == 0, again.stderr


def test_an_option_that_no_shape_tells_is_refused_too(home: Path, trained):
    directory, _ = trained
    command = [f"init={directory}", *ONE_STEP, "model.num_heads=2", "model.dropout=0.5"]
    says = r"its weights fit, but belong to another network: model.num_heads was 1, is 2 here\n  model.num_heads=1 "
    assert_one_message(train(*command, cwd=home), "train", says)
    done = train(*command, "init.strict=false", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "the network differs from that of the weights: model.num_heads was 1, is 2 here" in done.stdout


def test_other_classes_are_left_out_and_the_rest_is_taken(home: Path, labelled: Path):
    more = ["data.num_classes=null", f"init={labelled}", "init.strict=false"]
    done = train(*STANDING, *more, cwd=home)
    assert done.returncode == 0, done.stderr
    source_count = len(load_file(labelled / "checkpoints" / "step_00000004" / "ema.safetensors"))
    assert f"init     takes {source_count - 1} of {source_count - 1} tensors" in done.stdout
    assert "left out: label_embedding.weight was [10, 32], is absent here" in done.stdout
    source = load_file(labelled / "checkpoints" / "step_00000004" / "ema.safetensors")
    found = saved(tuned(home), "ema")
    assert found.keys() == source.keys() - {"label_embedding.weight"}
    for name, value in found.items():
        torch.testing.assert_close(value, source[name], rtol=1e-6, atol=1e-7)
    refused = train(*STANDING[:-1], *more[:-1], "name=x", cwd=home)
    assert_one_message(refused, "train", "data.num_classes=10 gives the network of the weights")


def test_what_is_left_out_is_as_a_new_run_has_it(home: Path, trained):
    directory, _ = trained
    labels = ["data.num_classes=10"]
    assert train(*STANDING, *labels, f"init={directory}", "init.strict=false", cwd=home).returncode == 0
    assert train(*STANDING, *labels, "name=new", cwd=home).returncode == 0
    name = "label_embedding.weight"
    torch.testing.assert_close(saved(tuned(home), "ema")[name], saved(tuned(home, "new"), "ema")[name])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["init=nowhere"], "init: .*nowhere does not exist"),
        (["init=outputs"], "init: .*it holds a run:\n  ddpm-train init="),
        (["init=RUN", "init.weights=modl"], "init.weights: this checkpoint has ema, ema_0.995 .*, model, not 'modl'"),
        (["init=RUN", "init.strict=perhaps"], "init.strict: expected true or false"),
        (["init=RUN", "init.wieghts=model"], r"init.wieghts: no such option \(did you mean 'weights'\?\)"),
        (["init.weights=model"], "init.weights: has no effect without init=PATH"),
        (["init.strict=false"], "init.strict: has no effect without init=PATH"),
        (["+init._target_=os.system"], "init._target_: no such option"),
        (["resume=RUN", "init=RUN"], "init: starts a new run from trained weights alone, resume=RUN_DIR resumes"),
        (["fork=RUN", "init=RUN", "trainer.steps=9"], "init: starts .*, fork= from a run's whole state"),
        ([f"init={'x' * 300}"], "init: .* does not exist"),
        (["init=RUN/metrics.jsonl"], "init: .*neither a run directory nor a checkpoint nor"),
    ],
)
def test_what_cannot_be_is_one_message_and_begins_nothing(arguments: list[str], says: str, home: Path, trained):
    directory, _ = trained
    before = sorted(home.rglob("*"))
    given = [argument.replace("RUN", str(directory.relative_to(home))) for argument in arguments]
    options = [] if given[0].startswith(("resume", "fork")) else ONE_STEP
    assert_one_message(train(*options, *given, cwd=home), "train", says)
    assert sorted(home.rglob("*")) == before


def test_damaged_weights_are_refused(home: Path, trained):
    directory, _ = trained
    file = directory / "checkpoints" / "step_00000004" / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert_one_message(train(f"init={directory}", *ONE_STEP, cwd=home), "train", "init: .*ema.safetensors is damaged")


# Which run it is -----------------------------------------------------------------------------------------------------


def test_killed_it_ends_bit_for_bit_where_it_would_have_ended_without_its_source(home: Path, trained):
    directory, _ = trained
    options = [*TINY, "trainer.preview_every=0", "trainer.checkpoint_every=2", f"init={directory}"]
    process = start("train", *options, "name=killed", "trainer.steps=100000", cwd=home)
    wait_for(lambda: list((home / "outputs").glob("killed/2*/checkpoints/step_*/manifest.json")), process)
    process.kill()
    process.communicate(timeout=60)
    step = max(int(path.name.removeprefix("step_")) for path in (tuned(home, "killed") / "checkpoints").glob("step_*"))
    whole = train(*options, "name=whole", f"trainer.steps={step + 3}", cwd=home)
    assert whole.returncode == 0, whole.stderr
    directory.rename(home / "elsewhere")
    again = train(*options, "name=killed", f"trainer.steps={step + 3}", cwd=home)
    assert again.returncode == 0, again.stderr
    assert "resumed  at step" in again.stdout
    last = f"checkpoints/step_{step + 3:08d}"
    for file in ("training.safetensors", "ema.safetensors"):
        one, other = (load_file(tuned(home, name) / last / file) for name in ("killed", "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tuned(home, "killed") / "config.yaml").read_text().startswith("# init from the ema weights of ")
    further = train(f"resume={tuned(home, 'killed')}", f"trainer.steps={step + 4}", cwd=home)
    assert further.returncode == 0, further.stderr


@pytest.mark.slow
def test_a_name_means_the_run_that_began_with_these_weights(home: Path, trained):
    directory, _ = trained
    assert train(f"init={directory}", *ONE_STEP, cwd=home).returncode == 0
    last = directory / "checkpoints" / "step_00000004"
    for same in (directory, last, last / "ema.safetensors"):
        again = train(f"init={same}", *ONE_STEP, cwd=home)
        assert (again.returncode, "has done its 1 steps" in again.stdout) == (0, True), again.stderr
    for other in ([f"init={last.with_name('step_00000002')}"], [f"init={directory}", "init.weights=model"]):
        says = "name: .* is of this name and did not start from the .* weights of"
        assert_one_message(train(*other, *ONE_STEP, cwd=home), "train", says)
    directory.rename(home / "moved")
    assert train(f"init={home / 'moved'}", *ONE_STEP, cwd=home).returncode == 0
    assert train(*ONE_STEP, "name=plain", cwd=home).returncode == 0
    assert_one_message(
        train(f"init={home / 'moved'}", *ONE_STEP, "name=plain", cwd=home), "train", "did not start from"
    )


def test_a_fork_of_it_takes_everything_and_no_weights_again(home: Path, trained):
    directory, _ = trained
    assert train(f"init={directory}", *ONE_STEP, cwd=home).returncode == 0
    shutil.move(directory, home / "gone")
    done = train(f"fork={tuned(home)}", "trainer.steps=2", "name=further", cwd=home)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tuned(home, "further") / "config.yaml").read_text())["init"] is None
    assert saved(tuned(home, "further"))["counter.step"] == 2


def test_a_sweep_begins_each_run_with_the_weights(home: Path, trained):
    directory, _ = trained
    rates = "optimizer.lr=1e-3,2e-3"
    done = train("-m", f"init={directory}", *ONE_STEP, rates, "hydra.sweep.dir=sweep", cwd=home)
    assert done.returncode == 0, done.stderr
    ddpm, *_ = load(directory)
    for number in ("0", "1"):
        assert first_loss(home / "sweep" / number) == pytest.approx(loss_of_first_batch(ddpm), rel=1e-5)


@pytest.mark.slow
def test_two_processes_begin_with_the_weights_that_one_does(home: Path, trained):
    directory, _ = trained
    done = run_ranks("train", f"init={directory}", *ONE_STEP, cwd=home)
    assert done.returncode == 0, done.stderr
    ddpm, *_ = load(directory)
    assert first_loss(tuned(home)) == pytest.approx(loss_of_first_batch(ddpm), rel=1e-5)
    refused = run_ranks("train", f"init={directory}", *ONE_STEP, "name=x", "model.num_heads=2", cwd=home)
    assert refused.returncode == 2
    assert len(re.findall("^ddpm-train: ", refused.stderr, re.MULTILINE)) == 1, "one speaks for all"


def test_an_experiment_may_name_them(home: Path, trained):
    directory, _ = trained
    (home / "conf" / "experiment").mkdir(parents=True)
    (home / "conf" / "experiment" / "tune.yaml").write_text(f"# @package _global_\ninit: {directory}\n")
    done = train("--config-dir", "conf", "experiment=tune", *ONE_STEP, cwd=home)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tuned(home) / "config.yaml").read_text())["init"] == {"path": str(directory)}


# Another program's ---------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path) -> UNet2DModel:
    """A network of diffusers, whose options are not our defaults, saved in `tmp_path`/theirs."""
    torch.manual_seed(5)
    network = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    network.save_pretrained(tmp_path / "theirs")
    return network.eval()


def test_a_network_of_diffusers_is_trained_further(tmp_path: Path, theirs: UNet2DModel):
    """Its own forward pass says what the first loss has to be."""
    command = [f"init={tmp_path / 'theirs'}", *ONE_STEP]
    refused = train(*command, cwd=tmp_path)
    assert_one_message(refused, "train", "model.norm_eps was .*, is .* here")
    cure = shlex.split(refused.stderr.splitlines()[1].partition(" gives the network")[0])
    done = train(*command, *cure, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, *_ = load(tuned(tmp_path))

    class Theirs(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            return theirs(x, t).sample

    expected = loss_of_first_batch(ours.with_model(Theirs()))
    assert first_loss(tuned(tmp_path)) == pytest.approx(expected, rel=1e-5)
    drawn = sample(f"ckpt={tuned(tmp_path)}", "n=2", "sampler.steps=2", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr


def test_of_another_programs_network_there_is_one_set_of_weights(tmp_path: Path, theirs: UNet2DModel):
    done = train(f"init={tmp_path / 'theirs'}", "init.weights=model", *ONE_STEP, cwd=tmp_path)
    assert_one_message(done, "train", "init.weights: has no effect, .* has one set of weights")


def test_tensors_of_nobody_known_are_refused(tmp_path: Path):
    save_file({"a": torch.zeros(2)}, tmp_path / "some.safetensors")
    assert_one_message(train("init=some.safetensors", *ONE_STEP, cwd=tmp_path), "train", "init: .*no known network")
