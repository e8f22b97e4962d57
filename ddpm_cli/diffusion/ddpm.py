"""Denoising diffusion probabilistic models (Ho et al. 2020): the forward process, the loss, the reverse process."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_cli.diffusion import bound, samplers
from ddpm_cli.diffusion.bound import Bound
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.guidance import UNGUIDED, Guidance, guided
from ddpm_cli.diffusion.loss import Loss, Simple, Terms, check_loss
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, expand_t
from ddpm_cli.diffusion.prediction import Epsilon, Prediction
from ddpm_cli.diffusion.samplers import Ancestral, Sampler
from ddpm_cli.diffusion.threshold import Static, Threshold, Unbounded, bounded, thresholded
from ddpm_cli.diffusion.variance import FixedSmall, Variance
from ddpm_cli.diffusion.weighting import Uniform, Weighting


class DDPM(nn.Module):
    """A network with a noise schedule, and how it is trained and sampled. Images are `[B, C, H, W]` in [-1, 1].

    Args:
        model: network called as `model(x_t, t)`, or `model(x_t, t, labels)` if there are labels, with t and labels
            `[B]` int64 (label -1: none); returns x_t's shape, or twice its channels: the second half is for `variance`.
        schedule: the forward process.
        prediction: what the network predicts.
        weighting: of the squared error, see `ddpm_cli.diffusion.weighting`.
        variance: of the reverse steps.
        loss: what is minimised.

    Raises:
        ValueError: if these cannot work together; the message says what to choose instead.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction: Prediction = Epsilon(),
        weighting: Weighting = Uniform(),
        variance: Variance = FixedSmall(),
        loss: Loss = Simple(),
    ):
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.prediction = prediction
        self.weighting = weighting
        self.variance = variance
        self.loss = loss
        self.learns_variance = variance.learned
        self.prediction.check(schedule)
        check_loss(loss, weighting, learns_variance=self.learns_variance)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def num_classes(self) -> int | None:
        """How many labels the network knows; None if it takes none."""
        return getattr(self.model, "num_classes", None)

    @property
    def needs_labels(self) -> bool:
        """Whether the network needs a label for each image: it was never trained without."""
        return self.num_classes is not None and not getattr(self.model, "null_label", True)

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
            ValueError: if the network does not take it, or its output has another shape.
        """
        x, t = torch.zeros(1, *shape, device=self.device), torch.zeros(1, dtype=torch.int64, device=self.device)
        labels = (torch.zeros_like(t),) if self.needs_labels else ()
        try:
            with self.evaluating():  # statistics that a network keeps in training must not see this image
                out = self.model(x, t, *labels)
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
                f"gives t = {t} the weight {weights[t].item():g}, but sampling passes through it; "
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
            labels: `[B]` int64, -1 for none; None: the network is called without labels.
        """
        noise = torch.randn_like(x_0) if noise is None else noise
        alpha, sigma = self.schedule.alpha_sigma(t, x_0.shape)
        x_t = alpha * x_0 + sigma * noise
        output, variance_output = self._ask(self.prediction.input(x_t, alpha, sigma), t, labels)
        return self.loss(
            Terms(
                schedule=self.schedule,
                prediction=self.prediction,
                weighting=self.weighting,
                variance=self.variance,
                x_0=x_0,
                x_t=x_t,
                t=t,
                alpha=alpha,
                sigma=sigma,
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

        def noise() -> Tensor:
            return torch.randn(x_0.shape, generator=generator, device=x_0.device)

        terms = list(self.bound_terms(x_0, labels, noise=noise))
        return Bound(torch.stack(terms, dim=1), bound.prior(self.schedule, x_0))

    @torch.no_grad()
    def bound_terms(
        self, x_0: Tensor, labels: Tensor | None = None, *, noise: Callable[[], Tensor]
    ) -> Iterator[Tensor]:
        """L_t of each image at t = 0, 1, .. T-1, `[B]` bits per dimension each: the terms of `variational_bound`.

        Args:
            noise: returns fresh standard normal noise of x_0's shape; called once for every t.
        """
        with self.evaluating():
            for i in range(self.schedule.timesteps):
                t = torch.full((len(x_0),), i, device=x_0.device)
                x_t, _ = self.q_sample(x_0, t, noise())
                denoised = self.denoise(x_t, t, labels=labels)
                said = {"predicted_x_0": denoised.x_0, "variance_output": denoised.variance}
                yield bound.term(self.schedule, self.variance, x_0, t, **said)

    def denoise(self, x_t: Tensor, t: Tensor, *, clip_denoised: bool = True, labels: Tensor | None = None) -> Denoised:
        """The x_0 and eps that the network predicts from x_t; eps is derived again after x_0 is clipped to [-1, 1].

        Args:
            t: `[B]` int64 in `{0 .. T-1}`.
        """
        threshold = Static() if clip_denoised else Unbounded()
        return bounded(self._see(x_t, t, labels), x_t, t, self.schedule, threshold)

    def denoiser(
        self,
        labels: Tensor | None = None,
        *,
        guidance: Guidance = UNGUIDED,
        threshold: Threshold = Static(),
        guide: "DDPM | None" = None,
    ) -> Denoiser:
        """The denoiser that a sampler takes: the network with `labels` `[B]`, guided, its x_0 kept in bounds.

        Args:
            labels: int64, -1 for none; None: no labels.
            guide: guide away from this worse model of the same images, which gets the same labels if it takes any
                (Karras et al. 2024); `check_guide` checks that it fits. None: away from the network itself without
                labels.

        Raises:
            ValueError: for guidance without labels, or of a network that was never trained without them; for no labels
                if the network needs them.
        """
        if self.needs_labels and guidance.scale != 1 and guide is None:
            raise ValueError(
                f"scale {guidance.scale:g} needs predictions without labels, which null_label=False rules out"
            )
        if self.needs_labels and labels is None:
            raise ValueError("the network needs a label for each image (null_label=False)")
        if guidance.scale != 1 and guide is None and (labels is None or self.num_classes is None):
            raise ValueError(f"scale {guidance.scale:g} has no effect without labels to be guided by")
        worse = self if guide is None else guide
        labels_of_worse = None if guide is None or guide.num_classes is None else labels

        def positive(x_t: Tensor, t: int) -> Denoised:
            return self._see(x_t, expand_t(t, x_t), labels)

        def negative(x_t: Tensor, t: int) -> Denoised:
            return worse._see(x_t, expand_t(t, x_t), labels_of_worse)

        return thresholded(guided(positive, negative, self.schedule, guidance), self.schedule, threshold)

    def check_guide(self, guide: "DDPM") -> None:
        """Raise ValueError if another model cannot guide this one: it must know the same x_t and the same labels."""
        ours, theirs = self.schedule, guide.schedule
        if ours.timesteps != theirs.timesteps:
            raise ValueError(f"its schedule has {theirs.timesteps} timesteps, and this model's {ours.timesteps}")
        if not torch.equal(ours.log_alpha_bar.cpu(), theirs.log_alpha_bar.cpu()):
            raise ValueError("its schedule differs from this model's: at the same t their noise levels differ")
        if guide.num_classes not in (None, self.num_classes):
            has = "none" if self.num_classes is None else self.num_classes
            raise ValueError(f"it was trained on {guide.num_classes} labels, and this model on {has}")

    def _see(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Denoised:
        alpha, sigma = self.schedule.alpha_sigma(t, x_t.shape)
        output, variance = self._ask(self.prediction.input(x_t, alpha, sigma), t, labels)
        x_0 = self.prediction.x_0(output, x_t, alpha, sigma)
        return Denoised(x_0, self.prediction.eps(output, x_t, alpha, sigma), variance)

    def _ask(self, x: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The network's output for the input x in float32, and its output for the variance, if it has one."""
        output = (self.model(x, t) if labels is None else self.model(x, t, labels)).float()
        channels = x.shape[1]
        if output.shape[1] == channels:
            return output, None
        return output[:, :channels], output[:, channels:]

    @torch.no_grad()
    def p_sample(
        self,
        x_t: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        noise: Tensor | None = None,
        *,
        labels: Tensor | None = None,
    ) -> Tensor:
        """One reverse step, x_{t-1} drawn from p(x_{t-1} | x_t) (DDPM eq. 11); at t = 0 the mean. `[B, C, H, W]`"""
        noise = torch.randn_like(x_t) if noise is None else noise
        denoised = self.denoise(x_t, t, clip_denoised=clip_denoised, labels=labels)
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
        threshold: Threshold = Static(),
    ) -> Tensor:
        """Sample images from the model.

        Args:
            batch_size: number of images B.
            image_size: H = W, or (H, W), in pixels.
            channels: C.
            device: the device to sample on; the model moves there. None: where the model is.
            show_progress: draw a progress bar on stderr.
            sampler: see `ddpm_cli.diffusion.samplers`; ancestral sampling over all T steps by default.
            generator: source of the noise, on that device; torch's global one by default.
            labels: `[B]` int64, see `denoiser`. If the network needs labels and none are given, they are drawn
                uniformly at random.
            guidance: see `denoiser`.
            threshold: see `denoiser`.

        Returns:
            `[B, C, H, W]` float32 in [-1, 1].
        """
        if device is not None:
            self.to(device)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        shape = (batch_size, channels, height, width)

        def noise() -> Tensor:
            return torch.randn(shape, generator=generator, device=self.device)

        if labels is None and self.needs_labels:
            assert self.num_classes is not None
            labels = torch.randint(self.num_classes, (batch_size,), generator=generator, device=self.device)
        sampler = Ancestral(variance=self.variance) if sampler is None else sampler
        times = sampler.times(self.schedule)
        denoise = self.denoiser(labels, guidance=guidance, threshold=threshold)
        x = torch.empty(0)
        with tqdm(total=len(times), desc="sampling", unit="step", disable=not show_progress, leave=False) as bar:
            for x in self.reverse_process(sampler.solve(denoise, self.schedule, times, noise(), noise)):  # noqa: B007
                bar.update()
        return x.clamp(-1, 1)

    @torch.no_grad()
    def reverse_process(self, steps: Iterable[Tensor]) -> Iterator[Tensor]:
        """Iterate over `steps`, the x after each step of a reverse process, with dropout off and without gradients.

        Args:
            steps: from `Sampler.solve` or the like, with a denoiser of this model.
        """
        with self.evaluating():
            yield from steps

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, dropout is off."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)
