"""Networks, and what is counted of them: parameters, operations, kernels. On the meta device: nothing is computed."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ddpm_cli.models.unet import UNet


@dataclass(frozen=True)
class Network:
    """A network as it is trained: on how many images at a time per GPU where the batch grows with the GPUs."""

    name: str
    batch_per_gpu: int
    image_size: int
    parameters: int
    layers: tuple[int, ...]  # parameters of each part that trainer.fsdp=true puts together at a time
    forward: float  # floating-point operations of an image, two for a multiplication and an addition
    training: float  # of its forward and backward pass
    kernels: int  # of a forward and backward pass, if nothing is fused

    @property
    def pixels(self) -> int:
        return 3 * self.image_size**2


class _Kernels(TorchDispatchMode):
    """Counts operations that make a tensor of their own, which takes at least one kernel each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@functools.cache
def networks() -> tuple[Network, ...]:
    """DDPM's CIFAR-10 network (configs/model/unet_32.yaml) and one of ours of about 300 million parameters."""
    shared = {"in_channels": 3, "dropout": 0.1}
    small = {"image_size": 32, "base_channels": 128, "channel_mults": (1, 2, 2, 2), "num_res_blocks": 2}
    large = {"image_size": 64, "base_channels": 192, "channel_mults": (1, 2, 4, 4), "num_res_blocks": 3}
    return (
        _counted("36M", 128, **small, **shared, attention_resolutions=(16,)),
        _counted("316M", 32, **large, **shared, attention_resolutions=(16, 8)),
    )


def _counted(name: str, batch_per_gpu: int, **options: Any) -> Network:
    size, batch = options["image_size"], 2
    with torch.device("meta"):
        model = UNet(**options)
        x, t = torch.zeros(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        model(x, t)
    with FlopCounterMode(display=False) as training, _Kernels() as kernels:
        model(x, t).square().mean().backward()
    return Network(
        name=name,
        batch_per_gpu=batch_per_gpu,
        image_size=size,
        parameters=_parameters(model),
        layers=_layers(model),
        forward=forward.get_total_flops() / batch,
        training=training.get_total_flops() / batch,
        kernels=kernels.count,
    )


def _layers(model: nn.Module) -> tuple[int, ...]:
    """As `ddpm_cli.distributed.fsdp.shard` takes a network apart."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [size for entries in lists for layer in entries if (size := _parameters(layer)) > 0]
    return (*layers, _parameters(model) - sum(layers))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
