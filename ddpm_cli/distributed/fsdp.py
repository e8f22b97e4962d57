"""A network sharded over several processes: each holds a part of every parameter, gradient and optimizer moment.

It uses torch's fully_shard (Zhao et al. 2023, "PyTorch FSDP"): a layer is gathered when it is computed, and sharded
again afterwards. A sharded tensor (a DTensor) has the shape of the full one.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # takes half a second to import, and few runs need it
    from torch.distributed.tensor import DTensor


def shard(model: nn.Module, device: torch.device, size: int) -> None:
    """Shard `model` in place over `size` processes, this one's part on `device`; every process must call this.

    Each entry of the network's `ModuleList`s is gathered at a time, and finally the remaining layers together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # the only memory layout that fully_shard takes
    mesh = init_device_mesh(device.type, (size,))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in [layer for layers in lists for layer in layers if any(True for _ in layer.parameters())]:
        fully_shard(layer, mesh=mesh)
    # The remaining layers would stay gathered after a forward pass, for the backward pass. An average that is only
    # sampled from has no backward pass, and could then not follow the network's shards.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been called on it."""
    return hasattr(model, "set_requires_gradient_sync")


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Inside, the backward pass of a sharded network accumulates only this process's own gradients."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, on every process, each of which must call this; a full tensor is returned unchanged."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's part of each tensor, to be changed in place; it may be empty."""
    return [tensor.to_local() if _is_dtensor(tensor) else tensor for tensor in tensors]


def distribute_as(tensor: Tensor, other: Tensor | None) -> Tensor:
    """A full tensor, sharded like `other`, which has the same shape; itself if `other` is full."""
    if other is None or not _is_dtensor(other) or other.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def _is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(tensor, "placements")
