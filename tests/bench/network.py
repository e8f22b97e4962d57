"""The networks that are compared, and the proof that the same architecture is compared with itself."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Place
from ddpm_cli.config.instantiate import instantiate


class DifferentNetworksError(ValueError):
    """Two networks are not of the same size: comparing their speed would say nothing."""


def ours(place: Place) -> nn.Module:
    return instantiate(place.config["model"], "model")


def of_diffusers(place: Place) -> nn.Module:
    """diffusers' U-Net of the same architecture."""
    from diffusers import UNet2DModel

    model = place.config["model"]
    resolutions = [model["image_size"] // 2**level for level in range(len(model["channel_mults"]))]
    attention = [resolution in model["attention_resolutions"] for resolution in resolutions]
    assert model["num_heads"] == 1
    return UNet2DModel(
        sample_size=model["image_size"],
        in_channels=model["in_channels"],
        out_channels=model["in_channels"],
        layers_per_block=model["num_res_blocks"],
        block_out_channels=tuple(model["base_channels"] * mult for mult in model["channel_mults"]),
        down_block_types=tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in attention),
        up_block_types=tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)),
        attention_head_dim=None,
        norm_num_groups=model["norm_groups"],
        norm_eps=1e-6,
        dropout=model["dropout"],
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )


def of_denoising_diffusion_pytorch(place: Place) -> nn.Module:
    """Its own U-Net, as near as its arguments get: the same channels and levels, full attention where we have it."""
    from denoising_diffusion_pytorch import Unet

    model = place.config["model"]
    resolutions = [model["image_size"] // 2**level for level in range(len(model["channel_mults"]))]
    return Unet(
        dim=model["base_channels"],
        dim_mults=tuple(model["channel_mults"]),
        channels=model["in_channels"],
        dropout=model["dropout"],
        full_attn=tuple(resolution in model["attention_resolutions"] for resolution in resolutions),
    )


NETWORKS: dict[str, Callable[[Place], nn.Module]] = {
    "ours": ours,
    "diffusers": of_diffusers,
    "denoising-diffusion-pytorch": of_denoising_diffusion_pytorch,
}


def answer(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """What the network says; diffusers wraps it."""
    out = network(x, t)
    return out if isinstance(out, Tensor) else out.sample


def sizes(place: Place, name: str) -> dict[str, int]:
    """Parameters, and FLOPs of one image: forward, and with the backward pass. Computes nothing."""
    with torch.device("meta"):
        network = NETWORKS[name](place)
        x = torch.empty(1, *shape(place))
        t = torch.zeros(1, dtype=torch.int64)
    counted = {}
    # Attention as matrix products: its fused kernels are not counted the same everywhere.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            answer(network, x, t)
        counted["forward_flops"] = forward.get_total_flops()
        with FlopCounterMode(display=False) as training:
            answer(network, x, t).square().mean().backward()
        counted["training_flops"] = training.get_total_flops()
    return {"parameters": sum(p.numel() for p in network.parameters()), **counted}


def shape(place: Place) -> tuple[int, int, int]:
    """(C, H, W)"""
    model = place.config["model"]
    return model["in_channels"], model["image_size"], model["image_size"]


def inputs(place: Place) -> tuple[Tensor, Tensor]:
    """A batch x_t and its timesteps, the same for everybody."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn((place.batch_size, *shape(place)), generator=source)
    t = torch.randint(place.config["schedule"]["timesteps"], (place.batch_size,), generator=source)
    return x.to(place.device), t.to(place.device)


def autocast(place: Place) -> AbstractContextManager:
    """Inside, the peers compute in the precision that ours does."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return nullcontext() if place.precision == "fp32" else torch.autocast(place.device, dtypes[place.precision])


def check_same(counted: dict[str, dict[str, int]]) -> None:
    """Raise DifferentNetworksError unless ours and diffusers' have as many parameters and FLOPs."""
    if "diffusers" not in counted:
        return
    for what, number in counted["ours"].items():
        if number != counted["diffusers"][what]:
            raise DifferentNetworksError(f"{what}: ours {number:,}, diffusers' {counted['diffusers'][what]:,}")
