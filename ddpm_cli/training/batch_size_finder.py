"""Finds the largest micro-batch that fits into memory, by trying before a run starts."""

import gc
import os

import torch
from torch import Tensor

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.runtime import cgroup
from ddpm_cli.runtime.device import Compute, out_of_memory

SPARE = 0.05  # of a GPU's memory, left free while trying: later allocations fragment it more
SHARE_OF_MACHINE = 0.8  # of a machine's or container's free memory: beyond it the system kills and raises nothing


def smallest_accumulate(ddpm: DDPM, compute: Compute, image_shape: tuple[int, int, int], batch_size: int) -> int:
    """The smallest number of equal parts in which `batch_size` images can be trained on this device.

    Parts are tried, the largest first, with a forward and a backward pass, beside the memory that the optimizer will
    need. The network does not change.

    Raises:
        ValueError: if not even one image fits.
    """
    if not _fits(ddpm, compute, image_shape, 1):
        raise ValueError(
            "accumulate=auto: not even one image fits into memory; activation_checkpointing=true needs less"
        )
    most = batch_size
    if compute.device.type == "cpu":
        memory = min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), cgroup.memory())
        most = SHARE_OF_MACHINE * memory / _bytes_kept(ddpm, compute, image_shape)
    for parts in range(1, batch_size):
        images = batch_size // parts
        if batch_size % parts == 0 and images <= most and _fits(ddpm, compute, image_shape, images):
            return parts
    return batch_size


def _fits(ddpm: DDPM, compute: Compute, image_shape: tuple[int, int, int], images: int) -> bool:
    held = None
    try:
        held = _held_later(ddpm, compute)
        _pass(ddpm, compute, torch.zeros(images, *image_shape, device=compute.device))
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        del held
        ddpm.zero_grad(set_to_none=True)
        gc.collect()  # the error's traceback held the activations
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _held_later(ddpm: DDPM, compute: Compute) -> list[Tensor]:
    """Memory for two moments of each parameter, for gradients on their way to other processes, and some to spare."""
    held = [torch.empty_like(parameter) for parameter in ddpm.parameters() for _ in range(3)]
    if compute.device.type == "cuda":
        _, total = torch.cuda.mem_get_info(compute.device)
        held.append(torch.empty(int(SPARE * total), dtype=torch.uint8, device=compute.device))
    return held


def _pass(ddpm: DDPM, compute: Compute, x_0: Tensor) -> None:
    """Compute what a step computes: the losses of a micro-batch and their gradients."""
    t = torch.zeros(len(x_0), dtype=torch.int64, device=x_0.device)
    labels = None if ddpm.num_classes is None else t
    with compute.autocast():
        losses = ddpm.losses(x_0, t, labels=labels)
    losses.sum().backward()


def _bytes_kept(ddpm: DDPM, compute: Compute, image_shape: tuple[int, int, int]) -> int:
    """The bytes that one image's forward pass keeps for the backward pass."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = {parameter.untyped_storage().data_ptr() for parameter in ddpm.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _pass(ddpm, compute, torch.zeros(1, *image_shape, device=compute.device))
    ddpm.zero_grad(set_to_none=True)
    return sum(size for place, size in kept.items() if place not in parameters)
