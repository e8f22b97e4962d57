"""OpenAI's improved-diffusion and guided-diffusion: the tensors of their `.pt` files in the terms of our UNet.

Such a file holds the tensors alone. What their names and shapes say is read from them: channels, levels, blocks, where
there is attention, labels, a learned variance. The rest are flags of the command that trained it, in its own words;
configs/preset/ has those of the published models.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ddpm_cli.checkpoint.files import Shapes
from ddpm_cli.config.shipped import configs_directory, options
from ddpm_cli.conversion.imported import ConversionError, Given, Imported
from ddpm_cli.conversion.layers import Layer, Names, layers, network_shapes, to_ours

if TYPE_CHECKING:
    from torch import Tensor

_OURS = "ddpm_cli.diffusion."
_GROUPS = 32  # of every group normalisation
_RESCALED = 1000  # what rescale_timesteps brings T to
_OF_UPSAMPLER = 6  # channels that it takes
_Noise = Literal["linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the files do not say, under the names of OpenAI's flags.

    Args:
        image_size: of a square image, in pixels.
        num_heads: of the self-attention; None: num_head_channels says it.
        num_head_channels: of one head; None: num_heads says it.
        use_new_attention_order: whether the rows of qkv are q, k and v of all heads, not the heads' q, k and v.
        dropout: the share of activations.
        diffusion_steps: T.
        noise_schedule: linear or cosine.
        rescale_timesteps: whether t was multiplied by 1000 / T.
        predict_xstart: whether x_0 was predicted, not the noise.

    Raises:
        ValueError: if a value is out of its range, or heads are said twice or not at all.
    """

    image_size: int
    num_heads: int | None
    num_head_channels: int | None
    use_new_attention_order: bool
    dropout: float
    diffusion_steps: int
    noise_schedule: _Noise
    rescale_timesteps: bool
    predict_xstart: bool

    def __post_init__(self) -> None:
        if (self.num_heads is None) == (self.num_head_channels is None):
            raise ValueError(
                "one of num_heads and num_head_channels must be a number and the other one null, "
                f"got {self.num_heads} and {self.num_head_channels}"
            )
        for name in ("image_size", "num_heads", "num_head_channels", "diffusion_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout:g}")
        if self.noise_schedule not in get_args(_Noise):
            raise ValueError(f"noise_schedule must be linear or cosine, got {self.noise_schedule!r}")


