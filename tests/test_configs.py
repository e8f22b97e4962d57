"""Every YAML file: composed as the commands compose it, checked, and built."""

from pathlib import Path

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from ddpm_cli import sample, train
from ddpm_cli.config import build, build_ddpm, check, configs_directory
from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.signatures import signature

FILES = sorted(configs_directory().glob("*/*.yaml"))
GROUPS = sorted({file.parent.name for file in FILES})


def compose(name: str, *overrides: str) -> dict:
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(name, list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_option_composes_checks_and_builds(file: Path, tmp_path: Path):
    group, option = file.parent.name, file.stem
    also = {"folder": ["data.path=DIR"], "folder_64": ["data.path=DIR"], "unet_28": ["data=mnist"]}.get(option, [])
    config = compose("train", *also, f"{group}={option}")
    check(config, "ddpm_cli.train.Options")
    with torch.device("meta"):  # shapes without the memory or the time
        model = build(config["model"], "model")
        optimizer = build(config["optimizer"], "optimizer")
    assert optimizer(torch.nn.Linear(1, 1).parameters()).param_groups[0]["lr"] == config["optimizer"]["lr"]
    assert sum(p.numel() for p in model.parameters()) > 1e6
    assert build(config["trainer"], "trainer").steps == config["trainer"]["steps"]
    assert build(config["ema"], "ema")(torch.nn.Linear(1, 1)).decay == config["ema"]["decay"]
    schedule = build(config["schedule"], "schedule")
    samplers.check_options(build(config["sampler"], "sampler"), schedule)
    t = torch.tensor([5])
    assert build(config["variance"], "variance")(schedule, t, t - 1, (1, 1, 1, 1)).item() > 0
    assert build(config["weighting"], "weighting")(torch.zeros(3)).shape == (3,)
    if option == "digits":
        assert build(config["data"], "data").shape == (1, 16, 16)


@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10", "folder"])
def test_an_ema_that_was_chosen_is_the_ema_that_runs(data: str):
    for option, decay in (("none", 0.0), ("short", 0.995), ("standard", 0.9999)):
        assert compose("train", f"data={data}", "++data.path=x", f"ema={option}")["ema"]["decay"] == decay


def test_the_tests_above_saw_every_group():
    assert GROUPS == [
        "data", "ema", "experiment", "model", "optimizer", "prediction", "sampler", "schedule", "trainer", "variance",
        "weighting",
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("variance", [[], ["variance=fixed_small"], ["variance=fixed_large"]])
def test_sample_composes_and_checks(sampler: str, variance: list[str]):
    config = compose("sample", "ckpt=x", f"sampler={sampler}", *variance)
    check(config, "ddpm_cli.sample.Options")
    assert (config["variance"] is None) == (variance == [])


def test_cifar10_alone_is_ddpms_recipe():
    config = compose("train", "data=cifar10")
    with torch.device("meta"):
        assert sum(p.numel() for p in build(config["model"], "model").parameters()) == 35_746_307
    assert config["model"]["dropout"] == 0.1
    trainer = config["trainer"]
    assert (trainer["batch_size"], trainer["steps"], trainer["warmup_steps"]) == (128, 800_000, 5000)
    assert trainer["grad_clip"] == 1.0
    assert (config["optimizer"]["_target_"].rpartition(".")[2], config["optimizer"]["lr"]) == ("adamw", 2e-4)
    assert config["ema"]["decay"] == 0.9999
    assert config["data"]["flip"] is True
    assert build(config["schedule"], "schedule").log_alpha_bar.equal(cosine(1000).log_alpha_bar)


def test_cifar10_ddpm_is_ho_et_al():
    config = compose("train", "experiment=cifar10_ddpm")
    ddpm = build_ddpm(config)
    assert ddpm.schedule.log_alpha_bar.equal(linear(1000).log_alpha_bar)
    assert config["variance"]["_target_"].endswith("fixed_large")
    assert config["optimizer"] == compose("train", "optimizer=adam", "data=cifar10")["optimizer"]
    assert (config["trainer"]["batch_size"], config["trainer"]["steps"]) == (128, 800_000)
    assert config["ema"]["decay"] == 0.9999


def test_folder_64_is_the_64_pixel_recipe():
    config = compose("train", "experiment=folder_64", "data.path=DIR")
    model = config["model"]
    assert (model["base_channels"], model["channel_mults"], model["attention_resolutions"]) == (
        128,
        [1, 2, 2, 4],
        [16, 8],
    )
    assert (config["trainer"]["batch_size"], config["trainer"]["steps"]) == (64, 500_000)
    assert config["schedule"]["_target_"].endswith("cosine")
    assert config["data"]["image_size"] == model["image_size"] == 64


def test_the_command_line_wins_over_recipes_and_experiments():
    config = compose("train", "experiment=cifar10_ddpm", "schedule=cosine", "optimizer.lr=0.1", "model.dropout=0.3")
    assert config["schedule"]["_target_"].endswith("cosine")
    assert config["optimizer"]["lr"] == 0.1
    assert config["model"]["dropout"] == 0.3
    assert compose("train", "data=digits", "model=unet_32")["model"]["base_channels"] == 128


def test_every_key_of_the_commands_is_an_option_and_the_other_way_round():
    for name, options in (("train", train.Options), ("sample", sample.Options)):
        keys = set(compose(name, *(["ckpt=x"] if name == "sample" else [])))
        assert keys == set(options.__dataclass_fields__)


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name not in ("experiment", "trainer")], ids=str)
def test_options_spell_out_every_argument(file: Path):
    """What can be set is visible in the YAML: no argument hides in a signature."""
    content = yaml.safe_load(file.read_text())
    node = content[file.parent.name] if file.parent.name == "data" else content
    parameters = signature(node["_target_"]) or []
    settable = {p.name for p in parameters if not (node.get("_partial_") and p.positional)}
    assert settable == set(node) - {"_target_", "_partial_"}
