"""What the network is asked for: its regression target, and the way back from its output to x_0."""

from torch import Tensor


class Epsilon:
    """The network predicts the noise eps of x_t = alpha x_0 + sigma eps (DDPM, section 3.2)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer. Images `[B, C, H, W]`, factors `[B, 1, 1, 1]`."""
        return eps

    def x_0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean image that the network's answer implies."""
        return (x_t - sigma * output) / alpha
