"""The layers of our UNet in their order, and its tensors under the names that another program gives them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ddpm_cli.checkpoint.files import Shapes
from ddpm_cli.checkpoint.validate import check_node
from ddpm_cli.config.errors import ConfigError, shown
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.conversion.imported import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

UNET = "ddpm_cli.models.unet.UNet"
SHOWN = 3  # tensors that a message names


@dataclass(frozen=True)
class Layer:
    """A residual block, with its self-attention if it has one, or what resizes between two levels.

    Args:
        name: of its tensors in our UNet, but for what follows: "down.3".
        way: down to the lowest resolution, at it, or back up.
        level: 0 is the image's resolution.
        stage: the same level counted in the order of the way: on the way up 0 is the lowest resolution.
        index: of the blocks of a level, or of the middle, from 0 on in the order in which they are run.
        resizes: what comes after a level's blocks, instead of one of them.
    """

    name: str
    way: Literal["down", "middle", "up"]
    level: int
    stage: int
    index: int = 0
    resizes: bool = False


def layers(options: Mapping[str, Any]) -> Iterator[Layer]:
    """The layers of the network that these options describe, in order of execution."""
    levels, blocks = len(options["channel_mults"]), options["num_res_blocks"]
    numbers = iter(range(levels * (blocks + 1)))
    for level in range(levels):
        for index in range(blocks):
            yield Layer(f"down.{next(numbers)}", "down", level, level, index)
        if level < levels - 1:
            yield Layer(f"down.{next(numbers)}", "down", level, level, resizes=True)
    for index in range(2):
        yield Layer(f"middle.{index}", "middle", levels - 1, 0, index)
    numbers = iter(range(levels * (blocks + 2)))
    for stage, level in enumerate(reversed(range(levels))):
        for index in range(blocks + 1):
            yield Layer(f"up.{next(numbers)}", "up", level, stage, index)
        if level > 0:
            yield Layer(f"up.{next(numbers)}", "up", level, stage, resizes=True)


@dataclass(frozen=True, kw_only=True)
class Names:
    """Another program's names for the tensors of a network like ours, without `.weight` and `.bias`.

    Args:
        outside: those outside the layers, by our names.
        block: the parts of a residual block, by our names.
        attention: the parts of a self-attention, by our names; `qkv` is three of theirs.
        place: where a block is, or what resizes.
        attention_place: where a block's self-attention is.
    """

    outside: Mapping[str, str]
    block: Mapping[str, str]
    attention: Mapping[str, tuple[str, ...]]
    place: Callable[[Layer], str]
    attention_place: Callable[[Layer], str]

    def theirs(self, options: Mapping[str, Any], shapes: Shapes) -> dict[str, tuple[str, ...]]:
        """The other program's names for every tensor in `shapes`, by our name: one, or several that make it up."""
        places = {layer.name: layer for layer in layers(options)}
        return {name: self._of(name, places) for name in shapes}

    def _of(self, name: str, places: Mapping[str, Layer]) -> tuple[str, ...]:
        stem, _, kind = name.rpartition(".")
        if stem in self.outside:
            return (f"{self.outside[stem]}.{kind}",)
        way, number, part = stem.split(".", 2)
        layer = places[f"{way}.{number}"]
        if part.startswith("attention."):
            parts = self.attention[part.removeprefix("attention.")]
            return tuple(f"{self.attention_place(layer)}.{theirs}.{kind}" for theirs in parts)
        return (f"{self.place(layer)}.{self.block[part]}.{kind}",)


def default_options() -> dict[str, Any]:
    """The default of every option of our UNet: DDPM's."""
    from ddpm_cli.models.unet import UNet as Network

    return {parameter.name: parameter.default for parameter in inspect.signature(Network).parameters.values()}


def network_shapes(options: Mapping[str, Any]) -> Shapes:
    """The shapes of our network's tensors by name; no memory is taken for them.

    Raises:
        ConversionError: if there can be no such network, or it is too large for a checkpoint.
    """
    import torch

    node = {"_target_": UNET, **options}
    try:
        check_node("model", node)
        with torch.device("meta"):
            model = instantiate(node, "model")
    except ConfigError as error:
        raise ConversionError(f"ours cannot be its network: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def to_ours(
    tensors: "Mapping[str, Tensor]", names: Mapping[str, tuple[str, ...]], shapes: Shapes
) -> "dict[str, Tensor]":
    """Tensors of another program under our names, in float32; all of them must be used.

    Args:
        tensors: by their names.
        names: by each of ours, theirs that it is made of, one above the other.
        shapes: of ours. A 1 x 1 convolution may be a matrix there.

    Raises:
        ConversionError: if one is missing, has another shape, is left over, or holds values that are not finite; names
            each with its shape.
    """
    import torch

    wanted = {theirs for parts in names.values() for theirs in parts}
    missing, left = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
    if missing:
        raise ConversionError(f"its weights have no {_listed(missing)}, which the network it describes has")
    if left:
        with_shapes = [f"{name} {list(tensors[name].shape)}" for name in left]
        raise ConversionError(f"the network it describes does not have {_listed(with_shapes)}")
    found = {}
    for ours, parts in names.items():
        shape = shapes[ours]
        expected = (shape[0] // len(parts), *shape[1:])
        for name in parts:
            _check(name, tensors[name], expected)
        found[ours] = torch.cat([tensors[name].float().reshape(expected) for name in parts])
    return found


def to_theirs(
    tensors: "Mapping[str, Tensor]", names: Mapping[str, tuple[str, ...]], *, flat: Callable[[str], bool]
) -> "dict[str, Tensor]":
    """Our tensors under the names of another program, the inverse of `to_ours`.

    Args:
        flat: whether the one of theirs that is called so is a matrix, where ours is a 1 x 1 convolution.
    """
    found = {}
    for ours, parts in names.items():
        for name, part in zip(parts, tensors[ours].chunk(len(parts)), strict=True):
            matrix = part.ndim == 4 and flat(name)
            found[name] = (part.flatten(1) if matrix else part).contiguous()
    return found


def _check(name: str, tensor: "Tensor", expected: tuple[int, ...]) -> None:
    shape = tuple(tensor.shape)
    if shape != expected and not (expected[2:] == (1, 1) and shape == expected[:2]):
        raise ConversionError(f"{shown(name)} is {list(shape)}, the network it describes has {list(expected)} there")
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ConversionError(f"{shown(name)} holds {kind}, which cannot be weights")
    if not tensor.isfinite().all():
        raise ConversionError(f"{shown(name)} {list(shape)} holds values that are not finite")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(map(shown, names[:SHOWN]))}{more}"
