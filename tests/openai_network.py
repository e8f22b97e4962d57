"""The network of improved-diffusion and guided-diffusion once more, with the names that its published tensors have.

Typed from the papers (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021): an independent implementation to compare with.
Attention is by einsum, resampling by slices, the embedding in float64: nothing of it is ours.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS_FIRST, THIRDS_FIRST = "heads first", "thirds first"  # the order of the rows of qkv


class OpenAINetwork(nn.Module):
    """Their UNetModel.

    Args:
        attention_resolutions: factors by which the image is smaller at the levels with attention, as theirs.
        num_head_channels: -1: `num_heads` on every level.
        qkv_order: of improved-diffusion and most published models the first; of ADM at 64 x 64 the second
            (`use_new_attention_order`).
        time_scale: what `rescale_timesteps` multiplies t by, 1000 / T; 1 without.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        model_channels: int = 32,
        out_channels: int = 3,
        num_res_blocks: int = 1,
        attention_resolutions: Sequence[int] = (2,),
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2),
        num_classes: int | None = None,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        qkv_order: str = HEADS_FIRST,
        time_scale: float = 1.0,
    ):
        super().__init__()
        self.model_channels, self.time_scale = model_channels, time_scale
        embedded = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, embedded)

        def res(channels: int, out: int, sampling: str | None = None) -> ResBlock:
            return ResBlock(channels, embedded, dropout, out, use_scale_shift_norm, sampling)

        def attention(channels: int) -> AttentionBlock:
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            return AttentionBlock(channels, heads, qkv_order)

        channels = int(channel_mult[0] * model_channels)
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(in_channels, channels, 3, padding=1)])])
        kept, factor = [channels], 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res(channels, int(mult * model_channels))]
                channels = int(mult * model_channels)
                if factor in attention_resolutions:
                    layers.append(attention(channels))
                self.input_blocks.append(Stage(layers))
                kept.append(channels)
            if level != len(channel_mult) - 1:
                down = res(channels, channels, "down") if resblock_updown else Downsample(channels)
                self.input_blocks.append(Stage([down]))
                kept.append(channels)
                factor *= 2
        self.middle_block = Stage([res(channels, channels), attention(channels), res(channels, channels)])
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [res(channels + kept.pop(), int(mult * model_channels))]
                channels = int(mult * model_channels)
                if factor in attention_resolutions:
                    layers.append(attention(channels))
                if level > 0 and i == num_res_blocks:
                    layers.append(res(channels, channels, "up") if resblock_updown else Upsample(channels))
                    factor //= 2
                self.output_blocks.append(Stage(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.time_embed(timestep_embedding(t * self.time_scale, self.model_channels))
        if hasattr(self, "label_emb"):
            assert y is not None
            emb = emb + self.label_emb(y)
        kept = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            kept.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, kept.pop()], dim=1), emb)
        return self.out(x)


class Stage(nn.ModuleList):
    """Layers one after another, of which the residual blocks get the embedding too."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    def __init__(self, channels: int, embedded: int, dropout: float, out: int, scale_shift: bool, sampling: str | None):
        super().__init__()
        self.scale_shift, self.sampling = scale_shift, sampling
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedded, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)
        # Their h_upd and x_upd, which have no tensors.
        self.h_upd, self.x_upd = Resample(sampling), Resample(sampling)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h = conv(self.h_upd(silu(norm(x))))
        said = self.emb_layers(emb)[..., None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = said[:, : h.shape[1]], said[:, h.shape[1] :]
            h = norm(h) + norm(h) * scale + shift
        else:
            h = norm(h + said)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.x_upd(x)) + h


class Resample(nn.Module):
    """Half or twice the resolution without a convolution."""

    def __init__(self, sampling: str | None):
        super().__init__()
        self.sampling = sampling

    def forward(self, x: Tensor) -> Tensor:
        if self.sampling == "down":
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2) if self.sampling == "up" else x


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, heads: int, qkv_order: str):
        super().__init__()
        self.heads, self.qkv_order = heads, qkv_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.qkv_order == HEADS_FIRST:
            q, k, v = qkv.unflatten(1, (self.heads, 3, c // self.heads)).unbind(2)
        else:
            q, k, v = qkv.unflatten(1, (3, self.heads, c // self.heads)).unbind(1)
        weights = torch.einsum("bhcs,bhct->bhst", q, k).div(math.sqrt(c // self.heads)).softmax(-1)
        mixed = torch.einsum("bhst,bhct->bhcs", weights, v).reshape(b, c, -1)
        return (flat + self.proj_out(mixed)).view(b, c, height, width)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """cos || sin, with frequencies 10000^(-i / half); in float64, cast at the end. `[B]` -> `[B, channels]`"""
    half = channels // 2
    angles = t.double()[:, None] * 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def fill(network: nn.Module, seed: int = 0) -> None:
    """Weights as large as trained ones are: many of those that a network begins with are zero, which proves nothing."""
    source = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 and "weight" in name:  # of a normalisation
            parameter.data = 1 + 0.2 * torch.randn(parameter.shape, generator=source)
        else:
            spread = 0.1 if parameter.ndim == 1 else 1 / math.sqrt(parameter[0].numel())
            parameter.data = spread * torch.randn(parameter.shape, generator=source)
