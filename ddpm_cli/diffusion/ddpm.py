"""Denoising diffusion probabilistic models (Ho et al. 2020): the forward process, the loss, the reverse process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_cli.diffusion import bound, samplers
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.guidance import UNGUIDED, Guidance, guided
from ddpm_cli.diffusion.loss import Hybrid, Loss, Simple, Terms
from ddpm_cli.diffusion.prediction import Epsilon, Prediction
from ddpm_cli.diffusion.samplers import Noise, Sampler, State
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.threshold import Threshold, none, static, thresholded
from ddpm_cli.diffusion.variance import Variance, fixed_small, is_learned
from ddpm_cli.diffusion.weighting import Weighting, uniform


class Bound(NamedTuple):
    """The variational bound of images in bits per dimension: the sum of its terms and the prior's."""

    terms: Tensor  # [B, T], L_t at t; the decoder's at 0
    prior: Tensor  # [B]

    @property
    def total(self) -> Tensor:
        """`[B]`"""
        return self.terms.sum(1) + self.prior


class DDPM(nn.Module):
    """A network, a noise schedule, and what joins them. Images are `[B, C, H, W]` in [-1, 1].

    Args:
        model: network called as `model(x_t, t)`, or `model(x_t, t, labels)` where there are labels, with t and labels
            `[B]` int64 (label -1: none); returns x_t's shape, or twice its channels: the second half is for `variance`.
        schedule: the forward process; moves with the module.
        prediction: what the network is asked for.
        weighting: of the squared error, see `ddpm_cli.diffusion.weighting`.
        variance: of the reverse steps.
        loss: what is minimised.

    Raises:
        ValueError: if these cannot work together; says what to choose instead.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction: Prediction | None = None,
        weighting: Weighting = uniform,
        variance: Variance = fixed_small,
        loss: Loss | None = None,
    ):
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.prediction = Epsilon() if prediction is None else prediction
        self.weighting = weighting
        self.variance = variance
        self.loss = Simple() if loss is None else loss
        self.learns_variance = is_learned(variance)
        self.prediction.check(schedule)
        _check_loss(self.loss, weighting, learns_variance=self.learns_variance)

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

    @property
    def num_classes(self) -> int | None:
        """How many labels the network knows; None if it takes none."""
        return getattr(self.model, "num_classes", None)

    def with_model(self, model: nn.Module) -> "DDPM":
        """The same diffusion around another network, such as an average of this one."""
        return DDPM(
            model,
            self.schedule,
            prediction=self.prediction,
            weighting=self.weighting,
            variance=self.variance,
            loss=self.loss,
        )

    @torch.no_grad()
    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Send one black image of `shape` (C, H, W) through the network.

        Raises:
            ValueError: if the network does not take it, or answers with another shape.
        """
        x, t = torch.zeros(1, *shape, device=self.device), torch.zeros(1, dtype=torch.int64, device=self.device)
        try:
            with self.evaluating():  # statistics that a network keeps in training must not see this image
                out = self.model(x, t)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"cannot take images of shape {list(shape)}: {error}") from error
        made = list(out.shape[1:])
        if out.shape[2:] != x.shape[2:] or made[0] not in (shape[0], 2 * shape[0]):
            raise ValueError(f"makes {made} out of images of shape {list(shape)}; they must be the same")
        if made[0] == shape[0] and self.learns_variance:
            raise ValueError(f"makes {made}, without channels for a learned variance: set learn_variance=true")

    def check_weighting(self) -> None:
        """Raise ValueError where the weighting leaves a timestep untrained: sampling passes through all of them."""
        log_snr = self.schedule.log_snr
        weights = self.weighting(log_snr, self.prediction.log_scale(log_snr))
        without = ~((weights > 0) & torch.isfinite(weights))
        if self.loss.weighted and without.any():
            t = int(without.nonzero()[-1])
            raise ValueError(
                f"gives t = {t} the weight {weights[t].item():g}, and sampling passes through it; "
                "choose weighting=uniform or weighting=truncated_snr"
            )

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t and its noise, drawn from q(x_t | x_0) in closed form (DDPM eq. 4). t is `[B]` int64 in {0 .. T-1}."""
        noise = torch.randn_like(x_0) if noise is None else noise
        alpha, sigma = self.schedule.alpha_sigma(t, x_0.shape)
        return alpha * x_0 + sigma * noise, noise

    def training_loss(self, x_0: Tensor, noise: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Mean loss of a batch at uniformly drawn timesteps, a scalar (DDPM, algorithm 1)."""
        t = torch.randint(self.schedule.timesteps, (len(x_0),), device=x_0.device)
        return self.losses(x_0, t, noise, labels).mean()

    def losses(self, x_0: Tensor, t: Tensor, noise: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Loss of each image at its timestep, averaged over pixels, `[B]` in float32.

        Args:
            labels: `[B]` int64, -1 for none; None: the network is asked without.
        """
        x_t, noise = self.q_sample(x_0, t, noise)
        output, variance_output = self._ask(x_t, t, labels)
        return self.loss(
            Terms(
                schedule=self.schedule,
                prediction=self.prediction,
                weighting=self.weighting,
                variance=self.variance,
                x_0=x_0,
                x_t=x_t,
                t=t,
                noise=noise,
                output=output,
                variance_output=variance_output,
            )
        )

    @torch.no_grad()
    def variational_bound(
        self, x_0: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Bound:
        """The bound on -log p(x_0) of each image, with one draw of x_t for every t and x_0 clipped: T network calls."""
        terms = []
        with self.evaluating():
            for i in range(self.schedule.timesteps):
                t = torch.full((len(x_0),), i, device=x_0.device)
                noise = torch.randn(x_0.shape, generator=generator, device=x_0.device)
                x_t, _ = self.q_sample(x_0, t, noise)
                denoised = self.denoise(x_t, t, labels=labels)
                terms.append(bound.term(self.schedule, self.variance, x_0, x_t, t, denoised))
        return Bound(torch.stack(terms, dim=1), bound.prior(self.schedule, x_0))

    def denoise(self, x_t: Tensor, t: Tensor, *, clip_denoised: bool = True, labels: Tensor | None = None) -> Denoised:
        """The x_0 and eps that the network sees in x_t; eps is derived again after x_0 was clipped to [-1, 1]."""
        return self.denoiser(labels, threshold=static if clip_denoised else none)(x_t, t)

    def denoiser(
        self, labels: Tensor | None = None, *, guidance: Guidance = UNGUIDED, threshold: Threshold = static
    ) -> Denoiser:
        """What samplers are given: the network asked for images of `labels` `[B]`, guided, its x_0 kept in bounds.

        Args:
            labels: int64, -1 for none; None: all without.

        Raises:
            ValueError: for guidance without labels to be guided by.
        """
        if guidance.scale != 1 and (labels is None or self.num_classes is None):
            raise ValueError(f"scale {guidance.scale:g} has no effect without labels to be guided by")
        with_labels, without = partial(self._see, labels=labels), partial(self._see, labels=None)
        denoise = guided(with_labels, without, self.schedule, guidance)
        return thresholded(denoise, self.schedule, threshold)

    def _see(self, x_t: Tensor, t: Tensor, *, labels: Tensor | None) -> Denoised:
        output, variance = self._ask(x_t, t, labels)
        alpha, sigma = self.schedule.alpha_sigma(t, x_t.shape)
        prediction = self.prediction
        x_0, eps = (way(output, x_t, alpha, sigma) for way in (prediction.x_0, prediction.eps))
        return Denoised(x_0, eps, variance)

    def _ask(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The network's answer in float32, and what it says of the variance, if it does."""
        output = (self.model(x_t, t) if labels is None else self.model(x_t, t, labels)).float()
        channels = x_t.shape[1]
        if output.shape[1] == channels:
            return output, None
        return output[:, :channels], output[:, channels:]

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
        labels: Tensor | None = None,
        guidance: Guidance = UNGUIDED,
        threshold: Threshold = static,
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
            labels, guidance, threshold: see `denoiser`.

        Returns:
            `[B, C, H, W]` float32 in [-1, 1].
        """
        if device is not None:
            self.to(device)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        shape = (batch_size, channels, height, width)

        def draw() -> Tensor:
            return torch.randn(shape, generator=generator, device=self.device)

        denoise = self.denoiser(labels, guidance=guidance, threshold=threshold)
        states = self.sample_states(draw, sampler, denoise=denoise)
        x = torch.empty(0)
        with tqdm(desc="sampling", unit="step", disable=not show_progress, leave=False) as bar:
            for state in states:
                bar.total = state.steps
                bar.update()
                x = state.x
        return x.clamp(-1, 1)

    @torch.no_grad()
    def sample_states(
        self, noise: Noise, sampler: Sampler | None = None, *, denoise: Denoiser | None = None
    ) -> Iterator[State]:
        """The whole reverse process from `noise()` `[B, C, H, W]` on, state by state, with dropout off.

        Args:
            denoise: from `denoiser`; None: `denoiser()`.
        """
        sampler = partial(samplers.ddpm, variance=self.variance) if sampler is None else sampler
        with self.evaluating():
            yield from sampler(self.denoiser() if denoise is None else denoise, self.schedule, noise(), noise)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, dropout is off."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)


def _check_loss(loss: Loss, weighting: Weighting, *, learns_variance: bool) -> None:
    if learns_variance and not loss.trains_variance:
        raise ValueError(
            "loss=simple does not train the variance that variance=learned_range learns; choose loss=hybrid or loss=vlb"
        )
    if not learns_variance and isinstance(loss, Hybrid):
        raise ValueError(
            "loss=hybrid trains a learned variance, and this one is fixed; choose variance=learned_range, "
            "or loss=simple, or loss=vlb"
        )
    if not loss.weighted and getattr(weighting, "func", weighting) is not uniform:
        raise ValueError("weighting has no effect with loss=vlb, which has its own; choose weighting=uniform")
