"""The ranges in the comments of the YAML files are those that the commands hold to.

Values on both sides of every bound are put into a composed configuration. What a command calls with it before it reads
or builds anything large is called: `schema.check`, the part that the value is for, and what refuses numbers that no
checkpoint may hold.
"""

import ast
import copy
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from option_types import alternatives, annotations, is_number, package, targets
from PIL import Image
from ranges import Range, split_range
from reference import COMMANDS, named
from torch import nn

from ddpm_cli.checkpoint.validate import check_config
from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.config.common_options import without_common
from ddpm_cli.config.errors import naming
from ddpm_cli.config.eval_options import EvalOptions
from ddpm_cli.config.import_options import ImportOptions
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.sample_options import SampleOptions
from ddpm_cli.config.schema import check, targets_in
from ddpm_cli.config.shipped import configs_directory, groups
from ddpm_cli.conversion.layers import default_options, network_shapes
from ddpm_cli.data import datasets, folder, huggingface, webdataset
from ddpm_cli.data.holdout import hold_out
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.ema.posthoc import check_length
from ddpm_cli.runtime.seeds import generator
from ddpm_cli.sampling.modes import SampleContext

FAR = 10_000_000  # taken on a side without a bound
STEP = 1e-3  # from a bound to the numbers beside it, unless they are whole
FILES = [*(configs_directory() / f"{command}.yaml" for command in COMMANDS), *configs_directory().glob("*/*.yaml")]
FIRST = {group: command for command in reversed(COMMANDS) for group in groups(command)}


class Numbers(NamedTuple):
    """An option that takes numbers."""

    file: Path
    key: str
    whole: bool
    listed: bool  # it takes no number that is not in a list
    limits: Range | None

    @property
    def command(self) -> str:
        """The one that has it; of several the first."""
        return FIRST[self.file.parent.name] if self.file.parent != configs_directory() else self.file.stem


def numbers() -> Iterator[Numbers]:
    for file in sorted(FILES):
        types = annotations(file)
        for option in named(file).options:
            annotation = types.get(option.key)
            if annotation is not None and is_number(annotation):
                names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
                listed = all(isinstance(one, ast.Subscript | ast.Constant) for one in alternatives(annotation))
                yield Numbers(file, option.key, "float" not in names, listed, split_range(option.meaning)[1])


NUMBERS = list(numbers())
# One for all files that say the same of the same target.
TRIED = {(*targets(option.file).values(), option.key, option.limits): option for option in NUMBERS}

# What has to stand beside a value so that only its own range decides, by key.
ONE_LEVEL = {"model.channel_mults": [1], "model.attention_resolutions": [], "model.norm_groups": 1}
BESIDE: dict[str, Callable[[Any], dict[str, Any]]] = {
    "trainer.accumulate": lambda v: {"trainer.batch_size": min(max(v, 1), 65_536)},
    "trainer.keep_every": lambda v: {"trainer.checkpoint_every": 1},
    "trainer.profile_steps": lambda v: {"trainer.steps": FAR},
    "model.num_heads": lambda v: {"model.base_channels": 1024},
    "model.head_channels": lambda v: {"model.base_channels": 4096, "model.channel_mults": [64]},
    "model.norm_groups": lambda v: {"model.base_channels": 4096},
    "model.attention_resolutions": lambda v: {"model.image_size": 2**14, "model.channel_mults": [1] * 15},
    "schedule.start": lambda v: {"schedule.end": v + 1, "schedule.tau": FAR},
    "schedule.end": lambda v: {"schedule.start": v - 1, "schedule.tau": FAR},
    "schedule.tau": lambda v: {"schedule.start": -STEP, "schedule.end": STEP},
    "data.channels": lambda v: {"data.background": "keep"} if v == 4 else {},
    "guidance.interval": lambda v: {"guidance.scale": 2.0},
    "guidance.rescale": lambda v: {"guidance.scale": 2.0},
    "preset.num_heads": lambda v: {"preset.num_head_channels": None},
    "preset.num_head_channels": lambda v: {"preset.num_heads": None},
    "strength": lambda v: {"mode.strength": v},
    "seeds": lambda v: {"mode.seeds": [v, v + 1]},
}
LISTS: dict[str, Callable[[Any], list]] = {  # of more than one number
    "optimizer.betas": lambda v: [v, v],
    "guidance.interval": lambda v: [v, v],
    "data.background": lambda v: [v, v, v],
    "data.value_range": lambda v: [v, v + 1],
    "seeds": lambda v: [v, v + 1],
    "mode.seeds": lambda v: [v, v + 1],
}
OF_MODES = {"strength": "mode/edit.yaml", "seeds": "mode/interpolate.yaml"}  # by key, the mode that takes it
# What only the model or the images decide: test_modes.py, test_labels.py and test_huggingface.py try it.
DECIDED_LATER = ("sample: classes", "folder: data.num_classes", "huggingface: data.num_classes")
# Limited by sampler.steps, by time, and by the number of images.
NOT_FAR = ("mode.jump_length", "mode.resamplings", "data.holdout")


