"""The networks of Ho et al. 2020, as pesser/pytorch_diffusion has converted their TensorFlow checkpoints.

It is our network under other names. The file says no sizes, but its tensors do, all but those of the image; in all of
these networks self-attention stands at 16 x 16 pixels. Their diffusion is that of the paper, section 4.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ddpm_cli.conversion.imported import ConversionError, Given, Imported
from ddpm_cli.conversion.layers import Layer, Names, default_options, network_shapes, to_ours

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION_SIZE = 16  # pixels
CIFAR10 = (1, 2, 2, 2)  # its channel_mults; what was trained on 256 x 256 pixels has six


def recognised(names: Mapping[str, object]) -> bool:
    """Whether tensors have the names of such a network."""
    return {"temb.dense.0.weight", "down.0.block.0.conv1.weight"} <= names.keys()


def read(tensors: "Mapping[str, Tensor]", where: str, given: Given) -> Imported:
    """One of these networks in our terms.

    Args:
        where: the file, for messages.
        given: the size of its images counts, instead of what the place of the self-attention says.

    Raises:
        ConversionError: if the tensors are not those of such a network.
    """
    if given.preset is not None:
        raise ConversionError(f"preset= has no effect: {where} is a network of Ho et al., whose tensors give all sizes")
    options, remarks = _options(tensors, given.image_size)
    is_cifar10 = tuple(options["channel_mults"]) == CIFAR10
    shapes = network_shapes(options)
    names = _NAMES.theirs(options, shapes)
    return Imported(
        description="of Ho et al., as pesser/pytorch_diffusion has converted it",
        unet=options,
        tensors=to_ours(tensors, names, shapes),
        groups=_groups(is_cifar10),
        remarks=(*remarks, "no file says its diffusion: taken to be that of Ho et al. 2020, section 4"),
    )


def _groups(is_cifar10: bool) -> dict[str, dict[str, Any]]:
    """Their diffusion; of the two variances, they used the larger for CIFAR-10 and the smaller for everything else."""
    ours = "ddpm_cli.diffusion."
    betas = {"timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "zero_terminal_snr": False}
    return {
        "schedule": {"_target_": f"{ours}schedule.linear"} | betas,
        "prediction": {"_target_": f"{ours}prediction.Epsilon"},
        "variance": {"_target_": f"{ours}variance.{'FixedLarge' if is_cifar10 else 'FixedSmall'}"},
        "threshold": {"_target_": f"{ours}threshold.Static"},
    }


def _options(tensors: "Mapping[str, Tensor]", image_size: int | list[int] | None) -> tuple[dict[str, Any], list[str]]:
    levels = _count(tensors, r"down\.(\d+)\.")
    widths = [_rows(tensors, f"down.{level}.block.0.conv1.weight") for level in range(levels)]
    base = _rows(tensors, "conv_in.weight")
    if not base or any(width % base for width in widths):
        raise ConversionError(f"its levels have {widths} channels, which are no multiples of the first layer's {base}")
    attended = sorted({int(found[1]) for name in tensors if (found := re.match(r"down\.(\d+)\.attn\.", name))})
    remarks, size = [], image_size
    if size is None:
        if len(attended) != 1:
            raise ConversionError("no file says the size of its images; set image_size=32 in ddpm-import")
        size = ATTENTION_SIZE * 2 ** attended[0]
        place = f"{ATTENTION_SIZE} x {ATTENTION_SIZE} pixels"
        remarks.append(f"image_size {size}: their self-attention always stands at {place}")
    shorter = size if isinstance(size, int) else min(size)
    options = default_options() | {
        "image_size": size,
        "in_channels": tensors["conv_in.weight"].shape[1],
        "base_channels": base,
        "channel_mults": [width // base for width in widths],
        "num_res_blocks": _count(tensors, r"down\.0\.block\.(\d+)\."),
        "attention_resolutions": [shorter // 2**level for level in attended],
        "dropout": 0.1 if widths == [base * mult for mult in CIFAR10] else 0.0,
    }
    return options, remarks


def _rows(tensors: "Mapping[str, Tensor]", name: str) -> int:
    """The output channels of a convolution."""
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != 4:
        raise ConversionError(f"its weights have no {name} of a convolution")
    return tensor.shape[0]


def _count(tensors: "Mapping[str, Tensor]", pattern: str) -> int:
    """How many consecutive numbers, from 0 up, follow this prefix in the names."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _place(layer: Layer) -> str:
    if layer.way == "middle":
        return f"mid.block_{layer.index + 1}"
    kind = {"down": "downsample", "up": "upsample"}[layer.way]
    return f"{layer.way}.{layer.level}.{kind if layer.resizes else f'block.{layer.index}'}"


def _attention_place(layer: Layer) -> str:
    return "mid.attn_1" if layer.way == "middle" else f"{layer.way}.{layer.level}.attn.{layer.index}"


_NAMES = Names(
    outside={
        "conv_in": "conv_in",
        "time_mlp.0": "temb.dense.0",
        "time_mlp.2": "temb.dense.1",
        "norm_out": "norm_out",
        "conv_out": "conv_out",
    },
    block={
        "norm1": "norm1",
        "conv1": "conv1",
        "time": "temb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "skip": "nin_shortcut",
        "conv": "conv",
    },
    attention={"norm": ("norm",), "qkv": ("q", "k", "v"), "out": ("proj_out",)},
    place=_place,
    attention_place=_attention_place,
)
