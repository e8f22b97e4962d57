"""The U-Net of DDPM (Ho et al. 2020, appendix B): residual blocks with time embedding, self-attention at some sizes."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class UNet(nn.Module):
    """Network for (x_t, t) or (x_t, t, labels) -> `[B, C, H, W]`, or `[B, 2 C, H, W]` with `learn_variance`.

    Every level but the last halves the image. A level has `num_res_blocks` residual blocks on the way down and one more
    on the way up, each followed by self-attention if the level's resolution is in `attention_resolutions`. The last
    convolution of every block and of the network starts at zero, so that the network starts as the zero function.

    The weights of convolutions lie in memory with channels last: convolutions are faster so, on CPUs and on GPUs.

    Set the attribute `activation_checkpointing` to keep only what goes in and out of each layer for the backward pass,
    which computes the rest again (Chen et al. 2016): less memory, the same result.

    Args:
        image_size: H = W, or (H, W), in pixels; divisible by 2 ** (levels - 1).
        in_channels: C.
        base_channels: channels of the first level.
        channel_mults: channels of each level, as multiples of `base_channels`; one entry per level.
        num_res_blocks: residual blocks per level.
        attention_resolutions: levels with self-attention, named by their shorter side in pixels.
        dropout: probability of zeroing an activation before a block's second convolution.
        num_heads: of the self-attention; DDPM has one.
        norm_groups: of every group normalisation; must divide every level's channels.
        num_classes: labels that the network takes, 0 .. num_classes - 1; None: it takes none. A label adds a learned
            vector to the time embedding (Nichol & Dhariwal 2021, section 5), no label adds nothing.
        learn_variance: answer with twice the channels; the second half is for `variance=learned_range`.

    Raises:
        ValueError: if the sizes do not fit each other; the message names what would.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        base_channels: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        *,
        num_heads: int = 1,
        norm_groups: int = 32,
        num_classes: int | None = None,
        learn_variance: bool = False,
    ):
        super().__init__()
        self.activation_checkpointing = False
        self.num_classes = num_classes
        self.learn_variance = learn_variance
        resolutions = _resolutions(image_size, len(channel_mults))
        widths = [base_channels * mult for mult in channel_mults]
        _check_counts(
            in_channels=in_channels,
            base_channels=base_channels,
            channel_mults=min(channel_mults),
            num_res_blocks=num_res_blocks,
            num_heads=num_heads,
            norm_groups=norm_groups,
            num_classes=1 if num_classes is None else num_classes,
        )
        _check_base_channels(base_channels)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout:g}")
        _check_levels(widths, resolutions, attention_resolutions, norm_groups=norm_groups, num_heads=num_heads)
        time_channels = 4 * base_channels
        self.time_frequencies: Tensor
        self.register_buffer("time_frequencies", _frequencies(base_channels), persistent=False)
        self.time_mlp = nn.Sequential(
            nn.Linear(base_channels, time_channels),
            nn.SiLU(),
            nn.Linear(time_channels, time_channels),
        )
        self.label_embedding = None
        if num_classes is not None:
            # From zeros, as nn.Embedding's own initialisation would draw random numbers before those of the others.
            self.label_embedding = nn.Embedding.from_pretrained(torch.zeros(num_classes, time_channels), freeze=False)

        def block(channels_in: int, channels_out: int, attention: bool) -> Block:
            rest = {"num_heads": num_heads, "norm_groups": norm_groups}
            return Block(channels_in, channels_out, time_channels, attention, dropout, **rest)

        levels = [(width, size in attention_resolutions) for width, size in zip(widths, resolutions, strict=True)]
        self.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)
        self.down, skips = _down(block, base_channels, levels, num_res_blocks)
        self.middle = nn.ModuleList([block(widths[-1], widths[-1], True), block(widths[-1], widths[-1], False)])
        self.up = _up(block, skips, levels, num_res_blocks)
        self.norm_out = nn.GroupNorm(norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], in_channels * (2 if learn_variance else 1), 3, padding=1)
        self._initialise()
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x is `[B, C, H, W]`, t is `[B]`, labels are `[B]` int64, -1 for none; returns `[B, C or 2 C, H, W]`."""
        time = self.time_mlp(self._embed(t))
        if labels is not None:
            time = time + self._embed_labels(labels)
        time = F.silu(time)  # every block begins by this on the embedding: once is enough
        # Every layer keeps the layout it gets, but the first one cannot tell that of an image with one channel.
        h = self.conv_in(x).contiguous(memory_format=torch.channels_last)
        skips = [h]
        for layer in self.down:
            h = self._through(layer, h, time)
            skips.append(h)
        for layer in self.middle:
            h = self._through(layer, h, time)
        for layer in self.up:
            if isinstance(layer, Block):
                h = torch.cat([h, skips.pop()], dim=1)
            h = self._through(layer, h, time)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _through(self, layer: nn.Module, h: Tensor, time: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, h, time, use_reentrant=False)
        return layer(h, time)

    def _embed(self, t: Tensor) -> Tensor:
        """Sinusoidal embedding of t as in DDPM's code: sin || cos. `[B]` -> `[B, base_channels]`"""
        angles = t.float()[:, None] * self.time_frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def _embed_labels(self, labels: Tensor) -> Tensor:
        """`[B]` -> `[B, 4 base_channels]`, zero where the label is -1: exactly as without labels."""
        if self.label_embedding is None:
            raise ValueError("this network takes no labels; it was built with num_classes=None")
        return self.label_embedding(labels.clamp(min=0)) * (labels >= 0)[:, None]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # Uniform with variance 1 / (average of fan-in and fan-out), DDPM's initialisation.
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention):
                for weight in module.qkv.weight.data.chunk(3):  # three projections of their own fan-out
                    nn.init.xavier_uniform_(weight)
                nn.init.zeros_(module.out.weight)
            if isinstance(module, Block):
                nn.init.zeros_(module.conv2.weight)
        nn.init.zeros_(self.conv_out.weight)
        if self.label_embedding is not None:  # last, so that all else starts as it would without labels
            nn.init.normal_(self.label_embedding.weight, std=0.02)


