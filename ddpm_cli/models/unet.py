"""The U-Net of DDPM (Ho et al. 2020, appendix B): residual blocks with time embedding, self-attention at some sizes.

With other options it is the network of Improved DDPM (Nichol & Dhariwal 2021) and of ADM (Dhariwal & Nichol 2021).
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_cli.models.blocks import Attention, Block, BlockOptions, Downsample, Padding, Upsample, double, halve
from ddpm_cli.models.cpu_layers import Conv3x3
from ddpm_cli.models.unet_sizes import (
    check_base_channels,
    check_counts,
    check_details,
    check_heads,
    check_levels,
    level_sizes,
)


class UNet(nn.Module):
    """Network for (x_t, t) or (x_t, t, labels) -> `[B, C, H, W]`, or `[B, 2 C, H, W]` with `learn_variance`.

    Every level but the last halves the image. A level has `num_res_blocks` residual blocks on the way down and one more
    on the way up, each followed by self-attention if the level's resolution is in `attention_resolutions`. The last
    convolution of every block and of the network starts at zero, so that the network starts as the zero function.

    The weights of convolutions are stored with channels last, which makes convolutions faster on CPUs and on GPUs.

    Set the attribute `activation_checkpointing` to keep only the inputs and outputs of the layers for the backward
    pass, which computes the rest again (Chen et al. 2016): less memory, the same result.

    Args:
        image_size: H = W, or (H, W), in pixels; divisible by 2 ** (levels - 1).
        in_channels: C.
        base_channels: channels of the first level.
        channel_mults: channels of each level, as multiples of `base_channels`; one entry per level.
        num_res_blocks: residual blocks per level.
        attention_resolutions: levels with self-attention, named by their shorter side in pixels.
        dropout: probability of zeroing an activation before a block's second convolution.
        num_heads: of the self-attention; DDPM has one.
        head_channels: channels of each head, instead of `num_heads`: wider levels have more heads.
        norm_groups: of every group normalisation; must divide every level's channels.
        norm_eps: of every group normalisation, added to the variance; other networks than DDPM's have 1e-5.
        time_cos_first: the sinusoidal time embedding is cos || sin, not sin || cos.
        time_freq_shift: 1, or 0 as in Improved DDPM: with half = base_channels / 2, the frequencies are
            10000^(-i / (half - shift)) for i = 0 .. half - 1.
        time_scale: t is multiplied by this before it is embedded; Improved DDPM has 1000 / T.
        downsample_padding: of the convolutions that halve the image; "same": on the right and below, "symmetric": on
            all sides.
        scale_shift_norm: the time embedding scales and shifts the output of a block's second normalisation, instead of
            being added to its input (Nichol & Dhariwal 2021, appendix A).
        resblock_updown: residual blocks halve and double the image, not convolutions (Dhariwal & Nichol 2021, section
            3).
        num_classes: labels that the network takes, 0 .. num_classes - 1; None: it takes none. A label adds a learned
            vector to the time embedding (Nichol & Dhariwal 2021, section 5); no label adds nothing.
        null_label: whether images may have no label, which guidance needs; False: every image must have one.
        learn_variance: have twice the output channels; the second half is for `variance=learned_range`.

    Raises:
        ValueError: if the sizes do not fit each other; the message names sizes that do.
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
        head_channels: int | None = None,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        time_cos_first: bool = False,
        time_freq_shift: int = 1,
        time_scale: float = 1.0,
        downsample_padding: Padding = "same",
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        num_classes: int | None = None,
        null_label: bool = True,
        learn_variance: bool = False,
    ):
        super().__init__()
        self.activation_checkpointing = False
        self.num_classes = num_classes
        self.null_label = null_label
        self.learn_variance = learn_variance
        self.time_cos_first = time_cos_first
        sizes = level_sizes(image_size, len(channel_mults))
        widths = [base_channels * mult for mult in channel_mults]
        check_counts(
            in_channels=in_channels,
            base_channels=base_channels,
            channel_mults=min(channel_mults),
            num_res_blocks=num_res_blocks,
            num_heads=num_heads,
            norm_groups=norm_groups,
            num_classes=1 if num_classes is None else num_classes,
        )
        check_base_channels(base_channels)
        check_levels(widths, sizes, attention_resolutions, norm_groups=norm_groups)
        check_heads(widths, sizes, attention_resolutions, num_heads=num_heads, head_channels=head_channels)
        check_details(
            dropout=dropout,
            norm_eps=norm_eps,
            time_freq_shift=time_freq_shift,
            time_scale=time_scale,
            downsample_padding=downsample_padding,
            resblock_updown=resblock_updown,
        )
        if num_classes is None and not null_label:
            raise ValueError("null_label=false has no effect without labels; num_classes says how many there are")
        options = BlockOptions(
            time_channels=4 * base_channels,
            dropout=dropout,
            num_heads=num_heads,
            head_channels=head_channels,
            norm_groups=norm_groups,
            norm_eps=norm_eps,
            scale_shift_norm=scale_shift_norm,
        )
        self.time_frequencies: Tensor
        frequencies = _frequencies(base_channels, shift=time_freq_shift, scale=time_scale)
        self.register_buffer("time_frequencies", frequencies, persistent=False)
        self.time_mlp = nn.Sequential(
            nn.Linear(base_channels, options.time_channels),
            nn.SiLU(),
            nn.Linear(options.time_channels, options.time_channels),
        )
        self.label_embedding = None
        if num_classes is not None:
            # From zeros: nn.Embedding's own initialisation would draw random numbers before those of the other layers.
            zeros = torch.zeros(num_classes, options.time_channels)
            self.label_embedding = nn.Embedding.from_pretrained(zeros, freeze=False)

        def block(channels_in: int, channels_out: int, attention: bool) -> Block:
            return Block(channels_in, channels_out, options, attention=attention)

        def downsample(width: int) -> nn.Module:
            if resblock_updown:
                return Block(width, width, options, resize=halve)
            return Downsample(width, downsample_padding)

        def upsample(width: int) -> nn.Module:
            return Block(width, width, options, resize=double) if resblock_updown else Upsample(width)

        levels = [(width, size in attention_resolutions) for width, size in zip(widths, sizes, strict=True)]
        self.conv_in = Conv3x3(in_channels, base_channels)
        self.down, skips = _down(block, downsample, base_channels, levels, num_res_blocks)
        self.middle = nn.ModuleList([block(widths[-1], widths[-1], True), block(widths[-1], widths[-1], False)])
        self.up = _up(block, upsample, skips, levels, num_res_blocks)
        self.norm_out = options.norm(widths[0])
        self.conv_out = Conv3x3(widths[0], in_channels * (2 if learn_variance else 1))
        self._initialise()
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x is `[B, C, H, W]`, t is `[B]`, labels are `[B]` int64, -1 for none; returns `[B, C or 2 C, H, W]`.

        Raises:
            ValueError: for labels if the network takes none, or no labels if it needs them.
        """
        time = self.time_mlp(self._embed(t))
        if labels is not None or not self.null_label:
            time = time + self._embed_labels(labels)
        time = F.silu(time)  # every block would start with this: once is enough
        # Every layer keeps the layout of its input, but the first one cannot tell the layout of a one-channel image.
        h = self.conv_in(x).contiguous(memory_format=torch.channels_last)
        skips = [h]
        for layer in self.down:
            h = self._through(layer, h, time)
            skips.append(h)
        for layer in self.middle:
            h = self._through(layer, h, time)
        for layer in self.up:
            if isinstance(layer, Block) and layer.resize is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = self._through(layer, h, time)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _through(self, layer: nn.Module, h: Tensor, time: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, h, time, use_reentrant=False)
        return layer(h, time)

    def _embed(self, t: Tensor) -> Tensor:
        """Sinusoidal embedding of t: sin || cos as in DDPM's code, or cos || sin. `[B]` -> `[B, base_channels]`"""
        angles = t.float()[:, None] * self.time_frequencies[None]
        halves = [angles.sin(), angles.cos()]
        return torch.cat(halves[::-1] if self.time_cos_first else halves, dim=1)

    def _embed_labels(self, labels: Tensor | None) -> Tensor:
        """`[B]` -> `[B, 4 base_channels]`, zero where the label is -1: exactly as without labels."""
        if self.label_embedding is None:
            raise ValueError("this network takes no labels; it was built with num_classes=None")
        if labels is None:
            raise ValueError("this network needs a label for each image; it was built with null_label=False")
        if not self.null_label:
            return self.label_embedding(labels)
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
        if self.label_embedding is not None:  # last, so that all other layers start as they would without labels
            nn.init.normal_(self.label_embedding.weight, std=0.02)


