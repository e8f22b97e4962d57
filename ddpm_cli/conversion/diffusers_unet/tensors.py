"""The tensors of diffusers' UNet2DModel under our UNet's names, and the other way round.

Ours has one tensor for queries, keys and values; and a row less in the table of labels where the last is "no label".
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ddpm_cli.checkpoint.files import Shapes
from ddpm_cli.conversion.layers import Layer, Names, default_options, network_shapes, to_theirs
from ddpm_cli.conversion.layers import to_ours as renamed

if TYPE_CHECKING:
    from torch import Tensor


def tensor_names(options: Mapping[str, Any], shapes: Shapes | None = None) -> dict[str, tuple[str, ...]]:
    """diffusers' name for every tensor of the network, by our name; `qkv` is three of theirs, in that order."""
    return _NAMES.theirs(options, network_shapes(options) if shapes is None else shapes)


def to_ours(tensors: "Mapping[str, Tensor]", options: Mapping[str, Any]) -> "dict[str, Tensor]":
    """A UNet2DModel's tensors under our names, in float32; those of `null_label` are without the last label.

    Raises:
        ConversionError: for a tensor that is missing, is left over, or is not of the network of these options.
    """
    options = default_options() | dict(options)
    shapes = network_shapes(options)
    tensors = {_present_name(name): tensor for name, tensor in tensors.items()}
    if options["num_classes"] is not None and options["null_label"]:
        tensors |= {name: table[:-1] for name, table in tensors.items() if name == _LABELS_THERE}
    return renamed(tensors, tensor_names(options, shapes), shapes)


def to_diffusers(tensors: "Mapping[str, Tensor]", options: Mapping[str, Any]) -> "dict[str, Tensor]":
    """Our network's tensors as a UNet2DModel has them; with `null_label` there is a last label, of zeros."""
    import torch

    options = default_options() | dict(options)
    found = to_theirs(tensors, tensor_names(options), flat=lambda name: ".attentions." in name)
    if options["num_classes"] is not None and options["null_label"]:
        table = found[_LABELS_THERE]
        found[_LABELS_THERE] = torch.cat([table, torch.zeros_like(table[:1])])
    return found


def with_null_label(options: dict[str, Any], tensors: "Mapping[str, Tensor]") -> dict[str, Any]:
    """The options of a network with labels, whose last one is our "no label" if it is exactly zero, as we export it."""
    table = tensors.get(_LABELS_THERE)
    if options["num_classes"] in (None, 1) or table is None or len(table) != options["num_classes"] or table[-1].any():
        return options
    return options | {"num_classes": options["num_classes"] - 1, "null_label": True}


def _place(layer: Layer) -> str:
    if layer.way == "middle":
        return f"mid_block.resnets.{layer.index}"
    kind = {"down": "downsamplers", "up": "upsamplers"}[layer.way]
    return f"{_level(layer)}.{f'{kind}.0' if layer.resizes else f'resnets.{layer.index}'}"


def _attention_place(layer: Layer) -> str:
    return f"{_level(layer)}.attentions.{layer.index}"


def _level(layer: Layer) -> str:
    if layer.way == "middle":
        return "mid_block"
    return f"{layer.way}_blocks.{layer.stage}"


def _present_name(name: str) -> str:
    """diffusers' name for a tensor; attention had other names before version 0.15."""
    place, _, part = name.rpartition(".attentions.")
    if not place:
        return name
    index, _, rest = part.partition(".")
    old, _, kind = rest.partition(".")
    return f"{place}.attentions.{index}.{_OLD_ATTENTION.get(old, old)}.{kind}"


_LABELS_THERE = "class_embedding.weight"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NAMES = Names(
    outside={
        "conv_in": "conv_in",
        "time_mlp.0": "time_embedding.linear_1",
        "time_mlp.2": "time_embedding.linear_2",
        "label_embedding": "class_embedding",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    },
    block={
        "norm1": "norm1",
        "conv1": "conv1",
        "time": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "skip": "conv_shortcut",
        "conv": "conv",  # of a convolution that resizes
    },
    attention={"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)},
    place=_place,
    attention_place=_attention_place,
)
