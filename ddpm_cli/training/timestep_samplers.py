"""Timestep samplers: at which timesteps a batch is trained, and how much each of its losses counts."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule


class Draw(NamedTuple):
    """Timesteps `[B]` int64 in `{0 .. T-1}`, and weights `[B]` of their losses.

    The weighted losses have the mean of uniform t, except with `LogNormal`, which trains some timesteps more.
    """

    t: Tensor
    weights: Tensor


class Uniform:
    """Every t is equally likely, for each image independently (DDPM, algorithm 1).

    Args:
        schedule: of T timesteps.
    """

    learns = False  # whether `update` reads the losses of every step, for which the host waits for a GPU

    def __init__(self, schedule: NoiseSchedule):
        self.timesteps = schedule.timesteps

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        """Timesteps of a batch of `size`, on the generator's device."""
        t = torch.randint(self.timesteps, (size,), generator=generator, device=generator.device)
        return Draw(t, torch.ones(size, device=t.device))

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from the unweighted losses `[B]` at t `[B]`."""

    def state_dict(self) -> dict[str, Tensor]:
        """What has been learned, to be saved in a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict()` returned."""


class Stratified(Uniform):
    """Every t is equally likely, and a batch is spread evenly over them (Kingma et al. 2021, appendix I.1).

    Image i is trained at T (u + i / B) modulo T, with one uniform u for the batch: losses vary less from step to step.
    """

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        device = generator.device
        u = torch.rand(1, generator=generator, device=device)
        u = (u + torch.arange(size, device=device) / size) % 1
        t = (u * self.timesteps).long().clamp(max=self.timesteps - 1)
        return Draw(t, torch.ones(size, device=device))


class LogNormal(Uniform):
    """Middle noise levels more often, all with weight 1: a log-normal SNR (Karras et al. 2022, table 1).

    p(t) is the share of a normal distribution of log SNR that is closer to t's log SNR than to any other timestep's.

    Args:
        schedule: of T timesteps.
        mean, std: of log SNR. The paper gives those of its log noise level: P_mean = -mean / 2, P_std = std / 2.
        uniform: share of timesteps that are drawn uniformly, as sampling also passes through the t that p leaves out.

    Raises:
        ValueError: if `std` is not positive or `uniform` lies outside (0, 1].
    """

    def __init__(self, schedule: NoiseSchedule, *, mean: float = 2.4, std: float = 2.4, uniform: float = 0.1):
        super().__init__(schedule)
        if not std > 0:
            raise ValueError(f"std must be positive, got {std:g}")
        if not 0 < uniform <= 1:
            raise ValueError(f"uniform must lie in (0, 1], got {uniform:g}")
        self.schedule, self.mean, self.std, self.uniform = schedule, mean, std, uniform
        self.p = self.probabilities()

    def probabilities(self) -> Tensor:
        """p(t), `[T]`, on the schedule's device."""
        log_snr = self.schedule.log_snr
        between = (log_snr[1:] + log_snr[:-1]) / 2  # falls with t
        noisier = torch.special.ndtr((between - self.mean) / self.std)  # the share beyond each
        p = -torch.diff(noisier, prepend=torch.ones_like(log_snr[:1]), append=torch.zeros_like(log_snr[:1]))
        return ((1 - self.uniform) * p + self.uniform / self.timesteps).float()

    def draw(self, size: int, generator: torch.Generator) -> Draw:
        if self.p.device != generator.device:  # the schedule has been moved since
            self.p = self.probabilities()
        t = torch.multinomial(self.p, size, replacement=True, generator=generator)
        return Draw(t, torch.ones(size, device=t.device))


class LossSecondMoment(Uniform):
    """Timesteps with large losses more often, with smaller weights in return (Improved DDPM, section 3.3, eq. 18).

    p(t) is proportional to the root mean square of the last `history` losses at t. Until every t has that many losses,
    t is uniform.

    Args:
        schedule: of T timesteps.
        history: losses remembered for each t.
        uniform: share of timesteps that are drawn uniformly, so that no t is forgotten.

    Raises:
        ValueError: if `history` < 1 or `uniform` lies outside (0, 1].
    """

    learns = True

    def __init__(self, schedule: NoiseSchedule, *, history: int = 10, uniform: float = 0.001):
        super().__init__(schedule)
        if history < 1:
            raise ValueError(f"history must be at least 1, got {history}")
        if not 0 < uniform <= 1:
            raise ValueError(f"uniform must lie in (0, 1], got {uniform:g}")
        self.uniform = uniform
        self.losses = torch.zeros(self.timesteps, history)  # rings: the next goes to `seen` modulo their length
        self.seen = torch.zeros(self.timesteps, dtype=torch.int64)

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
        """As `Uniform.load_state_dict`. Raises ValueError for an impossible state."""
        losses, seen = state["losses"], state["seen"]
        if losses.shape != self.losses.shape or seen.shape != self.seen.shape or seen.dtype != torch.int64:
            raise ValueError(f"the losses seen at each t are {list(losses.shape)}, not {list(self.losses.shape)}")
        if not torch.isfinite(losses).all() or (seen < 0).any():
            raise ValueError("the losses seen at each t are not finite, or their count is negative")
        self.losses.copy_(losses)
        self.seen.copy_(seen)
