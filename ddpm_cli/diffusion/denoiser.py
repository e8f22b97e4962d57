"""The one contract that joins networks to samplers: `denoise(x_t, t) -> Denoised`, a whole batch at one t.

A sampler knows nothing else of a network. Labels are bound into a denoiser, and guidance and thresholds are put around
one, before it is handed to a sampler.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Denoised(NamedTuple):
    """What a denoiser makes of x_t: the clean image and the noise, with x_t = alpha x_0 + sigma eps."""

    x_0: Tensor  # [B, C, H, W]
    eps: Tensor  # [B, C, H, W]
    # What a network with a learned variance says of it, [B, C, H, W] in about [-1, 1]; None from any other network.
    variance: Tensor | None = None


Denoiser = Callable[[Tensor, int], Denoised]  # x_t [B, C, H, W], and the t in {0 .. T-1} that all of it is at
