"""The config of diffusers' UNet2DModel in the terms of our UNet's options, and the other way round.

Theirs spells out per level what ours says once. Its keys are those of config.json as diffusers 0.42 writes it; of what
a file leaves out the defaults of that version count.
"""

from collections.abc import Mapping
from typing import Any

from ddpm_cli.conversion.imported import ConversionError
from ddpm_cli.conversion.layers import default_options
from ddpm_cli.conversion.said import Said

CLASS = "UNet2DModel"
CONFIG_FILE = "config.json"

_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# What ours has one of.
_ONLY: dict[str, tuple] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
_PADDING = {0: "same", 1: "symmetric"}
_SCALE_SHIFT = {"default": False, "scale_shift": True}
_RESIZING = {"conv": False, "resnet": True}  # whether residual blocks resize
# By name of a block without its direction: whether it has self-attention, and whether residual blocks resize; None: as
# downsample_type and upsample_type say.
_BLOCKS: dict[str, dict[str, tuple[bool, bool | None]]] = {
    "down_block_types": {
        "DownBlock2D": (False, False),
        "AttnDownBlock2D": (True, None),
        "ResnetDownsampleBlock2D": (False, True),
    },
    "up_block_types": {
        "UpBlock2D": (False, False),
        "AttnUpBlock2D": (True, None),
        "ResnetUpsampleBlock2D": (False, True),
    },
}
_OLD_BLOCK = "UNetRes"  # what the first versions wrote before a block's name