class Block(nn.Module):
    """Residual block with time embedding, followed by self-attention if asked for."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        time_channels: int,
        attention: bool,
        dropout: float,
        *,
        num_heads: int,
        norm_groups: int,
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time = nn.Linear(time_channels, channels_out)
        self.norm2 = nn.GroupNorm(norm_groups, channels_out, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else Pointwise(channels_in, channels_out)
        self.attention = Attention(channels_out, num_heads, norm_groups) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(time)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    """Self-attention over the H x W positions, with a residual connection."""

    def __init__(self, channels: int, num_heads: int, norm_groups: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.qkv = Pointwise(channels, 3 * channels)
        self.out = Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.num_heads, c // self.num_heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [B, heads, H * W, C / heads]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(b, c, height, width))


class Pointwise(nn.Conv2d):
    """A convolution of one pixel, computed as what it is with channels last: one matrix product."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Half the resolution by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # TensorFlow's "SAME" padding, as DDPM was trained


class Upsample(nn.Module):
    """Twice the resolution by nearest neighbours and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _down(
    block: Callable[[int, int, bool], Block], channels: int, levels: Sequence[tuple[int, bool]], num_res_blocks: int
) -> tuple[nn.ModuleList, list[int]]:
    """The layers from the image's resolution down, and the channels of every output that the way up is given again.

    Args:
        channels: of the first of these outputs, which the first layer is given.
        levels: of each the channels, and whether it has self-attention.
    """
    layers, skips = nn.ModuleList(), [channels]
    for level, (width, attention) in enumerate(levels, start=1):
        for _ in range(num_res_blocks):
            layers.append(block(skips[-1], width, attention))
            skips.append(width)
        if level < len(levels):
            layers.append(Downsample(width))
            skips.append(width)
    return layers, skips


def _up(
    block: Callable[[int, int, bool], Block], skips: list[int], levels: Sequence[tuple[int, bool]], num_res_blocks: int
) -> nn.ModuleList:
    """The layers back to the image's resolution; each block is given one of `skips`, the last first, beside its own."""
    layers, channels = nn.ModuleList(), skips[-1]
    for level, (width, attention) in reversed(list(enumerate(levels))):
        for _ in range(num_res_blocks + 1):
            layers.append(block(channels + skips.pop(), width, attention))
            channels = width
        if level > 0:
            layers.append(Upsample(channels))
    assert not skips
    return layers


def _frequencies(channels: int) -> Tensor:
    half = channels // 2
    # Not torch.exp(torch.arange()): on "meta" tensors these would import a second's worth of compilers.
    rates = [math.exp(-math.log(10_000) * i / max(half - 1, 1)) for i in range(half)]
    return torch.tensor(rates, dtype=torch.float64).float()


def _resolutions(image_size: int | Sequence[int], levels: int) -> list[int]:
    """Shorter side of each level in pixels, from the image's down."""
    if levels < 1:
        raise ValueError("channel_mults needs at least one level")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    factor = 2 ** (levels - 1)
    for side in (height, width):
        if side < 1:
            raise ValueError(f"image_size must be positive, got {side}")
        if side % factor != 0:
            below, above = side // factor * factor, (side // factor + 1) * factor
            would_do = f"{below} or {above}" if below > 0 else f"{above}"
            raise ValueError(
                f"image_size {side} cannot be halved {levels - 1} times, as {levels} channel_mults ask; "
                f"{would_do} would do"
            )
    return [min(height, width) // 2**level for level in range(levels)]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _check_base_channels(base_channels: int) -> None:
    if base_channels > 2**16:  # before a table of its size is made
        raise ValueError(f"base_channels must be at most {2**16}, got {base_channels}")
    if base_channels % 2 != 0:
        raise ValueError(
            f"base_channels must be even, for the sines and cosines of the time embedding, got {base_channels}"
        )


def _check_levels(
    widths: Sequence[int],
    resolutions: Sequence[int],
    attention_resolutions: Sequence[int],
    *,
    norm_groups: int,
    num_heads: int,
) -> None:
    for resolution in attention_resolutions:
        if resolution not in resolutions:
            raise ValueError(
                f"attention_resolutions has {resolution}, but this network's are {list(resolutions)}: choose of these, "
                "or another image_size or channel_mults"
            )
    for width in widths:
        if width % norm_groups != 0:
            raise ValueError(f"norm_groups {norm_groups} does not divide the {width} channels of a level")
        if width % num_heads != 0:
            raise ValueError(f"num_heads {num_heads} does not divide the {width} channels of a level")
