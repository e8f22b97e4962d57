"""diffusers' networks in our terms, and ours in theirs: the same function, and bit for bit the same weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from other_networks import SMALL, VARIANTS, of_diffusers, ours, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_cli.conversion.diffusers_unet import from_options, tensor_names, to_diffusers, to_options
from ddpm_cli.conversion.imported import ConversionError, Given
from ddpm_cli.conversion.read import read_source

TIMES = (0, 1, 250, 998, 999)
UNET = "unet/diffusion_pytorch_model.safetensors"


def assert_same_function(theirs: UNet2DModel, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    network, labels = ours(options, tensors), theirs.config.num_class_embeds
    size = theirs.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(2, theirs.config.in_channels, height, width, generator=torch.Generator().manual_seed(1))
    given = None if labels is None else torch.tensor([0, labels - 1])
    for t in TIMES:
        with torch.no_grad():
            expected = theirs(x, t, given).sample
            found = network(x, torch.tensor([t, t]), _with_ours(given, options))
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _with_ours(labels: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """Their labels as ours: the last of them may be our -1."""
    if labels is None or not options["null_label"]:
        return labels
    return torch.where(labels == options["num_classes"], -1, labels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_of_theirs_is_the_same_function_here(variant: str, tmp_path: Path):
    theirs = saved(tmp_path / "model", **VARIANTS[variant])
    found = read_source(tmp_path / "model")
    assert_same_function(theirs, found.unet, found.tensors)
    assert found.unet["null_label"] is (theirs.config.num_class_embeds is None)


def test_they_agree_at_every_t(tmp_path: Path):
    theirs = saved(tmp_path / "model", **next(iter(VARIANTS.values())))
    found, t = read_source(tmp_path / "model"), torch.arange(1000)
    x = torch.randn(1000, theirs.config.in_channels, theirs.config.sample_size, theirs.config.sample_size)
    with torch.no_grad():
        expected, out = theirs(x, t).sample, ours(found.unet, found.tensors)(x, t)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_and_back_it_is_the_same_network_bit_for_bit(variant: str, tmp_path: Path):
    theirs = saved(tmp_path / "model", **VARIANTS[variant])
    found = read_source(tmp_path / "model")
    config = from_options(found.unet)
    again = UNet2DModel(**{key: value for key, value in config.items() if not key.startswith("_")})
    tensors = to_diffusers(found.tensors, found.unet)
    again.load_state_dict(tensors, strict=True)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in theirs.state_dict().items())
    assert to_options(config) == found.unet
    named = [name for names in tensor_names(found.unet).values() for name in names]
    assert sorted(named) == sorted(theirs.state_dict())


def test_the_default_network_of_theirs_needs_nothing_said():
    with torch.device("meta"):
        theirs = UNet2DModel(sample_size=64)
    options = to_options({"_class_name": "UNet2DModel", "sample_size": 64})
    assert options == to_options(dict(theirs.config))
    assert options["channel_mults"] == [1, 2, 3, 4]
    assert {name for names in tensor_names(options).values() for name in names} == set(theirs.state_dict())


def test_googles_cifar10_network_is_our_default_one():
    """Its config.json, as it stands on the Hub since 2022."""
    found = to_options(
        {
            "_class_name": "UNet2DModel",
            "_diffusers_version": "0.0.4",
            "act_fn": "silu",
            "attention_head_dim": None,
            "block_out_channels": [128, 256, 256, 256],
            "center_input_sample": False,
            "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "in_channels": 3,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-06,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 32,
            "time_embedding_type": "positional",
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        }
    )
    assert found == to_options(from_options({"dropout": 0.0}))
    assert from_options({})["block_out_channels"] == [128, 256, 256, 256]


# Labels ---------------------------------------------------------------------------------------------------------------


def test_a_last_label_of_zeros_is_no_label_here(tmp_path: Path):
    theirs = of_diffusers(num_class_embeds=4)
    with torch.no_grad():
        theirs.get_parameter("class_embedding.weight")[-1] = 0
    theirs.save_pretrained(tmp_path / "model")
    found = read_source(tmp_path / "model")
    assert (found.unet["num_classes"], found.unet["null_label"]) == (3, True)
    assert any('"no label"' in remark for remark in found.remarks)
    assert_same_function(theirs, found.unet, found.tensors)
    tensors = to_diffusers(found.tensors, found.unet)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in theirs.state_dict().items())


# Where the files lie --------------------------------------------------------------------------------------------------


def _flat(model: Path) -> Path:
    """As the first repositories on the Hub have it: everything in one directory."""
    flat = shutil.copytree(model / "unet", model.parent / "flat")
    shutil.copy(model / "scheduler" / "scheduler_config.json", flat)
    shutil.copy(model / "model_index.json", flat)
    return flat


def _with_old_names(model: Path) -> Path:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(model / UNET)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    assert any(".attentions.0.query.weight" in name for name in tensors)
    save_file(tensors, model / UNET)
    return model


def _pickled(model: Path) -> Path:
    torch.save(load_file(model / UNET), model / "unet" / "diffusion_pytorch_model.bin")
    (model / UNET).unlink()
    return model


def _pickled_as_before_2020(model: Path) -> Path:
    file = model / "unet" / "diffusion_pytorch_model.bin"
    torch.save(load_file(model / UNET), file, _use_new_zipfile_serialization=False)
    (model / UNET).unlink()
    return model


def _in_parts(model: Path) -> Path:
    (model / UNET).unlink()
    of_diffusers().save_pretrained(model / "unet", max_shard_size="20KB")
    assert len(list((model / "unet").glob("*-of-*.safetensors"))) > 2
    return model


def _in_half_precision(model: Path) -> Path:
    save_file({name: tensor.half() for name, tensor in load_file(model / UNET).items()}, model / UNET)
    return model


def _linked(model: Path) -> Path:
    """As in the Hub's cache, where files are links to what they hold."""
    blobs = model.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(blobs / str(number))
    return model


