"""Networks of improved-diffusion and guided-diffusion, typed again here, come in and compute what they computed."""

from dataclasses import replace
from typing import Any

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from openai_network import THIRDS_FIRST, OpenAINetwork, fill
from torch import Tensor

from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.conversion import openai
from ddpm_cli.conversion.imported import ConversionError, Given, Imported
from ddpm_cli.conversion.openai import Flags, read, recognised
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.models.unet import UNet

SIZE = 16
FLAGS = Flags(
    image_size=SIZE,
    num_heads=2,
    num_head_channels=None,
    use_new_attention_order=False,
    dropout=0.0,
    diffusion_steps=1000,
    noise_schedule="linear",
    rescale_timesteps=False,
    predict_xstart=False,
)
PRESETS = sorted(file.stem for file in (configs_directory() / "preset").glob("*.yaml"))


def theirs(**options) -> OpenAINetwork:
    network = OpenAINetwork(**{"num_heads": 2} | options).eval()
    fill(network)
    return network


def imported(tensors: dict[str, Tensor], flags: Flags = FLAGS) -> Imported:
    assert recognised(tensors)
    return read(tensors, "model.pt", Given(preset=flags))


def preset(name: str) -> Flags:
    node = yaml.safe_load((configs_directory() / "preset" / f"{name}.yaml").read_text(encoding="utf-8"))
    found = instantiate(node, "preset")
    assert isinstance(found, Flags)
    return found


def built(found: Imported) -> UNet:
    unet = UNet(**found.unet)
    unet.load_state_dict(found.tensors)
    return unet.eval()


NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "improved": ({}, {}),
    "learn_sigma": ({"out_channels": 6}, {}),
    "labels": ({"num_classes": 5}, {}),
    "no_scale_shift": ({"use_scale_shift_norm": False}, {}),
    "updown": ({"resblock_updown": True}, {}),
    "rescaled": ({"time_scale": 0.25}, {"diffusion_steps": 4000, "rescale_timesteps": True}),
    "one_head": ({"num_heads": 1}, {"num_heads": 1}),
    "head_channels": ({"num_head_channels": 16}, {"num_heads": None, "num_head_channels": 16}),
    "new_order": ({"qkv_order": THIRDS_FIRST}, {"use_new_attention_order": True}),
    "three_levels": (
        {"channel_mult": (1, 2, 3), "num_res_blocks": 2, "attention_resolutions": (2, 4), "num_heads": 4},
        {"num_heads": 4},
    ),
    "attention_everywhere": ({"attention_resolutions": (1, 2), "resblock_updown": True}, {}),
    "attention_in_the_middle": ({"attention_resolutions": ()}, {}),
    "one_level": ({"channel_mult": (1,), "num_res_blocks": 2}, {}),
    "grey": ({"in_channels": 1, "out_channels": 2}, {}),
    "adm": (
        {
            "channel_mult": (1, 2, 3),
            "num_res_blocks": 2,
            "attention_resolutions": (1, 2),
            "num_classes": 5,
            "num_head_channels": 16,
            "qkv_order": THIRDS_FIRST,
            "resblock_updown": True,
            "out_channels": 6,
        },
        {"num_heads": None, "num_head_channels": 16, "use_new_attention_order": True},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_comes_in_computes_what_it_computed(name: str):
    options, flags = NETWORKS[name]
    network = theirs(**options)
    found = imported(network.state_dict(), replace(FLAGS, **flags))
    unet = built(found)
    assert sum(p.numel() for p in unet.parameters()) == sum(p.numel() for p in network.parameters())
    steps = flags.get("diffusion_steps", 1000)
    t = torch.linspace(0, steps - 1, 24).long()
    x = torch.randn(len(t), options.get("in_channels", 3), SIZE, SIZE)
    labels = torch.arange(len(t)) % 5 if "num_classes" in options else None
    with torch.no_grad():
        expected, out = network(x, t, labels), unet(x, t, labels)
    assert expected.std() > 0.1
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert found.unet["null_label"] is (labels is None)
    assert found.unet["learn_variance"] is (out.shape[1] == 2 * x.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["improved", "adm"])
def test_they_agree_at_every_t(name: str):
    """To 1e-5 of the largest number of a million and a half."""
    options, flags = NETWORKS[name]
    network, t = theirs(**options), torch.arange(1000)
    unet = built(imported(network.state_dict(), replace(FLAGS, **flags)))
    x, labels = torch.randn(1000, 3, SIZE, SIZE), t % 5 if "num_classes" in options else None
    with torch.no_grad():
        expected, out = network(x, t, labels), unet(x, t, labels)
    assert (out - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_order_of_the_rows_of_qkv_is_no_matter_of_taste():
    network, x, t = theirs(), torch.randn(2, 3, SIZE, SIZE), torch.tensor([3, 977])
    wrong = built(imported(network.state_dict(), replace(FLAGS, use_new_attention_order=True)))
    with torch.no_grad():
        assert (wrong(x, t) - network(x, t)).abs().max() > 1e-2


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("schedule", "steps"), [("linear", 1000), ("linear", 4000), ("cosine", 4000)])
def test_its_diffusion_comes_along(learned: bool, schedule: str, steps: int):
    network = theirs(out_channels=6 if learned else 3)
    found = imported(network.state_dict(), replace(FLAGS, diffusion_steps=steps, noise_schedule=schedule))
    parts = {group: instantiate(node, group) for group, node in found.groups.items() if group != "threshold"}
    alpha_bar = parts["schedule"].alphas_cumprod
    if schedule == "linear":  # theirs is in terms of betas, of which 1000 go from 1e-4 to 0.02
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps
    else:
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        f = ((u + 0.008) / 1.008 * torch.pi / 2).cos().square()
        betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    torch.testing.assert_close(alpha_bar, (1 - betas).cumprod(0), rtol=1e-6, atol=1e-9)
    assert type(parts["variance"]).__name__ == ("LearnedRange" if learned else "FixedLarge")
    assert type(instantiate(found.groups["threshold"], "threshold")).__name__ == "Static"
    loss = {"loss": instantiate({"_target_": "ddpm_cli.diffusion.loss.Hybrid"}, "loss")} if learned else {}
    image = DDPM(built(found), **parts, **loss).denoise(torch.randn(1, 3, SIZE, SIZE), torch.tensor([steps - 1])).x_0
    assert image.abs().max() <= 1


# The published models ------------------------------------------------------------------------------------------------

# By preset: the flags of OpenAI's commands that the tensors say, and how many parameters that makes. The paper has
# 296, 422, 554 and 552 million for ADM's; the names of improved-diffusion's files have 50M, 100M, 270M and 100M.
_64 = {"model_channels": 128, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 3, "attention_resolutions": (4, 8)}
_256 = {"channel_mult": (1, 1, 2, 2, 4, 4), "num_res_blocks": 2, "attention_resolutions": (8, 16, 32)}
_128 = _256 | {"channel_mult": (1, 1, 2, 3, 4), "attention_resolutions": (4, 8, 16)}
_CLASSES, _ADM = {"num_classes": 1000}, {"model_channels": 256, "resblock_updown": True}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "improved_cifar10": (_64 | {"channel_mult": (1, 2, 2, 2), "attention_resolutions": (2, 4)}, 52_546_438),
    "improved_imagenet64": (_64, 121_063_942),
    "improved_imagenet64_cond": (_64 | _CLASSES | {"model_channels": 192}, 273_049_350),
    "improved_lsun": (
        _256 | {"model_channels": 128, "attention_resolutions": (16,), "use_scale_shift_norm": False},
        113_676_678,
    ),
    "adm_64": (_64 | _ADM | _CLASSES | {"model_channels": 192, "attention_resolutions": (2, 4, 8)}, 295_904_454),
    "adm_128": (_128 | _ADM | _CLASSES, 421_529_606),
    "adm_256": (_256 | _ADM | _CLASSES, 553_838_086),
    "adm_lsun": (_256 | _ADM, 552_814_086),
}


def options_of(name: str) -> tuple[dict[str, Any], OpenAINetwork]:
    """What ours is built with for a published model, and that model without memory for it."""
    options, _ = PUBLISHED[name]
    with torch.device("meta"):
        network = OpenAINetwork(**options, out_channels=6)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    flags = preset(name)
    return openai._options(shapes, flags, flags.image_size), network


@pytest.mark.parametrize("name", PRESETS)
def test_every_published_model_has_a_preset_and_a_place_for_each_of_its_tensors(name: str):
    options, network = options_of(name)
    with torch.device("meta"):
        unet = UNet(**options)
    ours, there = unet.state_dict(), network.state_dict()
    assert sum(tensor.numel() for tensor in ours.values()) == PUBLISHED[name][1]
    names = openai._names(options, {key: tuple(tensor.shape) for key, tensor in ours.items()})
    assert sorted(theirs for (theirs,) in names.values()) == sorted(there)
    for key, (theirs,) in names.items():
        assert there[theirs].numel() == ours[key].numel(), key