# What a command does -------------------------------------------------------------------------------------------------


class ReadingBeginsError(Exception):
    """In the place of all that images are read with."""


def refusal(option: Numbers, value: float) -> str:
    """What a command says against a value; empty if it takes it."""
    file = configs_directory() / OF_MODES[option.key] if option.key in OF_MODES else option.file
    config = copy.deepcopy(composed(option.command, file))
    beside = ONE_LEVEL if option.key.startswith("model.") else {}
    listed = LISTS.get(option.key, lambda v: [v])(value) if option.listed else value
    for key, other in (beside | BESIDE.get(option.key, lambda v: {})(value) | {option.key: listed}).items():
        *path, name = key.split(".")
        functools.reduce(dict.__getitem__, path, config)[name] = other
    try:
        called = f"ddpm_cli.config.{option.command}_options.{option.command.capitalize()}Options"
        STARTS[option.command](check(config, called), option.key.rpartition(".")[0] or option.key)
    except ValueError as error:
        return str(error)
    return ""


@functools.cache
def composed(command: str, file: Path) -> dict:
    """The configuration of a command with an option of a group, without what else this option chooses."""
    config, place = copy.deepcopy(defaults(command)), package(file)
    if file.parent != configs_directory():
        content = OmegaConf.load(file)
        config.pop(file.parent.name, None)
        config.merge_with(content if place is None else {place: content})
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {key: value for key, value in found.items() if key != "defaults"}


@functools.cache
def defaults(command: str) -> DictConfig:
    register_resolvers()
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        config = hydra.compose(command)
    OmegaConf.set_struct(config, False)
    return config


def train(config: dict, part: str) -> None:
    generator(config["seed"])
    if part == "seed":
        return
    if part == "data":
        read(config)
    else:
        build(config, part)
    check_config({part: config[part]}, trust=frozenset(targets_in(config)))


def read(config: dict) -> None:
    data, common = without_common(config["data"])
    with suppress(ReadingBeginsError):
        instantiate(data, "data")
    with naming("data.holdout"):
        hold_out(ImageSet(np.zeros((9, 1, 1, 1), np.uint8), "nine", flip="none"), common.holdout, 0)


def build(config: dict, part: str) -> None:
    with torch.device("meta") if part == "model" else nullcontext():
        built = instantiate(config[part], part)
    with naming(part):
        if part == "optimizer":
            built(nn.Linear(1, 1).parameters())
        if part == "ema":
            built(nn.Linear(1, 1))
        if part == "timestep_sampler":
            built(linear(10))


