"""A network spread over several processes: each holds a part of every parameter, gradient and moment of the optimizer.

By torch's fully_shard (Zhao et al. 2023, "PyTorch FSDP"): a layer is put together when it is computed, and taken apart
again. A tensor of which a process holds a part says the shape of the whole.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # half a second to import, for what few runs need
    from torch.distributed.tensor import DTensor


def shard(model: nn.Module, device: torch.device, size: int) -> None:
    """Leave of `model`, in place, this process's part among `size`, on `device`; every process must call this.

    What is put together at a time is each entry of the network's `ModuleList`s, and at the end what is left over.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (size,))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in [layer for layers in lists for layer in layers if any(True for _ in layer.parameters())]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been called on it."""
    return hasattr(model, "set_requires_gradient_sync")


@contextmanager
def without_reduction(model: nn.Module) -> Iterator[None]:
    """Inside, the backward pass of a sharded network only adds up this process's own gradients."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """All parts put together, on every process, each of which must call this; a tensor in one piece is that tensor."""
    return tensor.full_tensor() if _in_parts(tensor) else tensor


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of each tensor the part that this process holds, to be changed in place, perhaps empty."""
    return [tensor.to_local() if _in_parts(tensor) else tensor for tensor in tensors]


def part_for(own: Tensor | None, value: Tensor) -> Tensor:
    """Of a tensor in one piece the part that this process has of `own`."""
    if own is None or not _in_parts(own) or own.shape != value.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def _in_parts(tensor: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(tensor, "placements")
