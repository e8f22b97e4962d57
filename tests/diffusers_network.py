"""diffusers' UNet2DModel of the same architecture as a UNet of ours: an independent implementation to compare with."""

from typing import Any

from diffusers import UNet2DModel
from torch import nn

from ddpm_cli.models.blocks import Block
from ddpm_cli.models.unet import UNet


def diffusers_twin(unet: UNet, options: dict[str, Any]) -> UNet2DModel:
    """diffusers' network with our weights copied into it one module after the other.

    Args:
        options: those that `unet` was built with, in full but for those that ours have by default.
    """
    twin = UNet2DModel(**_theirs(unet, options))
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in unet.parameters())
    _copy(twin.conv_in, unet.conv_in)
    _copy(twin.time_embedding.linear_1, unet.time_mlp[0])
    _copy(twin.time_embedding.linear_2, unet.time_mlp[2])
    if unet.label_embedding is not None:
        _copy(twin.class_embedding, unet.label_embedding)
    for ours, theirs in ((unet.down, twin.down_blocks), (unet.up, twin.up_blocks)):
        layers = iter(ours)
        for level in theirs:
            attentions = getattr(level, "attentions", None) or [None] * len(level.resnets)
            for resnet, attention in zip(level.resnets, attentions, strict=True):
                _copy_block(resnet, attention, next(layers))
            for resamplers in (getattr(level, "downsamplers", None), getattr(level, "upsamplers", None)):
                for resampler in resamplers or []:
                    _copy_resampler(resampler, next(layers))
        assert next(layers, None) is None
    _copy_block(twin.mid_block.resnets[0], twin.mid_block.attentions[0], unet.middle[0])
    _copy_block(twin.mid_block.resnets[1], None, unet.middle[1])
    _copy(twin.conv_norm_out, unet.norm_out)
    _copy(twin.conv_out, unet.conv_out)
    return twin.eval()


def _theirs(unet: UNet, options: dict[str, Any]) -> dict[str, Any]:
    """Their options, from ours."""
    size, mults = options["image_size"], options["channel_mults"]
    sides = [min(size) if isinstance(size, tuple) else size]
    while len(sides) < len(mults):
        sides.append(sides[-1] // 2)
    resnet = options.get("resblock_updown", False)
    plain = "Resnet{}sampleBlock2D" if resnet else "{}Block2D"
    kinds = [("Attn{}Block2D" if side in options["attention_resolutions"] else plain) for side in sides]
    scale_shift = options.get("scale_shift_norm", False)
    return {
        "sample_size": size,
        "in_channels": options["in_channels"],
        "out_channels": unet.conv_out.out_channels,
        "layers_per_block": options["num_res_blocks"],
        "block_out_channels": tuple(options["base_channels"] * mult for mult in mults),
        "down_block_types": tuple(kind.format("Down") for kind in kinds),
        "up_block_types": tuple(kind.format("Up") for kind in reversed(kinds)),
        "attention_head_dim": options.get("head_channels"),
        "norm_num_groups": options.get("norm_groups", 32),
        "attn_norm_num_groups": options.get("norm_groups", 32),  # else there is none in the middle with scale_shift
        "norm_eps": options.get("norm_eps", 1e-6),
        "flip_sin_to_cos": options.get("time_cos_first", False),
        "freq_shift": options.get("time_freq_shift", 1),
        "downsample_padding": 1 if options.get("downsample_padding") == "symmetric" else 0,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "num_class_embeds": options.get("num_classes"),
    }


def _copy(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict({k: v.view_as(target.state_dict()[k]) for k, v in source.state_dict().items()})


def _copy_block(resnet: Any, attention: Any, block: nn.Module) -> None:
    assert isinstance(block, Block)
    _copy(resnet.norm1, block.norm1)
    _copy(resnet.conv1, block.conv1)
    _copy(resnet.time_emb_proj, block.time)
    _copy(resnet.norm2, block.norm2)
    _copy(resnet.conv2, block.conv2)
    if resnet.conv_shortcut is not None:
        _copy(resnet.conv_shortcut, block.skip)
    if attention is None:
        return
    ours = block.attention
    _copy(attention.group_norm, ours.norm)
    _copy(attention.to_out[0], ours.out)
    weights, biases = ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3)
    for linear, weight, bias in zip((attention.to_q, attention.to_k, attention.to_v), weights, biases, strict=True):
        linear.load_state_dict({"weight": weight.flatten(1), "bias": bias})


def _copy_resampler(resampler: Any, layer: nn.Module) -> None:
    if isinstance(layer, Block):
        _copy_block(resampler, None, layer)
    else:
        _copy(resampler.conv, layer.conv)