def recognised(names: Mapping[str, object]) -> bool:
    """Whether tensors have the names of one of their networks."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight"} <= names.keys()


def read(tensors: "Mapping[str, Tensor]", where: str, given: Given) -> Imported:
    """One of their networks, with its diffusion.

    Args:
        where: the file, for messages.
        given: its preset is `Flags`; its image_size counts instead of theirs.

    Raises:
        ConversionError: without a preset, and if ours cannot be that network; names the tensor with its shape.
    """
    flags = given.preset
    if not isinstance(flags, Flags):
        there_are = ", ".join(options(configs_directory())["preset"])
        raise ConversionError(
            f"{where} is from improved-diffusion or guided-diffusion, whose files do not say how they were trained: "
            f"choose preset={there_are}; preset.KEY=... changes single flags"
        )
    tensors = {name: _matrix(name, tensor) for name, tensor in tensors.items()}
    size = flags.image_size if given.image_size is None else given.image_size
    unet = _options({name: tuple(tensor.shape) for name, tensor in tensors.items()}, flags, size)
    shapes = network_shapes(unet)
    found = to_ours(tensors, _names(unet, shapes), shapes)
    if not flags.use_new_attention_order:
        found = {name: _thirds_first(name, tensor, unet) for name, tensor in found.items()}
    said = ", ".join(f"{name}={value}" for name, value in asdict(flags).items() if name != "image_size")
    return Imported(
        description="of OpenAI's improved-diffusion or guided-diffusion",
        unet=unet,
        tensors=found,
        groups=_diffusion(flags, learned=unet["learn_variance"]),
        remarks=(f"from preset=, as no file says it: {said}",),
    )


def _diffusion(flags: Flags, *, learned: bool) -> dict[str, dict[str, Any]]:
    """Nodes of the groups for training and sampling: schedule, prediction, variance."""
    steps = flags.diffusion_steps
    schedule: dict[str, Any] = {"_target_": f"{_OURS}schedule.{flags.noise_schedule}", "timesteps": steps}
    if flags.noise_schedule == "cosine":
        schedule |= {"s": 0.008, "beta_min": 0.0, "beta_max": 0.999}
    else:  # of T steps, so that at the end there is as much noise as after 1000 of Ho et al.'s
        schedule |= {"beta_start": 0.1 / steps, "beta_end": 20 / steps}
    return {
        "schedule": schedule | {"zero_terminal_snr": False},
        "prediction": {"_target_": f"{_OURS}prediction.{'X0' if flags.predict_xstart else 'Epsilon'}"},
        "variance": {"_target_": f"{_OURS}variance.{'LearnedRange' if learned else 'FixedLarge'}"},
        "threshold": {"_target_": f"{_OURS}threshold.Static"},
    }


# What the tensors say ------------------------------------------------------------------------------------------------


def _options(shapes: Shapes, flags: Flags, image_size: int | list[int]) -> dict[str, Any]:
    """Every option of our UNet."""
    first, in_channels = _shape(shapes, "input_blocks.0.0.weight", 4)[:2]
    base = _shape(shapes, "time_embed.0.weight", 2)[1]
    if in_channels == _OF_UPSAMPLER:
        raise ConversionError(
            "input_blocks.0.0.weight takes 6 channels: an upsampler, whose input is x_t and a small image; "
            "there is no such network here"
        )
    if first != base:
        raise ConversionError(
            f"its first level has {first} channels, and t is embedded in {base}: channel_mult begins with "
            f"{first / base:g}, and here it begins with 1"
        )
    if not any(name.startswith("output_blocks.") for name in shapes):
        raise ConversionError("it has no output_blocks: a classifier of noisy images, not a diffusion model")
    widths, blocks, attended, updown = _levels(shapes)
    out = _shape(shapes, "out.2.weight", 4)[0]
    labels = shapes.get("label_emb.weight")
    shorter = image_size if isinstance(image_size, int) else min(image_size)
    return {
        "image_size": image_size,
        "in_channels": in_channels,
        "base_channels": base,
        "channel_mults": [_multiple(width, base) for width in widths],
        "num_res_blocks": blocks,
        "attention_resolutions": [shorter // 2**level for level in attended],
        "dropout": flags.dropout,
        "num_heads": 1 if flags.num_heads is None else flags.num_heads,
        "head_channels": flags.num_head_channels,
        "norm_groups": _GROUPS,
        "norm_eps": 1e-5,
        "time_cos_first": True,
        "time_freq_shift": 0,
        "time_scale": _RESCALED / flags.diffusion_steps if flags.rescale_timesteps else 1.0,
        "downsample_padding": "same" if updown else "symmetric",
        "scale_shift_norm": _shape(shapes, "middle_block.0.emb_layers.1.weight", 2)[0] == 2 * widths[-1],
        "resblock_updown": updown,
        "num_classes": None if labels is None else labels[0],
        "null_label": labels is None,
        "learn_variance": out == 2 * in_channels,
    }


def _levels(shapes: Shapes) -> tuple[list[int], int, list[int], bool]:
    """Channels of each level, blocks per level, levels with attention, and whether residual blocks resize.

    What resizes on the way up stands behind a level's last block, in the same stage: the first such stage tells how
    many blocks a level has.
    """
    found = [match for match in map(_OUTPUT.match, shapes) if match is not None]
    stages = {int(match["stage"]) for match in found}
    resizing = {int(match["stage"]): match["kind"] for match in found if match["kind"] is not None}
    per_level = min(resizing, default=len(stages) - 1) + 1
    if len(stages) % per_level != 0:
        raise ConversionError(f"it has {len(stages)} output_blocks, of which each level would have {per_level}")
    blocks = per_level - 1
    first = [f"input_blocks.{1 + level * per_level}" for level in range(len(stages) // per_level)]  # of each level
    widths = [_shape(shapes, f"{stage}.0.in_layers.2.weight", 4)[0] for stage in first]
    attended = [level for level, stage in enumerate(first) if f"{stage}.1.qkv.weight" in shapes]
    return widths, blocks, attended, "in_layers" in resizing.values()


_OUTPUT = re.compile(r"output_blocks\.(?P<stage>\d{1,4})\.(?:0\.|[12]\.(?P<kind>conv|in_layers)\.|.)")


def _multiple(width: int, base: int) -> int:
    if width % base != 0:
        raise ConversionError(f"a level has {width} channels, {width / base:g} times the {base} of the first")
    return width // base


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != dimensions or 0 in shape:
        found = "missing" if shape is None else str(list(shape))
        raise ConversionError(f"{name} is {found}: not a network of improved-diffusion or guided-diffusion")
    return shape


# Tensors -------------------------------------------------------------------------------------------------------------


def _names(options: Mapping[str, Any], shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Their name for every tensor, by our name."""
    per_level = options["num_res_blocks"] + 1
    attended = {layer.name for layer in layers(options) if f"{layer.name}.attention.qkv.weight" in shapes}
    numbers = {layer.name: number for number, layer in enumerate(layers(options), start=1)}

    def place(layer: Layer) -> str:
        if layer.way == "middle":
            return f"middle_block.{2 * layer.index}"
        if layer.way == "down":
            return f"input_blocks.{numbers[layer.name]}.0"
        if not layer.resizes:
            return f"output_blocks.{layer.stage * per_level + layer.index}.0"
        before = f"up.{int(layer.name.removeprefix('up.')) - 1}"
        return f"output_blocks.{(layer.stage + 1) * per_level - 1}.{2 if before in attended else 1}"

    def attention_place(layer: Layer) -> str:
        return "middle_block.1" if layer.way == "middle" else f"{place(layer).removesuffix('.0')}.1"

    names = Names(
        outside=_OUTSIDE, block=_BLOCK, attention=_ATTENTION, place=place, attention_place=attention_place
    ).theirs(options, shapes)
    return {ours: tuple(map(_as_resized, theirs)) for ours, theirs in names.items()}


