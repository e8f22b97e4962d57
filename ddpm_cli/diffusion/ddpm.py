"""Denoising diffusion probabilistic models (Ho et al. 2020): the forward process, the loss, the reverse process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.prediction import Epsilon
from ddpm_cli.diffusion.samplers import Denoised, Noise, Sampler, State, Variance
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import fixed_small
from ddpm_cli.diffusion.weighting import simple


class DDPM(nn.Module):
    """A network, a noise schedule, and what joins them. Images are `[B, C, H, W]` in [-1, 1].

    Args:
        model: network called as `model(x_t, t)` with t `[B]` int64; returns x_t's shape.
        schedule: the forward process; moves with the module.
        prediction: what the network is asked for.
        weighting: weight of an image's loss given its log-SNR, `[B]` -> `[B]`.
        variance: of the reverse steps.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction: Epsilon | None = None,
        weighting: Callable[[Tensor], Tensor] = simple,
        variance: Variance = fixed_small,
    ):
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.prediction = Epsilon() if prediction is None else prediction
        self.weighting = weighting
        self.variance = variance

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # nn.Module moves parameters and buffers only. The schedule follows by device alone: `.half()` leaves it exact.
        super()._apply(fn, recurse)
        self.schedule.to(self.device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def with_model(self, model: nn.Module) -> "DDPM":
        """The same diffusion around another network, such as an average of this one."""
        return DDPM(model, self.schedule, prediction=self.prediction, weighting=self.weighting, variance=self.variance)

    @torch.no_grad()
    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Send one black image of `shape` (C, H, W) through the network.

        Raises:
            ValueError: if the network does not take it, or answers with another shape.
        """
        x, t = torch.zeros(1, *shape, device=self.device), torch.zeros(1, dtype=torch.int64, device=self.device)
        try:
            with self._evaluating():  # statistics that a network keeps in training must not see this image
                out = self.model(x, t)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"cannot take images of shape {list(shape)}: {error}") from error
        if out.shape != x.shape:
            raise ValueError(f"makes {list(out.shape[1:])} out of images of shape {list(shape)}; they must be the same")

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t and its noise, drawn from q(x_t | x_0) in closed form (DDPM eq. 4). t is `[B]` int64 in {0 .. T-1}."""
        noise = torch.randn_like(x_0) if noise is None else noise
        alpha, sigma = self.schedule.alpha_sigma(t, x_0.shape)
        return alpha * x_0 + sigma * noise, noise

    def training_loss(self, x_0: Tensor, noise: Tensor | None = None) -> Tensor:
        """Mean loss of a batch at uniformly drawn timesteps, a scalar (DDPM, algorithm 1)."""
        t = torch.randint(self.schedule.timesteps, (len(x_0),), device=x_0.device)
        return self.losses(x_0, t, noise).mean()

    def losses(self, x_0: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Weighted squared error of each image at its timestep, averaged over pixels, `[B]` in float32."""
        x_t, noise = self.q_sample(x_0, t, noise)
        alpha, sigma = self.schedule.alpha_sigma(t, x_0.shape)
        target = self.prediction.target(x_0, noise, alpha, sigma)
        error = (self.model(x_t, t).float() - target).square().flatten(1).mean(1)
        return self.weighting(self.schedule.log_snr.gather(0, t)).float() * error

    def denoise(self, x_t: Tensor, t: Tensor, *, clip_denoised: bool = True) -> Denoised:
        """The x_0 and eps that the network sees in x_t; eps is derived again after x_0 was clipped to [-1, 1]."""
        alpha, sigma = self.schedule.alpha_sigma(t, x_t.shape)
        x_0 = self.prediction.x_0(self.model(x_t, t).float(), x_t, alpha, sigma)
        if clip_denoised:
            x_0 = x_0.clamp(-1, 1)
        return Denoised(x_0, (x_t - alpha * x_0) / sigma)

    @torch.no_grad()
    def p_sample(self, x_t: Tensor, t: Tensor, clip_denoised: bool = True, noise: Tensor | None = None) -> Tensor:
        """One reverse step, x_{t-1} drawn from p(x_{t-1} | x_t) (DDPM eq. 11); at t = 0 the mean. `[B, C, H, W]`"""
        noise = torch.randn_like(x_t) if noise is None else noise
        denoised = self.denoise(x_t, t, clip_denoised=clip_denoised)
        return samplers.ddpm_step(self.schedule, x_t, t, t - 1, denoised, noise, variance=self.variance)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int,
        image_size: int | tuple[int, int],
        channels: int = 3,
        device: torch.device | str | None = None,
        show_progress: bool = True,
        *,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw images from the model.

        Args:
            batch_size: number of images B.
            image_size: H = W, or (H, W), in pixels.
            channels: C.
            device: where to; the model moves there. None: where the model is.
            show_progress: draw a progress bar on stderr.
            sampler: see `ddpm_cli.diffusion.samplers`; ancestral sampling over all T steps by default.
            generator: source of the noise, on that device; torch's global one by default.

        Returns:
            `[B, C, H, W]` float32 in [-1, 1].
        """
        if device is not None:
            self.to(device)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        shape = (batch_size, channels, height, width)
        states = self.sample_states(lambda: torch.randn(shape, generator=generator, device=self.device), sampler)
        x = torch.empty(0)
        with tqdm(desc="sampling", unit="step", disable=not show_progress, leave=False) as bar:
            for state in states:
                bar.total = state.steps
                bar.update()
                x = state.x
        return x.clamp(-1, 1)

    @torch.no_grad()
    def sample_states(self, noise: Noise, sampler: Sampler | None = None) -> Iterator[State]:
        """The whole reverse process from `noise()` `[B, C, H, W]` on, state by state, with dropout off."""
        sampler = partial(samplers.ddpm, variance=self.variance) if sampler is None else sampler
        with self._evaluating():
            yield from sampler(self.denoise, self.schedule, noise(), noise)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)