def to_options(
    config: Mapping[str, Any], *, where: str = CONFIG_FILE, image_size: int | list[int] | None = None
) -> dict[str, Any]:
    """Every option of our UNet, from a UNet2DModel's config.

    With labels it says `null_label: False`; that the last of them is our "no label" only the weights say, see
    `with_null_label`.

    Args:
        where: names the file in messages.
        image_size: H = W or [H, W] in pixels, instead of the config's sample_size; None: that counts.

    Raises:
        ConversionError: if ours cannot be that network; names the key and its value.
    """
    said = Said(config, where, _DEFAULTS)
    written_by = said.any("_class_name")
    if written_by not in (None, CLASS):
        raise said.refused("_class_name", written_by, f"of diffusers' networks only {CLASS} can be imported")
    for key, allowed in _ONLY.items():
        said.one_of(key, dict.fromkeys(allowed))
    widths = said.list_of(int, "block_out_channels")
    sizes = _sizes(said, image_size)
    attention, resblock_updown = _levels(said, len(widths))
    groups, scale_shift = said.whole("norm_num_groups"), said.one_of("resnet_time_scale_shift", _SCALE_SHIFT)
    _check_middle(said, groups, scale_shift)
    padding = said.one_of("downsample_padding", _PADDING)
    options = {
        **sizes,
        **_widths(said, widths),
        **_channels(said),
        "num_res_blocks": said.whole("layers_per_block"),
        "attention_resolutions": [_shorter(sizes["image_size"]) // 2**level for level in attention],
        "dropout": said.number("dropout"),
        "num_heads": 1,
        "head_channels": said.whole_or_none("attention_head_dim"),
        "norm_groups": groups,
        "norm_eps": said.number("norm_eps"),
        "time_cos_first": said.truth("flip_sin_to_cos"),
        "time_freq_shift": said.whole("freq_shift"),
        "time_scale": 1.0,
        "downsample_padding": "same" if resblock_updown else padding,
        "scale_shift_norm": scale_shift,
        "resblock_updown": resblock_updown,
    }
    said.any("num_train_timesteps")  # of a learned time embedding, which has been refused
    if said.rest():
        first = said.rest()[0]
        raise said.refused(first, said.any(first), "this version knows no such network option")
    return options


def from_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the UNet2DModel that is our UNet with these options; what they leave out has our default.

    Of `num_classes` with `null_label` it gets one embedding more, the last: "no label".

    Raises:
        ConversionError: if diffusers has no such network; names the option, its value and the reason.
    """
    options = default_options() | dict(options)
    mults, base = list(options["channel_mults"]), options["base_channels"]
    if mults[0] != 1:
        raise _no_such(
            "channel_mults", mults, "there the first layer has the channels of the first level: it begins with 1"
        )
    if options["time_scale"] != 1:
        raise _no_such("time_scale", options["time_scale"], "t is embedded as it is there")
    size, levels = options["image_size"], len(mults)
    shorter, resnet = _shorter(size), options["resblock_updown"]
    attended = [shorter // 2**level in options["attention_resolutions"] for level in range(levels)]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnet else ("DownBlock2D", "UpBlock2D")
    labels = options["num_classes"]
    return {
        "_class_name": CLASS,
        "sample_size": size if isinstance(size, int) else list(size),
        "in_channels": options["in_channels"],
        "out_channels": options["in_channels"] * (2 if options["learn_variance"] else 1),
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "freq_shift": options["time_freq_shift"],
        "flip_sin_to_cos": options["time_cos_first"],
        "down_block_types": ["AttnDownBlock2D" if has else plain[0] for has in attended],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["AttnUpBlock2D" if has else plain[1] for has in reversed(attended)],
        "block_out_channels": [base * mult for mult in mults],
        "layers_per_block": options["num_res_blocks"],
        "mid_block_scale_factor": 1,
        "downsample_padding": {meaning: key for key, meaning in _PADDING.items()}[options["downsample_padding"]],
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "dropout": options["dropout"],
        "act_fn": "silu",
        "attention_head_dim": _head_channels(options, attended),
        "norm_num_groups": options["norm_groups"],
        "attn_norm_num_groups": options["norm_groups"],  # else the middle has no such norm with scale_shift
        "norm_eps": options["norm_eps"],
        "resnet_time_scale_shift": "scale_shift" if options["scale_shift_norm"] else "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": None if labels is None else labels + (1 if options["null_label"] else 0),
        "num_train_timesteps": None,
    }


def _no_such(option: str, value: object, why: str) -> ConversionError:
    return ConversionError(f"model.{option} is {value}, which diffusers' {CLASS} cannot be: {why}")


def _sizes(said: Said, image_size: int | list[int] | None) -> dict[str, Any]:
    found = said.any("sample_size")
    size = found if image_size is None else image_size
    if size is None:
        raise ConversionError(
            "its files do not say the size of the images; set image_size=64, or [height,width], in ddpm-import"
        )
    sides = list(size) if isinstance(size, list | tuple) else [size]
    if len(sides) not in (1, 2) or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise said.refused("sample_size", found, "expected a number of pixels, or height and width")
    same = len(set(sides)) == 1
    return {"image_size": sides[0] if same else sides}


def _shorter(image_size: int | list[int]) -> int:
    return image_size if isinstance(image_size, int) else min(image_size)


def _widths(said: Said, widths: list[int]) -> dict[str, Any]:
    base, dim = widths[0], said.any("time_embedding_dim")
    if base < 1 or any(width % base != 0 for width in widths):
        raise said.refused("block_out_channels", widths, "here all are multiples of the first level's channels")
    if dim not in (None, 4 * base):
        raise said.refused("time_embedding_dim", dim, f"here it is 4 times the first level's channels, {4 * base}")
    return {"base_channels": base, "channel_mults": [width // base for width in widths]}


def _channels(said: Said) -> dict[str, Any]:
    """The input and output channels, and the labels."""
    channels, answered = said.whole("in_channels"), said.whole("out_channels")
    labels = said.whole_or_none("num_class_embeds")
    if answered not in (channels, 2 * channels):
        why = f"here a network has as many output channels as input channels, {channels}, or twice as many"
        raise said.refused("out_channels", answered, why)
    return {
        "in_channels": channels,
        "learn_variance": answered != channels,
        "num_classes": labels,
        "null_label": labels is None,  # without labels it has no effect, and is what it always was
    }


def _levels(said: Said, levels: int) -> tuple[list[int], bool]:
    """Which levels have self-attention, and whether residual blocks resize between them."""
    by_type = {
        "down_block_types": said.one_of("downsample_type", _RESIZING),
        "up_block_types": said.one_of("upsample_type", _RESIZING),
    }
    found: dict[str, list[tuple[bool, bool]]] = {}
    for key, resnet in by_type.items():
        names = said.list_of(str, key)
        if len(names) != levels:
            raise said.refused(key, names, f"expected {levels}, as many as block_out_channels")
        kinds = [_BLOCKS[key].get(name.removeprefix(_OLD_BLOCK)) for name in names]
        for name, kind in zip(names, kinds, strict=True):
            if kind is None:
                raise said.refused(key, name, f"here it can be {' or '.join(_BLOCKS[key])} only")
        found[key] = [(kind[0], resnet if kind[1] is None else kind[1]) for kind in kinds if kind is not None]
    down, up = found["down_block_types"], found["up_block_types"][::-1]
    if [has for has, _ in down] != [has for has, _ in up]:
        raise ConversionError(
            "down_block_types and up_block_types do not have self-attention at the same levels: here they always do"
        )
    resizing = {resnet for level, (_, resnet) in enumerate(down) if level < levels - 1}
    resizing |= {resnet for level, (_, resnet) in enumerate(up) if level > 0}
    if len(resizing) > 1:
        raise ConversionError(
            "down_block_types, up_block_types, downsample_type, upsample_type: some levels are resized by convolutions "
            "and others by residual blocks: here all levels use the same"
        )
    return [level for level, (has, _) in enumerate(down) if has], True in resizing


def _check_middle(said: Said, groups: int, scale_shift: bool) -> None:
    """Check that the middle's self-attention has a norm, as ours has; diffusers leaves it out in one case."""
    own = said.any("attn_norm_num_groups")
    if own not in (None, groups):
        raise said.refused("attn_norm_num_groups", own, f"here every norm has norm_num_groups, {groups}")
    if own is None and scale_shift:
        raise said.refused(
            "attn_norm_num_groups",
            own,
            "with scale_shift the middle's attention has no norm then; here it has one",
        )


def _head_channels(options: Mapping[str, Any], attended: list[bool]) -> int | None:
    """The channels of an attention head, for which diffusers has one number for all levels."""
    heads = options["num_heads"]
    if options["head_channels"] is not None or heads == 1:
        return options["head_channels"]
    widths = [options["base_channels"] * mult for mult in options["channel_mults"]]
    widths = {width for width, has in zip(widths, attended, strict=True) if has} | {widths[-1]}
    if len(widths) > 1:
        channels = ", ".join(str(width // heads) for width in sorted(widths))
        raise _no_such(
            "num_heads", heads, f"heads are equally wide at all levels there, and these have {channels} channels"
        )
    return widths.pop() // heads