def composed(*overrides: str) -> dict[str, Any]:
    """The options of the network that `ddpm-train` trains."""
    register_resolvers()
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train", list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {key: value for key, value in config["model"].items() if key != "_target_"}


def test_the_shipped_networks_are_the_published_ones_to_the_last_option():
    improved = composed("experiment=cifar10_improved")
    expected, _ = options_of("improved_cifar10")
    assert improved == expected
    learned = ("variance=learned_range", "loss=hybrid")
    folder = ("data=folder", "data.path=x", "data.num_classes=1000")
    adm = composed(*folder, "model=adm_64", "model.null_label=false", *learned)
    expected, _ = options_of("adm_64")
    assert adm == expected


def test_the_network_of_improved_ddpm_follows_the_number_of_timesteps():
    assert composed("experiment=cifar10_improved", "schedule.timesteps=1000")["time_scale"] == 1


# What cannot come in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"channel_mult": (0.5, 1), "model_channels": 64},
            "has 32 channels, .* begins with 0.5, and here",
        ),
        (
            {"channel_mult": (1, 1.25), "model_channels": 128},
            "160 channels, 1.25 times the 128 of the first",
        ),
        ({"in_channels": 6, "out_channels": 6}, "an upsampler"),
        ({"num_heads": 3}, "ours cannot be its network: model: num_heads 3 does not divide the 32 channels"),
        ({"out_channels": 4}, r"'?out.2.weight'? is \[4, 32, 3, 3\], the network it describes has \[3, 32, 3, 3\]"),
    ],
    ids=str,
)
def test_another_network_is_refused_with_the_reason(change: dict[str, Any], says: str):
    flags = replace(FLAGS, num_heads=change.get("num_heads", 2))
    with pytest.raises(ConversionError, match=says):
        imported(theirs(**change | {"num_heads": 1}).state_dict(), flags)


def spoilt(change: str) -> dict[str, Tensor]:
    tensors = theirs().state_dict()
    name = "output_blocks.1.0.in_layers.2.weight"
    match change:
        case "missing":
            del tensors[name]
        case "more":
            tensors["output_blocks.1.3.weight"] = torch.zeros(3, 4)
        case "shape":
            tensors[name] = tensors[name][:, :5]
        case "nan":
            tensors[name].view(-1)[7] = torch.nan
        case "whole":
            tensors[name] = tensors[name].long()
        case "classifier":
            tensors = {key: value for key, value in tensors.items() if not key.startswith("output_blocks.")}
        case "stages":
            tensors["output_blocks.999.0.in_layers.0.weight"] = torch.zeros(3)
        case "scalar":
            tensors["time_embed.0.weight"] = torch.zeros(())
        case "empty":
            tensors["input_blocks.0.0.weight"] = torch.zeros(0, 3, 3, 3)
    return tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", "have no output_blocks.1.0.in_layers.2.weight"),
        ("more", r"does not have output_blocks.1.3.weight \[3, 4\]"),
        ("shape", r"in_layers.2.weight is \[64, 5, 3, 3\], .* has \[64, 96, 3, 3\] there"),
        ("nan", r"in_layers.2.weight \[64, 96, 3, 3\] holds values that are not finite"),
        ("whole", "in_layers.2.weight holds int64, which cannot be weights"),
        ("classifier", "a classifier of noisy images"),
        ("stages", "5 output_blocks, of which each level would have 2"),
        ("scalar", r"time_embed.0.weight is \[\]: not a network of"),
        ("empty", r"input_blocks.0.0.weight is \[0, 3, 3, 3\]: not a network of"),
    ],
)
def test_damaged_tensors_are_named(change: str, says: str):
    with pytest.raises(ConversionError, match=says):
        imported(spoilt(change))


def test_without_a_preset_nothing_is_guessed():
    with pytest.raises(ConversionError, match=r"model\.pt is from improved.* choose preset=adm_128, .*, improved_lsun"):
        read(theirs().state_dict(), "model.pt", Given())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_heads": None}, "one of num_heads and num_head_channels must be a number .* got None and None"),
        ({"num_head_channels": 64}, "got 2 and 64"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
        ({"diffusion_steps": 0}, "diffusion_steps must be at least 1, got 0"),
        ({"noise_schedule": "sqrt"}, "noise_schedule must be linear or cosine, got 'sqrt'"),
    ],
)
def test_impossible_flags_are_refused(change: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        replace(FLAGS, **change)
