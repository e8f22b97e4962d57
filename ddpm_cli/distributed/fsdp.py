"""A network spread over several processes: each holds a part of every parameter, gradient and moment of the optimizer.

By torch's fully_shard (Zhao et al. 2023, "PyTorch FSDP"): a layer is put together when it is computed, and taken apart
again. A tensor of which a process holds a part (a DTensor) says the shape of the full one.
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

    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # the one layout in memory that fully_shard takes
    mesh = init_device_mesh(device.type, (size,))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in [layer for layers in lists for layer in layers if any(True for _ in layer.parameters())]:
        fully_shard(layer, mesh=mesh)
    # What is left over would stay put together after a forward pass, for the backward pass to come. An average that is
    # only sampled from has none, and could then not follow the network's parts.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been called on it."""
    return hasattr(model, "set_requires_gradient_sync")


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Inside, the backward pass of a sharded network only adds up this process's own gradients."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def full_tensor(tensor: Tensor) -> Tensor:
    """All parts put together, on every process, each of which must call this; a tensor that is full is returned."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of each tensor the part that this process holds, to be changed in place, perhaps empty."""
    return [tensor.to_local() if _is_dtensor(tensor) else tensor for tensor in tensors]


def distribute_as(tensor: Tensor, other: Tensor | None) -> Tensor:
    """A full tensor distributed over the processes as `other` is, of the same shape; itself where `other` is full."""
    if other is None or not _is_dtensor(other) or other.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def _is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(tensor, "placements")
