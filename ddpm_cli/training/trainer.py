"""The training loop: DDPM's algorithm 1 with mixed precision, gradient accumulation, clipping and EMA."""

import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_cli.data.loader import Batch, BatchLoader, augment
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.distributed.fsdp import full_tensor
from ddpm_cli.distributed.process_group import World
from ddpm_cli.ema.ema import EMA
from ddpm_cli.runtime.device import Compute
from ddpm_cli.runtime.seeds import derive_seed, generator
from ddpm_cli.training import lr_schedule
from ddpm_cli.training.step_stats import Progress, StepResult, of_steps
from ddpm_cli.training.timestep_samplers import Draw, Uniform
from ddpm_cli.training.trainer_config import TrainerConfig

MOST_OVERFLOWS_IN_A_ROW = 20


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is not finite; parameters, moments and EMA are unchanged."""


class Example(NamedTuple):
    """The data of a step's losses: this rank's part of a batch, and all that was drawn for it."""

    x_0: Tensor  # [part, C, H, W] in [-1, 1]
    t: Tensor  # [part]
    weights: Tensor  # [part], of the losses
    noise: Tensor  # [part, C, H, W]
    labels: Tensor | None  # [part], -1 where left out; None: the data has none

    def chunk(self, count: int) -> "Iterator[Example]":
        """The same in `count` parts, in order."""
        fields = ([None] * count if tensor is None else tensor.chunk(count) for tensor in self)
        return (Example(*part) for part in zip(*fields, strict=True))


class Trainer:
    """Trains `ddpm` on `batches`. It holds all that changes during a run: parameters, optimizer, EMA, scaler, step.

    There is no random state: the order and flips of the images are functions of (seed, step) in `BatchLoader`;
    timesteps and noise are keyed on (seed, step) below, dropout on (seed, step, rank). So a resumed run draws the same
    numbers as an uninterrupted one, and any number of ranks trains on the same stream of (image, t, noise).

    A step whose loss or gradient is not finite changes nothing, and neither does any step after it. A CPU sees this at
    once. On a GPU the host would have to wait for every step to see it; instead, the device itself skips these steps
    (`found_inf` of torch's fused optimizers), and `check_finite` notices before something is logged, shown or saved,
    and goes back to the faulty step.

    Args:
        timestep_sampler: None: uniform t.
        pixels_on_device: the pixels of the whole set, uint8 `[N, C, H, W]`, if they are on the device.
    """

    def __init__(
        self,
        ddpm: DDPM,
        batches: BatchLoader,
        *,
        optimizer: torch.optim.Optimizer,
        ema: EMA,
        config: TrainerConfig,
        compute: Compute,
        seed: int,
        timestep_sampler: Uniform | None = None,
        world: World | None = None,
        pixels_on_device: Tensor | None = None,
    ):
        self.world = World() if world is None else world
        self.ddpm = ddpm
        parallel = self.world.data_parallel(ddpm.model)
        self.parallel = ddpm if parallel is ddpm.model else ddpm.with_model(parallel)
        self.batches = batches
        self.pixels_on_device = pixels_on_device
        self.optimizer = optimizer
        self.ema = ema
        self.timestep_sampler = Uniform(ddpm.schedule) if timestep_sampler is None else timestep_sampler
        self.config = config
        self.compute = compute
        self.seed = seed
        self.scaler = compute.grad_scaler()
        self.peak_lr = [group["lr"] for group in optimizer.param_groups]
        self.step = 0
        self.overflows = 0
        self.overflows_in_a_row = 0
        self.pending: list[StepResult] = []  # the steps since `run` last yielded a `Progress`
        self.reported: list[StepResult] = []  # the steps of that `Progress`
        self.whole = True  # False while a step has made some of its changes and not yet all
        # These need the host in every step: a scaler's overflows, timesteps that learn from losses, and an optimizer
        # that cannot skip a step by itself.
        self.defers_finite_check = (
            compute.device.type == "cuda"
            and not self.scaler.is_enabled()
            and not self.timestep_sampler.learns
            and getattr(optimizer, "_step_supports_amp_scaling", False)
        )
        self._first_fault = torch.tensor(-1, device=compute.device)  # the step, where `defers_finite_check`

    def run(self) -> Iterator[Progress | None]:
        """Train up to `config.steps`; after every step, yield None, or the `Progress` if it is time to log."""
        self.ddpm.train()
        if self.owes_progress:
            self._set_learning_rate(self.step - 1)
            yield self._report(images_per_second=math.nan, data_fraction=math.nan)
        images, waited, since = 0, 0.0, time.perf_counter()
        pin_memory = self.compute.device.type == "cuda"
        prefetched = self.batches.prefetch(self.step, pixels=self.pixels_on_device is None, pin_memory=pin_memory)
        with closing(prefetched) as stream:
            while self.step < self.config.steps:
                asked = time.perf_counter()
                batch = next(stream)
                waited += time.perf_counter() - asked
                self.train_step(batch)
                images += self.config.batch_size
                if self._time_to_log:
                    self.check_finite()
                    elapsed = time.perf_counter() - since
                    yield self._report(images_per_second=images / elapsed, data_fraction=waited / elapsed)
                    images, waited, since = 0, 0.0, time.perf_counter()
                else:
                    asked = time.perf_counter()
                    yield None
                    since += time.perf_counter() - asked  # previews and checkpoints are not training time

    @property
    def _time_to_log(self) -> bool:
        return self.step % self.config.log_every == 0 or self.step == self.config.steps

    @property
    def owes_progress(self) -> bool:
        """Whether the resumed run's last `Progress` was taken back; `run` yields it again first."""
        return len(self.pending) > 0 and self._time_to_log

    def take_back(self) -> None:
        """Put the last `Progress`, which could not be recorded, back into the state."""
        self.pending, self.reported = self.reported, []

    def train_step(self, batch: Batch) -> StepResult:
        """One optimizer step (DDPM, algorithm 1) on this rank's part of a batch. Advances `self.step` and `pending`.

        Raises:
            NonFiniteError: before anything has been changed; with `defers_finite_check`, `check_finite` raises it.
        """
        example, drawn = self._example(batch)
        losses, grad_norm = self._backward(example)
        skipped = self._update(losses, drawn, grad_norm)
        self.timestep_sampler.update(drawn.t, losses)
        result = StepResult(losses, *drawn, grad_norm, skipped)
        self.pending.append(result)
        self.step += 1
        self.whole = True
        return result

    @property
    def first_fault(self) -> int:
        """The first non-finite step that has not been noticed yet, -1 if there is none. Waits for the device."""
        return int(self._first_fault) if self.defers_finite_check else -1

    def check_finite(self) -> None:
        """Wait for the device and check that every step so far was finite; costs nothing if each was checked already.

        Raises:
            NonFiniteError: if one was not; everything is then as it was before that step.
        """
        fault = self.first_fault
        if fault < 0:
            return
        undone = self.step - fault
        self.step = fault
        self.ema.updates -= undone
        del self.pending[len(self.pending) - undone :]
        self._first_fault.fill_(-1)
        example, drawn = self._example(self.batches.batch(fault))
        losses, _ = self._backward(example)  # again, to see where it happens
        raise self._non_finite(losses, drawn)

    # A step: what it is trained on, its gradient, what becomes of it -------------------------------------------------

    def _example(self, batch: Batch) -> tuple[Example, Draw]:
        """x_0 ~ q(x_0), t and eps ~ N(0, I): this rank's example, and the draw for the whole batch."""
        batch = batch.to(self.compute.device)
        pixels = batch.pixels
        if pixels is None:
            assert self.pixels_on_device is not None
            pixels = self.pixels_on_device[batch.indices]
        x_0 = augment(pixels, batch.flips)
        drawn, noise = self._draw(x_0.shape[1:])
        part = self.batches.part
        labels = None if batch.labels is None else self._drop_labels(batch.labels)
        return Example(x_0, drawn.t[part], drawn.weights[part], noise[part], labels), drawn

    def _draw(self, image_shape: torch.Size) -> tuple[Draw, Tensor]:
        """Timesteps `[B]` and noise `[B, C, H, W]` of this step, drawn for the whole batch however it is split."""
        size, device = self.config.batch_size, self.compute.device
        source = generator(self.seed, "diffusion", self.step, device=device)
        drawn = self.timestep_sampler.draw(size, source)
        return drawn, torch.randn((size, *image_shape), generator=source, device=device)

    def _drop_labels(self, labels: Tensor) -> Tensor:
        """This rank's labels, some replaced by -1 (none): the network learns both (Ho & Salimans 2022, algorithm 1)."""
        if self.ddpm.needs_labels:
            return labels
        source = generator(self.seed, "labels", self.step, device=labels.device)
        drawn = torch.rand(self.config.batch_size, generator=source, device=labels.device)
        dropped = drawn < self.config.dropped_labels
        return torch.where(dropped[self.batches.part], -1, labels)

    def _backward(self, example: Example) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the weighted mean of the losses, and leave it in the parameters.

        Returns:
            The losses of the whole batch, `[B]`, and the norm of the gradient, `[]`.
        """
        torch.manual_seed(derive_seed(self.seed, "dropout", self.step, self.world.rank))
        self._clear_gradients()
        losses = []
        for i, part in enumerate(example.chunk(self.config.micro_batches), start=1):
            last = i == self.config.micro_batches
            with nullcontext() if last else self.world.no_sync(self.parallel.model), self.world.answering():
                with self.compute.autocast():
                    loss = self.parallel.losses(part.x_0, part.t, part.noise, part.labels)
                self.scaler.scale((part.weights * loss).sum() / len(example.x_0)).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.ddpm.parameters() if p.grad is not None]
        with self.world.answering():
            grad_norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        return self.world.gather(torch.cat(losses)), grad_norm

    def _clear_gradients(self) -> None:
        captured = self.config.compile == "graphs" and self.config.micro_batches > 1
        self.optimizer.zero_grad(set_to_none=not captured)
        if captured:
            # A captured backward pass writes its gradients where the next one writes its own, so those of the parts are
            # added up in memory of ours.
            for parameter in self.ddpm.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def _update(self, losses: Tensor, drawn: Draw, grad_norm: Tensor) -> bool:
        """Take the step if everything is finite. Returns whether it was skipped, as a gradient overflowed in float16.

        Raises:
            NonFiniteError: if anything else is not finite, or there were too many overflows in a row.
        """
        self._set_learning_rate(self.step)
        finite = torch.isfinite(grad_norm) & torch.isfinite(losses).all()
        if self.defers_finite_check:
            self.whole = False
            self._first_fault = torch.where(finite | (self._first_fault >= 0), self._first_fault, self.step)
            self._take_step(grad_norm, fault=(self._first_fault >= 0).float())
            return False
        skipped = not finite
        if skipped:
            may_skip = self.scaler.is_enabled() and self.overflows_in_a_row < MOST_OVERFLOWS_IN_A_ROW
            if not (torch.isfinite(losses).all() and may_skip):
                raise self._non_finite(losses, drawn)
        self.whole = False
        if skipped:
            self.overflows_in_a_row += 1
            self.overflows += 1
        else:
            self.overflows_in_a_row = 0
            self._take_step(grad_norm)
        self.scaler.update()
        return skipped

    def _set_learning_rate(self, step: int) -> None:
        config = self.config
        factor = lr_schedule.factor(step, steps=config.steps, warmup_steps=config.warmup_steps, decay=config.lr_decay)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lr, strict=True):
            group["lr"] = peak * factor

    def _take_step(self, grad_norm: Tensor, fault: Tensor | None = None) -> None:
        """Clip, step and average; none of these has an effect if `fault` is 1."""
        limit = self.config.grad_clip
        # If checking costs no wait, a gradient within the limit is not multiplied by 1.
        if limit is not None and (self.defers_finite_check or grad_norm > limit):
            torch.nn.utils.clip_grads_with_norm_(self.ddpm.parameters(), limit, grad_norm)
        if fault is None:
            self.scaler.step(self.optimizer)
        else:
            # As a GradScaler would set them for a fused optimizer.
            self.optimizer.grad_scale, self.optimizer.found_inf = None, fault  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        self.ema.update(self.ddpm.model, unless=fault)

    # What there is to say of it ---------------------------------------------------------------------------------------

    def _report(self, *, images_per_second: float, data_fraction: float) -> Progress:
        self.reported, self.pending = self.pending, []
        return Progress(
            step=self.step,
            **of_steps(self.reported),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            ema_decay=self.ema.current_decay,
            images_per_second=images_per_second,
            data_fraction=data_fraction,
            overflows=self.overflows,
        )

    def _non_finite(self, losses: Tensor, drawn: Draw) -> NonFiniteError:
        """The error that says where this step's losses and gradient are not finite; clears the gradient."""
        bad = ~torch.isfinite(losses).cpu()
        what = "the loss" if bad.any() else "the gradient"
        images = torch.from_numpy(self.batches.indices(self.step))
        if not bad.any():
            bad = torch.ones_like(bad)  # a gradient is that of the whole batch
        pairs = zip(drawn.t.cpu()[bad].tolist()[:8], images[bad].tolist()[:8], strict=True)
        seen = ", ".join(f"{t}/{image}" for t, image in pairs)
        more = f" and {bad.sum() - 8} more" if bad.sum() > 8 else ""
        affected = (
            name
            for name, parameter in self.ddpm.model.named_parameters()
            if parameter.grad is not None and not self.world.finite(parameter.grad)
        )
        first = next(affected, "none, only their norm")
        self.optimizer.zero_grad(set_to_none=True)
        return NonFiniteError(
            f"{what} at step {self.step} is not finite; timesteps t / images: {seen}{more}; "
            f"first parameter whose gradient is affected: {first}"
        )