def _average(model: Path) -> Path:
    """As diffusers' training keeps its EMA beside a checkpoint."""
    file = model / "unet" / "config.json"
    of_average = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "power": 0.75, "use_ema_warmup": True}
    more = of_average | {"update_after_step": 0, "optimization_step": 1234}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return model


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "flat": _flat,
    "old names of attention": _with_old_names,
    "bin": _pickled,
    "bin of before 2020": _pickled_as_before_2020,
    "in parts": _in_parts,
    "half precision": _in_half_precision,
    "links": _linked,
    "an average": _average,
    "the network's own directory": lambda model: model / "unet",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_however_the_files_lie(layout: str, tmp_path: Path):
    saved(tmp_path / "model")
    expected = read_source(tmp_path / "model")
    found = read_source(LAYOUTS[layout](tmp_path / "model"))
    assert found.unet == expected.unet
    assert found.groups == expected.groups
    assert found.step == (1234 if layout == "an average" else 0)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == torch.float32
        assert found.tensors[name].equal(tensor.half().float() if layout == "half precision" else tensor)


def test_the_size_of_the_images_can_be_said(tmp_path: Path):
    of_diffusers(sample_size=None).save_pretrained(tmp_path / "model")
    with pytest.raises(ConversionError, match="do not say the size of the images; set image_size=64"):
        read_source(tmp_path / "model")
    found = read_source(tmp_path / "model", Given(image_size=[16, 24]))
    assert (found.unet["image_size"], found.unet["attention_resolutions"]) == ([16, 24], [8])
    assert found.groups == {}, "nobody says its diffusion"


