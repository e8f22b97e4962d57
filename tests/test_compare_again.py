"""The command that trains a run again, against Hydra: composed, it is the configuration that it was made of."""

import shlex
from pathlib import Path

import pytest
import yaml
from commands import run
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from written_runs import metrics, result, write_run

from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.comparison.again import command_again
from ddpm_cli.comparison.run import Run, read_run
from ddpm_cli.config.shipped import configs_directory


def composed(*overrides: str) -> dict:
    register_resolvers()
    with initialize_config_dir(str(configs_directory()), version_base="1.3"):
        found = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)
    assert isinstance(found, dict)
    return found


def again(run: Run | None) -> str:
    assert run is not None
    line = command_again(run)
    assert line is not None
    return line


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=3", "optimizer.lr=1e-5", "trainer.steps=7", "data.holdout=5", "objective=heldout"],
        ["data=cifar10", "data.num_classes=10", "schedule=linear", "sampler=ddpm", "sampler.steps=50"],
        ["experiment=cifar10_improved"],
        ["experiment=folder_64", 'data.path="a b/$(x), {c}"', "data.extensions=[png,'j,pg']", "ema=posthoc"],
        ["data=mnist", "model=unet_16", "model.channel_mults=[1,4]", "optimizer=adam", "ema=none", "optimizer.lr=0.5"],
        ["schedule=custom", "schedule.betas=[0.01,0.02,1e-3]", "prediction=v", "weighting=min_snr", "loss=vlb"],
        ["init.path=a run/step", "init.weights=model", "seed=4"],
        ["sampler=heun", "variance=fixed_large", "trainer.grad_clip=null", "trainer.precision=bf16", "fork=a/run"],
    ],
)
def test_it_composes_to_the_same_configuration(tmp_path: Path, overrides: list[str]):
    expected = composed(*overrides)
    directory = write_run(tmp_path / "a", expected, metrics([1.0]), begun_in="/there & back")
    line = again(read_run(directory))
    there, words = line.split(" && ")
    assert shlex.split(there) == ["cd", "/there & back"]
    program, *typed = shlex.split(words)
    assert program == "ddpm-train"
    found = composed(*typed)
    assert found | {"name": None} == expected | {"name": None}
    if expected["fork"] is not None:  # then nothing may be left to what the other run has
        groups = {key for key, value in expected.items() if isinstance(value, dict) and "_target_" in value} - {
            "logger"
        }
        assert groups == {text.partition("=")[0] for text in typed} & groups


def test_of_a_run_of_a_sweep_it_is_what_was_typed(tmp_path: Path):
    typed = ["schedule=linear", "name=mine", "+data.note='a b'", "hydra.sweep.dir=x", "output_dir=y"]
    directory = write_run(tmp_path / "0", None, [], result=result(typed, error="no"))
    assert again(read_run(directory)) == """ddpm-train schedule=linear '+data.note='"'"'a b'"'"''"""


def test_there_is_none_for_what_is_not_ours(tmp_path: Path):
    nodes = composed()
    for key, value in (("model", {"_target_": "their.Net"}), ("data", {"_target_": "their.data"})):
        directory = write_run(tmp_path / key, nodes | {key: value}, metrics([1.0]))
        found = read_run(directory)
        assert found is not None
        assert command_again(found) is None


@pytest.mark.slow
def test_a_real_run_is_trained_again_by_it(home: Path):
    """Through the shell's words, and to the same losses."""
    (directory,) = (home / "outputs" / "digits").iterdir()
    line = again(read_run(directory)).partition(" && ")[2]
    _, *typed = shlex.split(line)
    done = run("train", *typed, "output_dir=second", cwd=home)
    assert done.returncode == 0, done.stderr
    (second,) = (home / "second" / "digits").iterdir()
    first_losses, second_losses = (
        [yaml.safe_load(text)["loss/mean"] for text in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (directory, second)
    )
    assert second_losses == first_losses
