"""A model that another program trained, in our terms; and the error for a model that cannot be converted."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class ConversionError(ValueError):
    """A model that cannot be converted, or files without one; the message names the part."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says about a model, beside its files.

    Args:
        image_size: H = W or [H, W] in pixels, where no file says it, or instead of what it says.
        preset: the flags that a network was trained with, for files that do not hold them; of a class of the module
            that reads these.
        chosen: groups of a configuration of which something else counts than what the files say.
    """

    image_size: int | list[int] | None = None
    preset: object | None = None
    chosen: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A network that another program trained, and as much of its diffusion as its files say.

    Args:
        description: whose network it is, in a few words for people.
        unet: every option of our UNet, as plain values.
        tensors: the network's weights, float32 on the CPU, by their names in our UNet.
        groups: nodes of a configuration (`_target_` and options) by group: of `schedule`, `prediction`, `variance` and
            `threshold` those that the source says.
        step: optimizer steps that it was trained for; 0: that is not known.
        remarks: lines on what had to be assumed, and on what the source says that does not come along.
    """

    description: str
    unet: dict[str, Any]
    tensors: "dict[str, Tensor]"
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    step: int = 0
    remarks: tuple[str, ...] = ()