# What cannot be -------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"_class_name": "UNet2DConditionModel"}, '_class_name is "UNet2DConditionModel"'),
    "centred": ({"center_input_sample": True}, "center_input_sample is true: here it can be false only"),
    "fourier": ({"time_embedding_type": "fourier"}, 'time_embedding_type is "fourier"'),
    "activation": ({"act_fn": "mish"}, 'act_fn is "mish": here it can be "silu" or "swish" only'),
    "middle": ({"mid_block_type": None}, "mid_block_type is null"),
    "no attention": ({"add_attention": False}, "add_attention is false"),
    "scaled": ({"mid_block_scale_factor": 2**0.5}, "mid_block_scale_factor is 1.41"),
    "class timestep": ({"class_embed_type": "timestep"}, 'class_embed_type is "timestep"'),
    "padding": ({"downsample_padding": 2}, "downsample_padding is 2"),
    "block": ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, 'down_block_types is "SkipDownBlock2D"'),
    "too few": ({"up_block_types": ["UpBlock2D"]}, "up_block_types is .*expected 2"),
    "lopsided": ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "do not have self-attention at the same levels"),
    "mixed": ({"downsample_type": "resnet", "down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types":
              ["AttnUpBlock2D"] * 2}, "some levels are resized by convolutions and others by residual blocks"),
    "widths": ({"block_out_channels": [8, 12]}, r"block_out_channels is \[8, 12\]: .* multiples of the first"),
    "time": ({"time_embedding_dim": 64}, "time_embedding_dim is 64: here it is .* 32"),
    "out": ({"out_channels": 4}, "out_channels is 4: here a network has as many output channels as input channels, 3"),
    "norm": ({"attn_norm_num_groups": 2}, "attn_norm_num_groups is 2"),
    "no norm": ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups is null: with scale_shift"),
    "unknown": ({"sparkle": 3}, "sparkle is 3: this version knows no such network option"),
    "text": ({"layers_per_block": "2"}, 'layers_per_block is "2": expected a whole number'),
    "true": ({"in_channels": True}, "in_channels is true: expected a whole number"),
    "nan": ({"norm_eps": float("nan")}, "norm_eps is NaN: expected a number"),
    "list": ({"flip_sin_to_cos": [1]}, r"flip_sin_to_cos is \[1\]: expected true or false"),
    "side": ({"sample_size": [8, 8, 8]}, r"sample_size is \[8, 8, 8\]"),
    "labels": ({"num_class_embeds": 0}, "num_class_embeds is 0"),
    "head": ({"attention_head_dim": 5}, "ours cannot be its network: model: .*head_channels"),
    "groups": ({"norm_num_groups": 3}, "ours cannot be its network: model: norm_groups 3 does not divide"),
    "odd": ({"sample_size": 9}, "ours cannot be its network: model: image_size 9 cannot be halved"),
    "giant": ({"block_out_channels": [2**20, 2**21]}, "model.base_channels: no checkpoint may hold this"),
    "deep": ({"layers_per_block": 10**6}, "model.num_res_blocks: no checkpoint may hold this"),
    "many labels": ({"num_class_embeds": 2**40}, "model.num_classes: no checkpoint may hold this"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_ours_cannot_be_is_refused_by_its_key_and_value(case: str, tmp_path: Path):
    change, says = REFUSED[case]
    saved(tmp_path)
    file = tmp_path / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConversionError, match=says):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channel_mults": [2, 4]}, r"model.channel_mults is \[2, 4\], which diffusers' UNet2DModel cannot be"),
        ({"time_scale": 0.25}, "model.time_scale is 0.25"),
        ({"num_heads": 2, "attention_resolutions": [8, 4]}, "model.num_heads is 2.*these have 4, 8 channels"),
    ],
)
def test_what_diffusers_cannot_be_is_refused_by_our_option(change: dict, says: str):
    options = to_options(SMALL | {"_class_name": "UNet2DModel"})
    options |= {"head_channels": None} | change
    with pytest.raises(ConversionError, match=says):
        from_options(options)


def test_heads_of_one_width_can_be_said_either_way():
    options = to_options(SMALL)
    assert from_options(options | {"head_channels": None, "num_heads": 4})["attention_head_dim"] == 4
    assert from_options(options | {"head_channels": None})["attention_head_dim"] is None


def _without(tensors: dict[str, Tensor]) -> None:
    del tensors["mid_block.resnets.0.conv1.weight"]


def _with_more(tensors: dict[str, Tensor]) -> None:
    tensors["vae.decoder.weight"] = torch.zeros(2, 3)


def _narrow(tensors: dict[str, Tensor]) -> None:
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:4].contiguous()


def _of_integers(tensors: dict[str, Tensor]) -> None:
    tensors["conv_out.bias"] = tensors["conv_out.bias"].int()


def _with_nan(tensors: dict[str, Tensor]) -> None:
    tensors["conv_out.bias"][1] = float("nan")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without, "its weights have no mid_block.resnets.0.conv1.weight, which the network it describes has"),
        (_with_more, r"the network it describes does not have vae.decoder.weight \[2, 3\]"),
        (_narrow, r"conv_in.weight is \[4, 3, 3, 3\], the network it describes has \[8, 3, 3, 3\] there"),
        (_of_integers, "conv_out.bias holds int32, which cannot be weights"),
        (_with_nan, r"conv_out.bias \[3\] holds values that are not finite"),
    ],
)
def test_every_tensor_has_its_place_or_is_refused(change: Callable[[dict], None], says: str, tmp_path: Path):
    saved(tmp_path)
    tensors = load_file(tmp_path / UNET)
    change(tensors)
    save_file(tensors, tmp_path / UNET)
    with pytest.raises(ConversionError, match=says):
        read_source(tmp_path)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path):
    model = _in_parts(saved(tmp_path / "model") and tmp_path / "model")
    first, second = sorted((model / "unet").glob("*-of-*.safetensors"))[:2]
    save_file(load_file(second) | load_file(first), second)
    with pytest.raises(ConversionError, match=f"{second.name} holds tensors that another part of .* also holds"):
        read_source(model)


def test_a_pipeline_of_more_than_a_network_is_refused(tmp_path: Path):
    saved(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ConversionError, match="also has vqvae"):
        read_source(tmp_path)