def _down(
    block: Callable[[int, int, bool], Block],
    downsample: Callable[[int], nn.Module],
    channels: int,
    levels: Sequence[tuple[int, bool]],
    num_res_blocks: int,
) -> tuple[nn.ModuleList, list[int]]:
    """The layers from the image's resolution down, and the channels of each of their outputs, which the way up reuses.

    Args:
        channels: of the first layer's input, which is the first of these outputs.
        levels: the channels of each level, and whether it has self-attention.
    """
    layers, skips = nn.ModuleList(), [channels]
    for level, (width, attention) in enumerate(levels, start=1):
        for _ in range(num_res_blocks):
            layers.append(block(skips[-1], width, attention))
            skips.append(width)
        if level < len(levels):
            layers.append(downsample(width))
            skips.append(width)
    return layers, skips


def _up(
    block: Callable[[int, int, bool], Block],
    upsample: Callable[[int], nn.Module],
    skips: list[int],
    levels: Sequence[tuple[int, bool]],
    num_res_blocks: int,
) -> nn.ModuleList:
    """The layers back up to the image's resolution; each block also takes one of `skips`, the last one first."""
    layers, channels = nn.ModuleList(), skips[-1]
    for level, (width, attention) in reversed(list(enumerate(levels))):
        for _ in range(num_res_blocks + 1):
            layers.append(block(channels + skips.pop(), width, attention))
            channels = width
        if level > 0:
            layers.append(upsample(channels))
    assert not skips
    return layers


def _frequencies(channels: int, *, shift: int, scale: float) -> Tensor:
    """Frequencies of the sines and cosines that embed t, `[channels / 2]` in radians per timestep."""
    half = channels // 2
    # Not torch.exp(torch.arange()): on "meta" tensors these import torch's compiler, which takes a second.
    rates = [scale * math.exp(-math.log(10_000) * i / max(half - shift, 1)) for i in range(half)]
    return torch.tensor(rates, dtype=torch.float64).float()