def _as_resized(name: str) -> str:
    """Their name for a resizing convolution: op if it halves the image, conv if it doubles it."""
    return name.replace(".0.conv.", ".0.op.") if name.startswith("input_blocks.") else name


_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_mlp.0": "time_embed.0",
    "time_mlp.2": "time_embed.2",
    "label_embedding": "label_emb",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
    "conv": "conv",
}
_ATTENTION = {"norm": ("norm",), "qkv": ("qkv",), "out": ("proj_out",)}


def _matrix(name: str, tensor: "Tensor") -> "Tensor":
    """The 1 x 1 convolutions of attention, which are one-dimensional there, as matrices."""
    of_attention = name.rpartition(".")[0].endswith((".qkv", ".proj_out"))
    return tensor[..., 0] if of_attention and tensor.ndim == 3 and tensor.shape[2] == 1 else tensor


def _thirds_first(name: str, tensor: "Tensor", options: Mapping[str, Any]) -> "Tensor":
    """The rows of qkv in our order: all heads' q, then k, then v; theirs are q, k and v head by head."""
    if ".attention.qkv." not in name:
        return tensor
    channels = len(tensor) // 3
    by_channels = options["head_channels"]
    heads = options["num_heads"] if by_channels is None else channels // by_channels
    return tensor.unflatten(0, (heads, 3, channels // heads)).transpose(0, 1).flatten(0, 2)
