"""The one contract that joins networks to samplers: `denoise(x_t, t) -> Denoised`, a whole batch at one t.

This is all that a sampler knows of a network. Labels are bound into the denoiser, and guidance and thresholds wrap it,
before a sampler gets it.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Denoised(NamedTuple):
    """What a denoiser predicts from x_t: the clean image and the noise, with x_t = alpha x_0 + sigma eps."""

    x_0: Tensor  # [B, C, H, W]
    eps: Tensor  # [B, C, H, W]
    # The network's output for a learned variance, [B, C, H, W] in about [-1, 1]; None from any other network.
    variance: Tensor | None = None


Denoiser = Callable[[Tensor, int], Denoised]  # x_t [B, C, H, W], and the t in {0 .. T-1} that all of it is at
