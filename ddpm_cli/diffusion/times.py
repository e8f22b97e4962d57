"""The time of a batch that is all at one t: a tensor for the network, and still a number for whoever decides by it.

To look into a tensor on a GPU is to wait until the GPU has done all that was asked of it before.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_NUMBERS = WeakIdKeyDictionary()  # of the tensors from `fill`, as long as there are any


def fill(x: Tensor, t: int) -> Tensor:
    """t for each image of x, `[B]` int64 on x's device."""
    filled = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
    _NUMBERS[filled] = t
    return filled


def number(t: Tensor) -> int:
    """The t of a batch that is all at one, `[B]`; without waiting for the device if it comes from `fill`."""
    known = _NUMBERS.get(t)
    return int(t[0]) if known is None else known
