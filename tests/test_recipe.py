"""A recipe that cannot come to what it is for is told so, with the key to change; those that we ship are not."""

from pathlib import Path

import pytest
import torch
from commands import TINY, assert_one_message, only, train
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.data.decode_once import FEW_IMAGES
from ddpm_cli.ema.ema import EMA
from ddpm_cli.training import lr_schedule
from ddpm_cli.training.recipe import doubts, doubts_of_data
from ddpm_cli.training.trainer_config import TrainerConfig

ALRIGHT = {"decays": [0.9999], "parameters": 1_000_000, "device": "cpu"}
SETS = ("digits", "mnist", "fashion_mnist", "cifar10")
EXPERIMENTS = sorted(path.stem for path in (configs_directory() / "experiment").iterdir())
DEBUG = sorted(path.stem for path in (configs_directory() / "debug").iterdir())
RECIPES = [
    *([f"data={name}"] for name in SETS),
    *([f"data={name}", f"data.{key}=x"] for name, key in (("folder", "path"), ("webdataset", "path"))),
    ["data=huggingface", "data.dataset=x"],
    *([f"experiment={name}"] for name in EXPERIMENTS),
    *([f"debug={name}"] for name in DEBUG),
    *(["ema=posthoc", f"data={name}"] for name in SETS),
]


def doubted(arguments: list[str], device: str) -> list[str]:
    """What is said of a recipe as the command composes it, with the network of its own, which takes no memory."""
    from ddpm_cli.config.instantiate import instantiate

    register_resolvers()
    if arguments[0].startswith("experiment=folder"):
        arguments = [*arguments, "data.path=x"]
    with initialize_config_dir(config_dir=str(configs_directory()), version_base=None):
        config = OmegaConf.to_container(compose("train", overrides=arguments), resolve=True)
    assert isinstance(config, dict)
    with torch.device("meta"):
        network = instantiate(config["model"], "model")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    trainer = instantiate(config["trainer"], "trainer")
    return doubts(trainer, decays=config["ema"]["decays"], parameters=parameters, device=device)


@pytest.mark.parametrize("arguments", RECIPES, ids=" ".join)
def test_no_recipe_of_ours_is_doubted_where_it_is_meant_to_run(arguments: list[str]):
    """On a CPU only the networks of recipes that take a GPU, and these for no other reason."""
    assert doubted(arguments, "cuda") == []
    on_a_cpu = doubted(arguments, "cpu")
    for_a_gpu = any(name in arguments[-1] + arguments[0] for name in ("cifar10", "folder", "webdataset", "huggingface"))
    assert [line.partition(":")[0] for line in on_a_cpu] == (["model"] if for_a_gpu else [])


def test_a_few_steps_of_a_large_network_on_a_cpu_are_a_test_of_it():
    assert doubted(["data=folder", "data.path=x", "debug=limit"], "cpu") == []
    (said,) = doubted(["data=folder", "data.path=x"], "cpu")
    assert said.startswith("model: a network of 74,051,331 parameters is too large to train on a CPU for 500,000 steps")


def test_a_warmup_that_outlasts_the_run_is_doubted_with_the_rate_that_it_comes_to():
    config = TrainerConfig(steps=300, batch_size=8, warmup_steps=5000)
    (said,) = doubts(config, **ALRIGHT)
    last = lr_schedule.factor(299, steps=300, warmup_steps=5000, decay="constant")
    assert last == pytest.approx(0.06)
    assert said.startswith(
        "trainer.warmup_steps: the learning rate rises over 5,000 steps, but the run has only 300: it ends"
    )
    assert "at 0.06 of optimizer.lr; set trainer.warmup_steps=15" in said
    assert doubts(TrainerConfig(steps=300, batch_size=8, warmup_steps=300), **ALRIGHT) == []


def averages(decays: list[float], steps: int) -> list[torch.Tensor]:
    """What averages of a network that goes through 0, 1, 2... are after some steps."""
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(-1000.0)
        ema = EMA(network, decays=decays)
        for step in range(steps):
            network.weight.fill_(step)
            ema.update(network)
    return [ema.model.weight.detach(), *ema.state_dict().values()]


