"""The training loop: DDPM's algorithm 1 with mixed precision, gradient accumulation, clipping and EMA."""

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_cli.data.batches import Batch, Batches, augment
from ddpm_cli.devices import Compute
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.ranks import Ranks
from ddpm_cli.seeds import derive_seed, generator
from ddpm_cli.sharding import part_for, whole
from ddpm_cli.training import learning_rate
from ddpm_cli.training.ema import EMA
from ddpm_cli.training.settings import Settings
from ddpm_cli.training.timesteps import Draw, Uniform

MOST_OVERFLOWS_IN_A_ROW = 20


class StepResult(NamedTuple):
    """What one optimizer step leaves to log. The tensors stay on the device: reading them waits for it."""

    losses: Tensor  # [B], of the whole batch on every rank
    t: Tensor  # [B]
    weights: Tensor  # [B], by which the losses count
    grad_norm: Tensor  # [], before clipping
    skipped: bool  # float16 overflow: nothing was changed


class Progress(NamedTuple):
    """Everything the log says about the steps since it last said something."""

    step: int
    losses: Tensor  # [steps * B], on the CPU
    t: Tensor  # [steps * B], on the CPU
    loss: float  # their weighted mean: that over uniformly drawn t
    grad_norm: float  # mean
    learning_rate: float
    ema_decay: float
    images_per_second: float
    data_fraction: float  # of the time, spent waiting for data
    overflows: int  # steps skipped for float16 overflow since the run began


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is not a finite number; parameters, moments and EMA were left as they were."""


class Trainer:
    """Trains `ddpm` on `batches`. All that changes during a run is here: parameters, optimizer, EMA, scaler, step.

    Nothing random is kept: the order and flips of the images are functions of (seed, step) in `Batches`, timesteps and
    noise are keyed on (seed, step) below and dropout on (seed, step, rank), so a run that is resumed draws what it
    would have drawn, and any number of ranks trains on the same stream of (image, t, noise).

    A step whose loss or gradient is not finite changes nothing, and neither does any after it. On a CPU that is seen at
    once. On a GPU the host would have to wait for every step to see it; there the device itself lets the steps pass
    without effect (`found_inf` of torch's fused optimizers), and `settle` finds out when something is to be logged,
    shown or saved, and goes back to that step.

    Args:
        resident: the set's pixels, uint8 `[N, C, H, W]` on the device, if they are there as a whole.
    """

    def __init__(
        self,
        ddpm: DDPM,
        batches: Batches,
        *,
        optimizer: torch.optim.Optimizer,
        ema: EMA,
        settings: Settings,
        compute: Compute,
        seed: int,
        timesteps: Uniform | None = None,
        ranks: Ranks | None = None,
        resident: Tensor | None = None,
    ):
        self.ranks = Ranks() if ranks is None else ranks
        self.ddpm = ddpm
        self.parallel = self.ranks.parallel(ddpm)
        self.batches = batches
        self.resident = resident
        self.optimizer = optimizer
        self.ema = ema
        self.timesteps = Uniform(ddpm.schedule.timesteps) if timesteps is None else timesteps
        self.settings = settings
        self.compute = compute
        self.seed = seed
        self.scaler = compute.grad_scaler()
        self.peak_lr = [group["lr"] for group in optimizer.param_groups]
        self.step = 0
        self.overflows = 0
        self.overflows_in_a_row = 0
        self.unlogged: list[StepResult] = []  # the steps since `run` last yielded a `Progress`
        # What needs the host in every step: a scaler's overflows, timesteps that learn from losses, and an optimizer
        # that cannot let a step pass by itself.
        self.looks_late = (
            compute.device.type == "cuda"
            and not self.scaler.is_enabled()
            and not self.timesteps.learns
            and getattr(optimizer, "_step_supports_amp_scaling", False)
        )
        self._first_fault = torch.tensor(-1, device=compute.device)  # the step, where `looks_late`

    def train_step(self, batch: Batch) -> StepResult:
        """One optimizer step (DDPM, algorithm 1) on this rank's part of a batch. Advances `self.step`.

        Raises:
            NonFiniteError: before anything has been changed; where `looks_late`, `settle` does that.
        """
        losses, drawn, grad_norm = self._backward(batch)
        finite = torch.isfinite(grad_norm) & torch.isfinite(losses).all()
        if self.looks_late:
            self._first_fault = torch.where(finite | (self._first_fault >= 0), self._first_fault, self.step)
            skipped = False
            self._update(grad_norm, fault=(self._first_fault >= 0).float())
        else:
            skipped = not finite
            if skipped:
                self._check_overflow(losses, drawn, grad_norm)
            else:
                self.overflows_in_a_row = 0
                self._update(grad_norm)
            self.scaler.update()
        self.timesteps.update(drawn.t, losses)
        self.step += 1
        return StepResult(losses, *drawn, grad_norm, skipped)

    def _backward(self, batch: Batch) -> tuple[Tensor, Draw, Tensor]:
        """The gradients of this step. Returns the losses of the whole batch, its draw and the norm of the gradients."""
        batch = batch.to(self.compute.device)
        pixels = self.resident[batch.indices] if batch.pixels is None and self.resident is not None else batch.pixels
        assert pixels is not None
        x_0 = augment(pixels, batch.flips)
        drawn, noise = self._draw(x_0.shape[1:])
        own = (x_0, drawn.t[self.batches.part], drawn.weights[self.batches.part], noise[self.batches.part])
        if batch.labels is not None:
            own += (self._drop_labels(batch.labels),)
        torch.manual_seed(derive_seed(self.seed, "dropout", self.step, self.ranks.rank))
        self._set_learning_rate()

        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        parts = self.settings.parts
        micro_batches = zip(*(tensor.chunk(parts) for tensor in own), strict=True)
        for part, (images, t, weights, *rest) in enumerate(micro_batches, start=1):
            last = part == parts
            with nullcontext() if last else self.ranks.without_averaging(self.parallel), self.ranks.answering():
                with self.compute.autocast():
                    loss = self.parallel.losses(images, t, *rest)
                self.scaler.scale((weights * loss).sum() / len(x_0)).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.ddpm.parameters() if p.grad is not None]
        with self.ranks.answering():
            grad_norm = whole(torch.nn.utils.get_total_norm(gradients))
        return self.ranks.gather(torch.cat(losses)), drawn, grad_norm

    def _update(self, grad_norm: Tensor, fault: Tensor | None = None) -> None:
        """Clip, step, average; nothing of it has an effect where `fault` is 1."""
        if self.settings.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.ddpm.parameters(), self.settings.grad_clip, grad_norm)
        if fault is None:
            self.scaler.step(self.optimizer)
        else:
            # What a GradScaler would tell a fused optimizer.
            self.optimizer.grad_scale, self.optimizer.found_inf = None, fault  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        self.ema.update(self.ddpm.model, unless=fault)

    def _check_overflow(self, losses: Tensor, drawn: Draw, grad_norm: Tensor) -> None:
        """Count a gradient that overflowed in float16: the step is skipped and the scale lowered.

        Raises:
            NonFiniteError: if it is anything else that is not finite, or there were too many in a row.
        """
        may_skip = self.scaler.is_enabled() and self.overflows_in_a_row < MOST_OVERFLOWS_IN_A_ROW
        if not (torch.isfinite(losses).all() and may_skip):
            message = self._describe_non_finite(losses, drawn.t)
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(message)
        self.overflows_in_a_row += 1
        self.overflows += 1

    def settle(self) -> None:
        """Wait for the device and make sure that every step so far was finite; costs nothing where each was looked at.

        Raises:
            NonFiniteError: if one was not; everything is then as that step found it.
        """
        fault = int(self._first_fault) if self.looks_late else -1
        if fault < 0:
            return
        undone = self.step - fault
        self.step = fault
        self.ema.updates -= undone
        del self.unlogged[len(self.unlogged) - undone :]
        self._first_fault.fill_(-1)
        losses, drawn, _ = self._backward(self.batches.batch(fault))  # once more, to see where it happens
        message = self._describe_non_finite(losses, drawn.t)
        self.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(message)

    def run(self) -> Iterator[Progress | None]:
        """Train up to `settings.steps`; after every step yields None, or the `Progress` when it is time to log."""
        self.ddpm.train()
        images, waited, since = 0, 0.0, time.perf_counter()
        pin_memory = self.compute.device.type == "cuda"
        prefetched = self.batches.prefetch(self.step, pixels=self.resident is None, pin_memory=pin_memory)
        with closing(prefetched) as stream:
            while self.step < self.settings.steps:
                asked = time.perf_counter()
                batch = next(stream)
                waited += time.perf_counter() - asked
                self.unlogged.append(self.train_step(batch))
                images += self.settings.batch_size
                if self.step % self.settings.log_every == 0 or self.step == self.settings.steps:
                    self.settle()
                    elapsed = time.perf_counter() - since
                    progress = self._progress(images_per_second=images / elapsed, data_fraction=waited / elapsed)
                    self.unlogged = []
                    yield progress
                    images, waited, since = 0, 0.0, time.perf_counter()
                else:
                    asked = time.perf_counter()
                    yield None
                    since += time.perf_counter() - asked  # previews and checkpoints are not training time

    def _draw(self, image_shape: torch.Size) -> tuple[Draw, Tensor]:
        """Timesteps `[B]` and noise `[B, C, H, W]` of this step: drawn for the whole batch, however it is split."""
        size, device = self.settings.batch_size, self.compute.device
        source = generator(self.seed, "diffusion", self.step, device=device)
        drawn = self.timesteps.draw(size, source)
        return drawn, torch.randn((size, *image_shape), generator=source, device=device)

    def _drop_labels(self, labels: Tensor) -> Tensor:
        """This rank's labels, -1 (none) in place of some: the network learns both (Ho & Salimans 2022, algorithm 1)."""
        source = generator(self.seed, "labels", self.step, device=labels.device)
        drawn = torch.rand(self.settings.batch_size, generator=source, device=labels.device)
        dropped = drawn < self.settings.dropped_labels
        return torch.where(dropped[self.batches.part], -1, labels)

    def _set_learning_rate(self) -> None:
        settings = self.settings
        factor = learning_rate.factor(
            self.step, steps=settings.steps, warmup_steps=settings.warmup_steps, decay=settings.lr_decay
        )
        for group, peak in zip(self.optimizer.param_groups, self.peak_lr, strict=True):
            group["lr"] = peak * factor

    def _progress(self, *, images_per_second: float, data_fraction: float) -> Progress:
        kept = [norm for norm, result in zip(self._grad_norms(), self.unlogged, strict=True) if not result.skipped]
        losses = torch.cat([result.losses for result in self.unlogged]).cpu()
        weights = torch.cat([result.weights for result in self.unlogged]).cpu()
        return Progress(
            step=self.step,
            loss=(weights * losses).mean().item(),
            losses=losses,
            t=torch.cat([result.t for result in self.unlogged]).cpu(),
            grad_norm=sum(kept) / len(kept) if kept else float("nan"),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            ema_decay=self.ema.current_decay,
            images_per_second=images_per_second,
            data_fraction=data_fraction,
            overflows=self.overflows,
        )

    def _grad_norms(self) -> list[float]:
        """Of the steps that are not in the log yet."""
        return torch.stack([result.grad_norm for result in self.unlogged]).tolist()

    def _describe_non_finite(self, losses: Tensor, t: Tensor) -> str:
        bad = ~torch.isfinite(losses).cpu()
        what = "the loss" if bad.any() else "the gradient"
        images = torch.from_numpy(self.batches.indices(self.step))
        if not bad.any():
            bad = torch.ones_like(bad)  # a gradient is that of the whole batch
        seen = ", ".join(f"{a}/{b}" for a, b in zip(t.cpu()[bad].tolist()[:8], images[bad].tolist()[:8], strict=True))
        more = f" and {bad.sum() - 8} more" if bad.sum() > 8 else ""
        first = next(
            (
                name
                for name, parameter in self.ddpm.model.named_parameters()
                if parameter.grad is not None and not self.ranks.finite(parameter.grad)
            ),
            "none, only their norm",
        )
        return (
            f"{what} at step {self.step} is not finite; timesteps t / images: {seen}{more}; "
            f"first parameter whose gradient is affected: {first}"
        )

    # State -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything besides the main EMA that a resumed run needs, as named tensors.

        Of sharded ones this rank has its parts: `Ranks.whole_on_main` puts them together.

        Raises:
            NonFiniteError: as `settle`.
        """
        self.settle()
        tensors = {f"model.{name}": value for name, value in self.ddpm.model.state_dict().items()}
        for name, parameter in self.ddpm.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": torch.as_tensor(value) for key, value in moments.items()}
        counters = {
            "step": self.step,
            "ema_updates": self.ema.updates,
            "overflows": self.overflows,
            "overflows_in_a_row": self.overflows_in_a_row,
        }
        tensors |= {f"counter.{name}": torch.tensor(value) for name, value in counters.items()}
        if self.unlogged:  # so that the next entry of the log is the one it would have been
            losses, t, weights, _, skipped = zip(*self.unlogged, strict=True)
            tensors |= {"unlogged.losses": torch.stack(losses), "unlogged.t": torch.stack(t)}
            tensors["unlogged.weights"] = torch.stack(weights)
            tensors["unlogged.grad_norm"] = torch.tensor(self._grad_norms(), dtype=torch.float64)
            tensors["unlogged.skipped"] = torch.tensor(skipped)
        tensors |= {f"timesteps.{name}": tensor for name, tensor in self.timesteps.state().items()}
        tensors |= self.ema.state()
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            tensors |= {f"scaler.{key}": torch.tensor(scaler[key]) for key in _SCALER_KEYS}
        return tensors

    def load_state(self, state: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
        """Go back to what `state()` and the EMA's weights were.

        Raises:
            ValueError: if names or shapes are not those of this run.
        """
        try:
            self._load_state(state, ema)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the training state is not that of this configuration: {error}") from error

    def _load_state(self, state: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
        for model, tensors in ((self.ddpm.model, _below("model.", state)), (self.ema.model, ema)):
            own = model.state_dict()
            model.load_state_dict({name: part_for(own.get(name), value) for name, value in tensors.items()})
        self.ema.load_state({name: value for name, value in state.items() if name.startswith(("ema.", "posthoc."))})
        moments = {
            index: {key: _laid_out_as(parameter, value) for key, value in _below(f"optimizer.{name}.", state).items()}
            for index, (name, parameter) in enumerate(self.ddpm.model.named_parameters())
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        counters = {name: _count(name, value) for name, value in _below("counter.", state).items()}
        self.step = counters["step"]
        self.ema.updates = counters["ema_updates"]
        self.overflows, self.overflows_in_a_row = counters["overflows"], counters["overflows_in_a_row"]
        log = _below("unlogged.", state)
        if log:
            rows = zip(
                log["losses"].to(self.compute.device),
                log["t"].to(self.compute.device),
                log.get("weights", torch.ones_like(log["losses"])).to(self.compute.device),
                log["grad_norm"].to(self.compute.device, torch.float32),
                log["skipped"].tolist(),
                strict=True,
            )
            self.unlogged = [StepResult(*row) for row in rows]
        self.timesteps.load_state(_below("timesteps.", state))
        if self.scaler.is_enabled():
            saved = {key: state[f"scaler.{key}"].item() for key in _SCALER_KEYS}
            self.scaler.load_state_dict(self.scaler.state_dict() | saved)


def _count(name: str, value: Tensor) -> int:
    count = value.item()
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"the training state says counter.{name} is {count}")
    return count


_SCALER_KEYS = ("scale", "_growth_tracker")


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in its parameter's memory format: fused optimizers walk both in the order they lie in memory."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(part_for(parameter, value))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
