"""Every option of the mathematics that ships is a value: frozen, equal where its values are; what it says is true."""

import copy
import pickle
from collections.abc import Hashable
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.repaint import RePaint
from ddpm_cli.diffusion.samplers import DDIM, Ancestral
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall

GROUPS = ("guidance", "loss", "prediction", "sampler", "threshold", "variance", "weighting")


def files_of(*groups: str) -> list[Path]:
    return [file for group in groups for file in sorted((configs_directory() / group).glob("*.yaml"))]


def of(*groups: str):
    return pytest.mark.parametrize("file", files_of(*groups), ids=lambda file: f"{file.parent.name}={file.stem}")


def built(file: Path) -> Any:
    node = yaml.safe_load(file.read_text(encoding="utf-8"))
    if node.get("variance") == "${variance}":
        node["variance"] = {"_target_": "ddpm_cli.diffusion.variance.FixedLarge"}
    if str(node.get("sigma_data")).startswith("${"):
        node["sigma_data"] = 0.5
    return instantiate(node, file.parent.name)


def others(option: Any) -> list[Any]:
    """Options that differ from this one in one value each."""
    found = []
    for field in fields(option):
        value = getattr(option, field.name)
        if field.name == "variance":
            found.append(replace(option, variance=FixedSmall()))
        elif isinstance(value, int | float):
            found.append(replace(option, **{field.name: value / 2 if value else 0.5}))
        elif field.name in ("steps", "interval", "spacing"):
            changed = {"steps": (5, 0), "interval": (1, 2), "spacing": "leading"}[field.name]
            found.append(
                replace(option, **({"scale": 2.0} if field.name == "interval" else {}) | {field.name: changed})
            )
    return found


@of(*GROUPS)
def test_an_option_is_a_frozen_dataclass(file: Path):
    option = built(file)
    assert is_dataclass(option)
    for name in [field.name for field in fields(option)] or ["anything"]:
        with pytest.raises(FrozenInstanceError):
            setattr(option, name, 1)


@of(*GROUPS)
def test_options_are_equal_where_their_values_are(file: Path):
    option, same = built(file), built(file)
    assert option is not same
    assert option == same
    assert hash(option) == hash(same)
    assert repr(option) == repr(same)
    for copied in (copy.deepcopy(option), pickle.loads(pickle.dumps(option)), replace(option)):
        assert copied == option
        assert hash(copied) == hash(option)
    changed = others(option) if file.parent.name != "guidance" else []
    assert len({option, same, *changed}) == 1 + len(changed) == 1 + len(fields(option)) * bool(changed)
    assert {file: same}[file] == option


@pytest.mark.parametrize("group", GROUPS)
def test_no_two_options_of_a_group_are_equal(group: str):
    files = files_of(group)
    assert files
    assert len({built(file) for file in files}) == len(files)


def test_an_option_is_hashable_where_its_values_are():
    assert DDIM(steps=[9, 0]) == DDIM(steps=[9, 0]) != DDIM(steps=[9, 1])
    with pytest.raises(TypeError, match="unhashable"):
        hash(DDIM(steps=[9, 0]))
    listed = instantiate({"_target_": "ddpm_cli.diffusion.samplers.DDIM", "steps": [9, 0]}, "sampler")
    assert isinstance(listed, Hashable)
    assert {listed: 1}[DDIM(steps=(9, 0))] == 1
    assert Ancestral() == Ancestral(variance=FixedSmall()) != Ancestral(variance=FixedLarge())
    assert len({RePaint(variance=FixedSmall()), RePaint(variance=FixedSmall()), RePaint(variance=FixedLarge())}) == 2


# What they say of themselves -----------------------------------------------------------------------------------------


def draws(sampler: Any) -> int:
    """How often a sampler asks for noise in five steps."""
    schedule, x, asked = linear(20), torch.ones(1, 1, 2, 2), []

    def denoise(x_t: Tensor, t: int) -> Denoised:
        return Denoised(x_t / 2, x_t, torch.zeros_like(x_t))

    def noise() -> Tensor:
        asked.append(1)
        return torch.ones_like(x)

    times = replace(sampler, steps=5).times(schedule)
    assert len(list(sampler.solve(denoise, schedule, times, x, noise))) == 5
    return len(asked)


@of("sampler")
def test_a_sampler_that_says_it_is_stochastic_asks_for_noise_and_no_other(file: Path):
    sampler = built(file)
    assert sampler.stochastic is (draws(sampler) > 0)
    if isinstance(sampler, DDIM):
        noisy = replace(sampler, eta=0.3)
        assert (sampler.stochastic, noisy.stochastic) == (False, True)
        assert draws(noisy) == 5


@of("variance")
def test_a_variance_that_says_it_is_learned_needs_the_networks_word_and_no_other(file: Path):
    variance, schedule, t = built(file), linear(20), torch.tensor([0, 7, 19])
    shape = torch.Size([3, 1, 2, 2])
    one, other = (variance.log_variance(schedule, t, t - 1, shape, torch.full(shape, said)) for said in (-0.5, 0.5))
    assert variance.learned is not torch.equal(one, other)
    if variance.learned:
        with pytest.raises(ValueError, match="needs a network trained with it"):
            variance.log_variance(schedule, t, t - 1, shape, None)
    else:
        assert torch.equal(variance.log_variance(schedule, t, t - 1, shape, None), one)