def sample(config: dict, part: str) -> None:
    options = SampleOptions(**config)
    check_drawing(config, part)
    if part in ("mode", "strength", "seeds"):
        mode = instantiate(options.mode | {key: "half.png" for key in ("image", "mask") if key in options.mode}, "mode")
        sampler, device = instantiate(options.sampler, "sampler"), torch.device("cpu")
        mode.plan(SampleContext(linear(1000), sampler, (1, 8, 8), options.n, 0, options.seed, device))


def evaluate(config: dict, part: str) -> None:
    EvalOptions(**config | {"ckpt": "RUN"})
    check_drawing(config, part)


def check_drawing(config: dict, part: str) -> None:
    generator(config["seed"])
    check_export(config, part)
    if part in ("guidance", "threshold", "features", "reference"):
        instantiate(config[part], part)


def check_export(config: dict, part: str) -> None:
    if config["ema_length"] is not None:
        with naming("ema_length"):
            check_length(config["ema_length"])


def import_(config: dict, part: str) -> None:
    options = ImportOptions(**config)
    if part == "preset":
        check_config({part: options.preset}, trust=frozenset(targets_in(options.preset)))
        instantiate(options.preset, part)
    elif options.image_size is not None:
        one_level = {"channel_mults": [1], "attention_resolutions": [], "image_size": options.image_size}
        network_shapes(default_options() | one_level)


STARTS: dict[str, Callable[[dict, str], None]] = {
    "train": train,
    "sample": sample,
    "eval": evaluate,
    "import": import_,
    "export": check_export,
}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is a mask too, and no other images."""

    def begin(*args: object, **options: object) -> None:
        raise ReadingBeginsError

    half = np.repeat(np.array([0, 255], np.uint8), 32).reshape(8, 8)
    Image.fromarray(half).save(tmp_path / "half.png")
    monkeypatch.chdir(tmp_path)
    for name in ("_read_digits", "_read_mnist", "_read_cifar10"):
        monkeypatch.setattr(datasets, name, begin)
    monkeypatch.setattr(folder, "_find_images", begin)
    monkeypatch.setattr(huggingface, "open_table", begin)
    monkeypatch.setattr(webdataset, "_find", begin)


# Tests ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", TRIED.values(), ids=lambda option: f"{option.file.stem}: {option.key}")
def test_a_range_is_what_the_command_takes(option: Numbers, images: None):
    if f"{option.file.stem}: {option.key}" in DECIDED_LATER:
        return
    for value, taken in probes(option):
        says = refusal(option, value)
        if taken:
            assert says == "", f"{option.key}={value} is in range"
        else:
            assert option.key.rpartition(".")[2].removesuffix("s") in says, f"{option.key}={value} is out of range"


def probes(option: Numbers) -> Iterator[tuple[float, bool]]:
    """Values at and beside each bound, and far from it where there is no other; and whether they are in range."""
    kind, step = (int, 1) if option.whole else (float, STEP)
    if option.limits is None:
        yield from ((kind(value), True) for value in (-FAR, 0, FAR))
        return
    for bound in option.limits.numbers:
        around = (bound - step, bound, bound + step)
        yield from ((kind(value), False) for value in around if value not in option.limits)
        inside = [value for value in (bound, *around) if value in option.limits]
        yield kind(inside[0]), True
    for far in (-FAR, FAR) if option.key not in NOT_FAR else ():
        if far in option.limits:
            yield kind(far), True


def test_the_options_without_a_range_are_known():
    assert {option.key for option in NUMBERS if option.limits is None} == {
        "classes", "data.value_range", "mode.seeds", "schedule.end", "schedule.start", "seed", "seeds",
        "timestep_sampler.mean",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_looks_like_a_range_is_one_and_of_a_number(file: Path):
    of_numbers = {option.key for option in NUMBERS if option.file == file and option.limits is not None}
    assert {option.key for option in named(file).options if split_range(option.meaning)[1]} - of_numbers == set()
    for option in named(file).options:
        rest = split_range(option.meaning)[0]
        assert not re.search(r"\((at least|at most|above|below|from|only) ", rest), f"{option.key}: {rest}"
