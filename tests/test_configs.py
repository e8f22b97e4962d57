"""Every YAML file: composed as the commands compose it, checked, and built."""

from pathlib import Path

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.config.build_ddpm import DDPM_GROUPS, build_ddpm
from ddpm_cli.config.common_options import common_options, without_common
from ddpm_cli.config.eval_options import EvalOptions
from ddpm_cli.config.export_options import ExportOptions
from ddpm_cli.config.import_options import ImportOptions
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.sample_options import SampleOptions
from ddpm_cli.config.schema import check
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.config.signatures import signature
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.schedule import cosine, linear

FILES = sorted(configs_directory().glob("*/*.yaml"))
OF_SAMPLING = ("guidance", "mode", "threshold")  # groups that ddpm-train has not
OF_EVALUATION = ("features", "reference")  # groups that only ddpm-eval has
OF_IMPORT = ("preset",)  # groups that only ddpm-import has
GROUPS = sorted({file.parent.name for file in FILES})


def compose(name: str, *overrides: str) -> dict:
    register_resolvers()
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(name, list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_option_composes_checks_and_builds(file: Path, tmp_path: Path):
    group, option = file.parent.name, file.stem
    if group in OF_SAMPLING:
        config = compose("sample", "ckpt=x", f"{group}={option}")
        check(config, "ddpm_cli.config.sample_options.SampleOptions")
        instantiate(config[group], group)
        return
    if group in OF_EVALUATION:
        also = ["reference.path=x"] if option == "images" else []
        config = compose("eval", f"{group}={option}", *also)
        check(config, "ddpm_cli.config.eval_options.EvalOptions")
        instantiate(config[group], group)
        return
    if group in OF_IMPORT:
        config = compose("import", "source=x", "out=y", f"{group}={option}")
        check(config, "ddpm_cli.config.import_options.ImportOptions")
        instantiate(config[group], group)
        return
    also = {
        "folder": ["data.path=DIR"],
        "folder_64": ["data.path=DIR"],
        "folder_fast": ["data.path=DIR"],
        "webdataset": ["data.path=DIR"],
        "huggingface": ["data.dataset=NAME"],
        "unet_28": ["data=mnist"],
        "custom": ["schedule.betas=[0.1,0.2,0.3,0.4,0.5,0.6]", "sampler=ddpm"],
        "learned_range": ["loss=hybrid"],
        "hybrid": ["variance=learned_range"],
        "vlb": ["weighting=uniform"],  # it has its own
        "mlflow": ["logger.mlflow.tracking_uri=DIR"],
    }.get(option, [])
    config = compose("train", *also, f"{group}={option}")
    check(config, "ddpm_cli.config.train_options.TrainOptions")
    with torch.device("meta"):  # shapes without the memory or the time
        model = instantiate(config["model"], "model")
        optimizer = instantiate(config["optimizer"], "optimizer")
    assert optimizer(torch.nn.Linear(1, 1).parameters()).param_groups[0]["lr"] == config["optimizer"]["lr"]
    assert sum(p.numel() for p in model.parameters()) > 1e6
    assert instantiate(config["trainer"], "trainer").steps == config["trainer"]["steps"]
    for name, node in config["logger"].items():
        instantiate(node, f"logger.{name}")
    assert instantiate(config["ema"], "ema")(torch.nn.Linear(1, 1)).decays == tuple(config["ema"]["decays"])
    schedule = instantiate(config["schedule"], "schedule")
    times = instantiate(config["sampler"], "sampler").times(schedule)
    assert times == sorted(set(times), reverse=True)
    parts = {name: instantiate(config[name], name) for name in DDPM_GROUPS if name != "model"}
    assert DDPM(model, **parts).learns_variance == config["model"]["learn_variance"]
    t, x = torch.tensor([5]), torch.zeros(1, 1, 1, 1)
    log_variance = instantiate(config["variance"], "variance").log_variance(schedule, t, t - 1, x.shape, x)
    assert schedule.log_posterior_variance(t, t - 1, x.shape) <= log_variance <= 0
    assert instantiate(config["weighting"], "weighting")(*torch.zeros(2, 3)).shape == (3,)
    assert instantiate(config["timestep_sampler"], "timestep_sampler")(schedule).draw(4, torch.Generator()).t.shape == (
        4,
    )
    if option == "digits":
        assert instantiate(without_common(config["data"])[0], "data").shape == (1, 16, 16)


@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10", "folder", "webdataset"])
def test_an_ema_that_was_chosen_is_the_ema_that_runs(data: str):
    for option, decay in (("none", 0.0), ("short", 0.995), ("standard", 0.9999)):
        assert compose("train", f"data={data}", "++data.path=x", f"ema={option}")["ema"]["decays"] == [decay]


def test_the_tests_above_saw_every_group():
    assert GROUPS == [
        "data", "debug", "ema", "experiment", "features", "guidance", "logger", "loss", "mode", "model", "optimizer",
        "prediction", "preset", "reference", "sampler", "schedule", "threshold", "timestep_sampler", "trainer",
        "variance", "weighting",
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
@pytest.mark.parametrize("variance", [[], ["variance=fixed_small"], ["variance=fixed_large"]])
def test_sample_composes_and_checks(sampler: str, variance: list[str]):
    config = compose("sample", "ckpt=x", f"sampler={sampler}", *variance)
    check(config, "ddpm_cli.config.sample_options.SampleOptions")
    assert (config["variance"] is None) == (variance == [])


def test_cifar10_alone_is_ddpms_recipe():
    config = compose("train", "data=cifar10")
    with torch.device("meta"):
        assert sum(p.numel() for p in instantiate(config["model"], "model").parameters()) == 35_746_307
    assert config["model"]["dropout"] == 0.1
    trainer = config["trainer"]
    assert (trainer["batch_size"], trainer["steps"], trainer["warmup_steps"]) == (128, 800_000, 5000)
    assert trainer["grad_clip"] == 1.0
    assert (config["optimizer"]["_target_"].rpartition(".")[2], config["optimizer"]["lr"]) == ("adamw", 2e-4)
    assert config["ema"]["decays"] == [0.9999]
    assert config["data"]["flip"] == "horizontal"
    assert instantiate(config["schedule"], "schedule").log_alpha_bar.equal(cosine(1000).log_alpha_bar)


def test_cifar10_ddpm_is_ho_et_al():
    config = compose("train", "experiment=cifar10_ddpm")
    ddpm = build_ddpm(config)
    assert ddpm.schedule.log_alpha_bar.equal(linear(1000).log_alpha_bar)
    assert config["variance"]["_target_"].endswith("FixedLarge")
    assert config["optimizer"] == compose("train", "optimizer=adam", "data=cifar10")["optimizer"]
    assert (config["trainer"]["batch_size"], config["trainer"]["steps"]) == (128, 800_000)
    assert config["ema"]["decays"] == [0.9999]


def test_cifar10_improved_is_nichol_and_dhariwals_training():
    """Their network is in test_openai_import.py; they clip nothing, warm nothing up, mirror nothing."""
    config = compose("train", "experiment=cifar10_improved")
    assert build_ddpm(config).schedule.log_alpha_bar.equal(cosine(4000, beta_min=0.0, beta_max=0.999).log_alpha_bar)
    trainer, optimizer = config["trainer"], config["optimizer"]
    assert (trainer["batch_size"], trainer["steps"]) == (128, 500_000)
    assert (trainer["grad_clip"], trainer["warmup_steps"], trainer["lr_decay"]) == (None, 0, "constant")
    assert (optimizer["lr"], optimizer["weight_decay"], config["ema"]["decays"]) == (1e-4, 0.0, [0.9999])
    assert config["loss"]["bound_weight"] == 0.001
    assert config["data"]["flip"] == "none"


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
    commands = {
        "train": TrainOptions,
        "sample": SampleOptions,
        "eval": EvalOptions,
        "import": ImportOptions,
        "export": ExportOptions,
    }
    for name, options in commands.items():
        keys = set(compose(name))
        assert keys == set(options.__dataclass_fields__)


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.parent.name not in ("debug", "experiment", "trainer")], ids=str
)
def test_options_spell_out_every_argument(file: Path):
    """What can be set is visible in the YAML: no argument hides in a signature."""
    content = yaml.safe_load(file.read_text())
    node = content.get(file.parent.name, content)
    parameters = signature(node["_target_"]) or []
    settable = {p.name for p in parameters if not (node.get("_partial_") and p.positional)}
    assert not settable & common_options(file.parent.name).keys(), "what the program takes for itself"
    if file.parent.name == "data":
        settable -= {"split"} - node.keys()  # of well-known sets: for evaluation, which sets it itself
    assert settable == set(node) - {"_target_", "_partial_"}
