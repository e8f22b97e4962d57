"""A network spread over several processes: each holds a part of every parameter, gradient and moment of the optimizer.

By torch's fully_shard (Zhao et al. 2023, "PyTorch FSDP"): a layer is put together when it is computed, and taken apart
again. A tensor of which a process holds a part says the shape of the whole.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, device: torch.device, size: int) -> None:
    """Leave of `model`, in place, this process's part among `size`, on `device`; every process must call this.

    What is put together at a time is each entry of the network's `ModuleList`s, and at the end what is left over.
    """
    mesh = init_device_mesh(device.type, (size,))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for layer in [layer for layers in lists for layer in layers if any(True for _ in layer.parameters())]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been called on it."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """All parts put together, on every process, each of which must call this; a tensor in one piece is that tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of each tensor the part that this process holds, to be changed in place, perhaps empty."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def part_for(own: Tensor | None, value: Tensor) -> Tensor:
    """Of a tensor in one piece the part that this process has of `own`."""
    if not isinstance(own, DTensor) or own.shape != value.shape:
        return value
    placements: Sequence = own.placements
    return distribute_tensor(value.to(own.device), own.device_mesh, placements, src_data_rank=None)
