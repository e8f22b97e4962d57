"""At which timesteps a batch is trained, and by how much each of its losses then counts."""

from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """Timesteps `[B]` int64 in `{0 .. T-1}`, and weights `[B]`: losses so weighted have the mean of uniform t."""

    t: Tensor
    weights: Tensor


class Uniform:
    """Every t is as likely, for every image by itself (DDPM, algorithm 1).

    Args:
        timesteps: T.
    """

    learns = False  # whether `update` reads the losses of every step, for which a GPU has to be waited for

    def __init__(self, timesteps: int):
        self.timesteps = timesteps

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Timesteps of a batch of `size`, on the generator's device."""
        t = torch.randint(self.timesteps, (size,), generator=generator, device=generator.device)
        return Draw(t, torch.ones(size, device=t.device))

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from the unweighted losses `[B]` at t `[B]`."""

    def state_dict(self) -> dict[str, Tensor]:
        """What has been learned, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state_dict()` was."""


class Stratified(Uniform):
    """Every t is as likely, and a batch has them evenly spread (low-discrepancy: Kingma et al. 2021, appendix I.1).

    Image i is trained at T (u + i / B) modulo T, with one uniform u for the batch: losses vary less from step to step.
    """

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        device = generator.device
        u = torch.rand(1, generator=generator, device=device)
        u = (u + torch.arange(size, device=device) / size) % 1
        t = (u * self.timesteps).long().clamp(max=self.timesteps - 1)
        return Draw(t, torch.ones(size, device=device))


class LossSecondMoment(Uniform):
    """The t of large losses more often, each counting less for it (Improved DDPM, section 3.3, eq. 18).

    p(t) is proportional to the root of the mean square of the last `history` losses at t. Until there are so many at
    every t, t is uniform.

    Args:
        timesteps: T.
        history: losses remembered for each t.
        uniform: share of draws that stay uniform, so that no t is forgotten.

    Raises:
        ValueError: if `history` < 1 or `uniform` lies outside (0, 1].
    """

    learns = True

    def __init__(self, timesteps: int, *, history: int = 10, uniform: float = 0.001):
        super().__init__(timesteps)
        if history < 1:
            raise ValueError(f"history must be at least 1, got {history}")
        if not 0 < uniform <= 1:
            raise ValueError(f"uniform must lie in (0, 1], got {uniform:g}")
        self.uniform = uniform
        self.losses = torch.zeros(timesteps, history)  # of each t a ring: the next one goes to `seen` modulo its length
        self.seen = torch.zeros(timesteps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """p(t), `[T]` in float64."""
        if (self.seen < self.losses.shape[1]).any():
            return torch.full((self.timesteps,), 1 / self.timesteps, dtype=torch.float64)
        size = self.losses.double().square().mean(1).sqrt()
        if size.sum() == 0:
            size = torch.ones_like(size)
        return (1 - self.uniform) * size / size.sum() + self.uniform / self.timesteps

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        p = self.probabilities().to(generator.device, torch.float32)
        t = torch.multinomial(p, size, replacement=True, generator=generator)
        return Draw(t, 1 / (self.timesteps * p[t]))

    def update(self, t: Tensor, losses: Tensor) -> None:
        for i, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self.losses[i, self.seen[i] % self.losses.shape[1]] = loss
            self.seen[i] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """As `Uniform.load_state_dict`. Raises ValueError for what cannot have been."""
        losses, seen = state["losses"], state["seen"]
        if losses.shape != self.losses.shape or seen.shape != self.seen.shape or seen.dtype != torch.int64:
            raise ValueError(f"the losses seen at each t are {list(losses.shape)}, not {list(self.losses.shape)}")
        if not torch.isfinite(losses).all() or (seen < 0).any():
            raise ValueError("the losses seen at each t are not finite, or their number is negative")
        self.losses.copy_(losses)
        self.seen.copy_(seen)
