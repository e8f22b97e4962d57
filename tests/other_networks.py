"""Networks as other programs build and save them, small and with weights of which every one counts."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from ddpm_cli.models.unet import UNet

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
# What can differ from it, by name.
VARIANTS: dict[str, dict[str, Any]] = {
    "as trained by default": {},
    "ddpm": {
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    },
    "grey": {"in_channels": 1, "out_channels": 1},
    "not square": {"sample_size": (16, 8)},
    "three levels, two blocks": {
        "sample_size": 16,
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "one level": {
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",),
    },
    "no attention but the middle's": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
    "labels": {"num_class_embeds": 5},
    "one label": {"num_class_embeds": 1},
    "variance": {"out_channels": 6},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "residual blocks resize": {
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "all of it": {
        "sample_size": (8, 16),
        "in_channels": 1,
        "out_channels": 2,
        "num_class_embeds": 3,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "freq_shift": 1,
    },
}


def of_diffusers(**options: Any) -> UNet2DModel:
    """diffusers' network with options beside `SMALL`, in eval mode."""
    torch.manual_seed(0)
    return with_other_weights(UNet2DModel(**SMALL | options)).eval()


def with_other_weights(network: Any) -> Any:
    """The network with random weights: fresh ones leave whole layers at zero, and then nothing depends on others."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def saved(place: Path, *, scheduler: Any = None, **options: Any) -> UNet2DModel:
    """A pipeline of `of_diffusers`'s network, saved as diffusers saves it."""
    network = of_diffusers(**options)
    DDPMPipeline(network, DDPMScheduler() if scheduler is None else scheduler).save_pretrained(place)
    return network


def ours(options: dict[str, Any], tensors: dict[str, Tensor]) -> UNet:
    """Our network of imported options and weights, in eval mode."""
    network = UNet(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
    network.load_state_dict(tensors)
    return network.eval()


# Ho et al.'s, as pesser/pytorch_diffusion has it: modules of its names, computed as the paper's appendix says ---------


class HoNetwork(nn.Module):
    """DDPM's network under the names of those converted checkpoints.

    Args:
        attended: the levels with self-attention.
    """

    def __init__(self, *, channels: int, base: int, mults: tuple[int, ...], blocks: int, attended: tuple[int, ...]):
        super().__init__()
        self.base = base
        self.temb: Any = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(base, 4 * base), nn.Linear(4 * base, 4 * base)])
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)
        widths = [base * mult for mult in mults]
        skips, width = [base], base
        stages = []
        for level, wanted in enumerate(widths):
            stage = _stage()
            for _ in range(blocks):
                stage.block.append(_HoBlock(width, wanted, 4 * base))
                width = wanted
                skips.append(width)
                if level in attended:
                    stage.attn.append(_HoAttention(width))
            if level < len(widths) - 1:
                stage.downsample = _conv(width, stride=2, padding=0)
                skips.append(width)
            stages.append(stage)
        self.down: Any = nn.ModuleList(stages)
        self.mid: Any = nn.Module()
        self.mid.block_1, self.mid.block_2 = (_HoBlock(width, width, 4 * base) for _ in range(2))
        self.mid.attn_1 = _HoAttention(width)
        stages = []
        for level, wanted in reversed(list(enumerate(widths))):
            stage = _stage()
            for _ in range(blocks + 1):
                stage.block.append(_HoBlock(width + skips.pop(), wanted, 4 * base))
                width = wanted
                if level in attended:
                    stage.attn.append(_HoAttention(width))
            if level > 0:
                stage.upsample = _conv(width, stride=1, padding=1)
            stages.append(stage)
        self.up: Any = nn.ModuleList(reversed(stages))  # 0 is the image's resolution, as on the way down
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.base // 2
        rates = 10_000 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
        angles = (t.double()[:, None] * rates).float()
        first, second = self.temb.dense
        time = second(nn.functional.silu(first(torch.cat([angles.sin(), angles.cos()], dim=1))))
        h = self.conv_in(x)
        skips = [h]
        for stage in self.down:
            for number, block in enumerate(stage.block):
                h = block(h, time)
                h = stage.attn[number](h) if len(stage.attn) > 0 else h
                skips.append(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample.conv(nn.functional.pad(h, (0, 1, 0, 1)))
                skips.append(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, time)), time)
        for stage in reversed(self.up):
            for number, block in enumerate(stage.block):
                h = block(torch.cat([h, skips.pop()], dim=1), time)
                h = stage.attn[number](h) if len(stage.attn) > 0 else h
            if hasattr(stage, "upsample"):
                h = stage.upsample.conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv_out(nn.functional.silu(self.norm_out(h)))


class _HoBlock(nn.Module):
    def __init__(self, channels: int, wanted: int, time_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, wanted, 3, padding=1)
        self.temb_proj = nn.Linear(time_channels, wanted)
        self.norm2 = nn.GroupNorm(32, wanted, eps=1e-6)
        self.conv2 = nn.Conv2d(wanted, wanted, 3, padding=1)
        if channels != wanted:
            self.nin_shortcut = nn.Conv2d(channels, wanted, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = h + self.temb_proj(nn.functional.silu(time))[:, :, None, None]
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _HoAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (convolution(h).flatten(2) for convolution in (self.q, self.k, self.v))  # [B, C, H W]
        weights = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(dim=2)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).view_as(x))


def _stage() -> Any:
    stage = nn.Module()
    stage.block, stage.attn = nn.ModuleList(), nn.ModuleList()
    return stage


def _conv(channels: int, *, stride: int, padding: int) -> nn.Module:
    module = nn.Module()
    module.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=padding)
    return module
