"""The parts of a U-Net: residual blocks with time embedding, self-attention, and layers that change the resolution.

The time embedding `[B, time_channels]` that they take has already passed its last non-linearity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.cpu_layers import Conv3x3, GroupNorm

Padding = Literal["same", "symmetric"]


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """The options that all blocks of a network share; `UNet` says what each means."""

    time_channels: int
    dropout: float
    num_heads: int
    head_channels: int | None
    norm_groups: int
    norm_eps: float
    scale_shift_norm: bool

    def norm(self, channels: int) -> GroupNorm:
        """A group normalisation over this many channels."""
        return GroupNorm(self.norm_groups, channels, eps=self.norm_eps)

    def heads(self, channels: int) -> int:
        """How many heads the self-attention over this many channels has."""
        return self.num_heads if self.head_channels is None else channels // self.head_channels


class Block(nn.Module):
    """Residual block with time embedding, followed by self-attention if asked for.

    Args:
        resize: `halve` or `double`, applied in the block and in its skip connection; None: neither.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        options: BlockOptions,
        *,
        attention: bool = False,
        resize: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.scale_shift_norm = options.scale_shift_norm
        self.resize = resize
        self.norm1 = options.norm(channels_in)
        self.conv1 = Conv3x3(channels_in, channels_out)
        self.time = nn.Linear(options.time_channels, channels_out * (2 if options.scale_shift_norm else 1))
        self.norm2 = options.norm(channels_out)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = Conv3x3(channels_out, channels_out)
        self.skip = nn.Identity() if channels_in == channels_out else Pointwise(channels_in, channels_out)
        self.attention = Attention(channels_out, options) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = self.conv1(h)
        time = self.time(time)[:, :, None, None]
        if self.scale_shift_norm:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    """Self-attention over the H x W positions, with a residual connection."""

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        self.num_heads = options.heads(channels)
        self.norm = options.norm(channels)
        self.qkv = Pointwise(channels, 3 * channels)
        self.out = Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.num_heads, c // self.num_heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [B, heads, H * W, C / heads]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(b, c, height, width))


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution, computed with channels last as a single matrix product."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve the resolution with a strided convolution.

    Args:
        padding: "same": TensorFlow's, on the right and below, as DDPM was trained; "symmetric": on all sides.
    """

    def __init__(self, channels: int, padding: Padding):
        super().__init__()
        self.conv = Conv3x3(channels, channels, stride=2, padding=1 if padding == "symmetric" else 0)
        self.padding = padding

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == "same" else x)


class Upsample(nn.Module):
    """Double the resolution with nearest neighbours and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(double(x))


def halve(x: Tensor) -> Tensor:
    """Halve the resolution, with averages of 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Double the resolution, with nearest neighbours."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