def test_no_average_is_too_long_for_a_run_but_two_may_be_the_same():
    """A decay of 0.9999 without its warm-up would hold to 0.98 what the network was 200 steps before."""
    config = TrainerConfig(steps=200, batch_size=8)
    assert doubts(config, **ALRIGHT | {"decays": [0.9999]}) == []
    (alone,) = averages([0.9999], 200)
    assert 175 < alone.item() < 199
    same, of_both = averages([0.9999, 0.99], 200)
    assert torch.equal(same, of_both)
    (said,) = doubts(config, **ALRIGHT | {"decays": [0.9999, 0.99, 0.9]})
    assert said == (
        "ema.decays: 0.9999, 0.99 give the same average over 200 steps: they differ only after 890; "
        "set ema.decays=[0.9999,0.9] to keep it once"
    )
    first, second = averages([0.9999, 0.99], 892)
    assert not torch.equal(first, second)
    assert doubts(TrainerConfig(steps=892, batch_size=8), **ALRIGHT | {"decays": [0.9999, 0.99]}) == []


def test_a_batch_that_is_larger_than_the_set_is_doubted():
    assert doubts_of_data(TrainerConfig(steps=1, batch_size=40), 40) == []
    (said,) = doubts_of_data(TrainerConfig(steps=1, batch_size=128), 40)
    assert said == (
        "trainer.batch_size: 128 is more than the 40 images, so each is in every batch 3.2 times; "
        "set trainer.batch_size=40 to have each once"
    )


def test_the_command_says_it_and_trains_but_not_beside_a_mistake(tmp_path: Path):
    doubtful = [*TINY, "trainer.warmup_steps=50", "ema.decays=[0.9999,0.999]", "trainer.preview_every=0"]
    doubtful += ["trainer.steps=2", "data.image_size=8"]
    early = ["trainer.warmup_steps: the learning", "ema.decays: 0.9999, 0.999 give"]
    refused = train(*doubtful, "data=mnist", "data.root=nowhere", cwd=tmp_path)
    assert_one_message(refused, "train", "data: .*is missing")
    done = train(*doubtful, "trainer.batch_size=2000", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line[: len(say)] for line, say in zip(done.stderr.splitlines(), early, strict=True)] == early
    assert "\ntrainer.batch_size: 2000 is more than the 1,797 images, so each is in every batch 1.11 times" in (
        done.stdout
    )
    log = (only(tmp_path / "outputs" / "digits") / "train.log").read_text(encoding="utf-8")
    assert log.count("WARNING trainer.warmup_steps: ") == log.count("WARNING ema.decays: ") == 1


def test_it_is_said_before_many_pictures_are_decoded(tmp_path: Path):
    """Of which the last one is broken: by then all have been decoded."""
    (tmp_path / "pictures").mkdir()
    for i in range(FEW_IMAGES):
        Image.new("L", (8, 8), i % 256).save(tmp_path / "pictures" / f"{i:03d}.png")
    (tmp_path / "pictures" / "999.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    folder = ["data=folder", "data.path=pictures", "data.image_size=8", "data.channels=1", "data.workers=0"]
    small = [*TINY, "model=unet_16", "model.image_size=8", "model.attention_resolutions=[]", "data.cache_dir=cache"]
    done = train(*folder, *small, "trainer.warmup_steps=50", "trainer.steps=2", cwd=tmp_path)
    assert done.returncode == 2
    first, second, *_ = done.stderr.splitlines()
    assert first.startswith("trainer.warmup_steps: ")
    assert second.startswith("ddpm-train: data: 1 images in ")


@pytest.mark.slow
def test_the_recipe_of_the_quickstart_says_nothing(tmp_path: Path):
    done = train("experiment=quickstart", *TINY[:3], "trainer.steps=200", "trainer.batch_size=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "WARNING" not in (only(tmp_path / "outputs" / "quickstart") / "train.log").read_text(encoding="utf-8")
