"""torch's layers, computed another way where torch's kernels for channels last are slow on a CPU.

Names, shapes and initialisation of the parameters are torch's; results differ only by rounding. On other devices,
compiled, or in half precision they are exactly torch's layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
LEAST_CHANNELS = 128  # in and out: with this many or more the matrix product is faster
BLOCK = 2**20  # numbers copied at a time, 4 MiB: they are still in the cache when they are multiplied


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution. For its weight's gradient, oneDNN with AVX2 takes twice as long as for the forward pass."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, padding: int = 1):
        super().__init__(channels_in, channels_out, 3, stride=stride, padding=padding)

    def forward(self, input: Tensor) -> Tensor:
        wide = min(self.in_channels, self.out_channels) >= LEAST_CHANNELS
        if AVX2 and wide and torch.is_grad_enabled() and _plain_on_cpu(input):
            out: Any = _Convolution.apply(input, self.weight, self.bias, self.stride, self.padding)
            return out
        return super().forward(input)


class GroupNorm(nn.GroupNorm):
    """A group normalisation. With channels last, torch reads a group pixel by pixel, which is slow for small groups."""

    def forward(self, input: Tensor) -> Tensor:
        _, channels, height, width = input.shape
        if channels // self.num_groups < 8 and height * width < 1024 and _plain_on_cpu(input):
            return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(input)


def _plain_on_cpu(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


class _Convolution(torch.autograd.Function):
    """`torch.conv2d`, with the gradient of the weight by `weight_gradient`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False)
            )
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(x, gradient, stride=ctx.stride[0], padding=ctx.padding[0])
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def weight_gradient(x: Tensor, gradient: Tensor, *, stride: int, padding: int) -> Tensor:
    """The gradient of a 3 x 3 convolution's weight, `[O, C, 3, 3]`: inputs times output gradients, summed over pixels.

    A matrix product over copies of the 3 x 3 windows ("im2col", Chellapilla et al. 2006), a block of rows at a time.

    Args:
        x: the input, `[B, C, H, W]`.
        gradient: of the output, `[B, O, H', W']`.
    """
    padded = F.pad(x, 4 * (padding,)).permute(0, 2, 3, 1)
    windows = padded.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3)  # [B, H', W', 3, 3, C]
    gradient = gradient.permute(0, 2, 3, 1)
    batch, height, width, channels_out = gradient.shape
    size = 9 * x.shape[1]
    rows = max(1, BLOCK // (width * size))  # of a block, which may hold several images
    images, rows = max(1, rows // height), min(rows, height)
    columns = x.new_empty(min(images, batch) * rows * width, size)
    total = x.new_zeros(channels_out, size)
    for i in range(0, batch, images):
        for top in range(0, height, rows):
            block = windows[i : i + images, top : top + rows]
            seen = columns[: block.shape[:3].numel()]
            seen.view(block.shape).copy_(block)
            total.addmm_(gradient[i : i + images, top : top + rows].reshape(-1, channels_out).t(), seen)
    return total.view(channels_out, 3, 3, -1).permute(0, 3, 1, 2)
