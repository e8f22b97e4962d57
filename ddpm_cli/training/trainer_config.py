"""The options of a training loop, checked before anything is built."""

from dataclasses import dataclass
from typing import Literal

_CHOICES = {"precision": ("auto", "fp32", "bf16", "fp16"), "lr_decay": ("constant", "cosine", "linear")}

COMPILE_FROM = 5000  # steps: translating takes a minute or two, and saves milliseconds a step
LABEL_DROPOUT = 0.1  # as Ho & Salimans (2022) recommend, and enough for guidance


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What `trainer=` configures.

    Args:
        steps: optimizer steps of the whole run.
        batch_size: images per optimizer step.
        accumulate: micro-batches a step is computed in; must divide `batch_size`. Saves memory; the step
            is the same but for rounding and the draws of dropout. "auto": as few as memory allows, found by trying
            before the run begins (`training.fitting`).
        activation_checkpointing: compute activations again in the backward pass instead of keeping them. Saves memory,
            costs a second forward pass; the step is the same.
        fsdp: with several processes, keep only a part of the network, its averages and the optimizer's state in each
            (`ddpm_cli.distributed.fsdp`). Saves memory, costs communication; the step is the same.
        compile: have `torch.compile` translate the network. "auto": on CUDA, for runs of at least COMPILE_FROM steps;
            "graphs": and let CUDA graphs launch its kernels, for small networks.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        deterministic: use only algorithms that give the same bits every time: what exact resume takes on
            CUDA. On a CPU it is exact anyway.
        precision: of the forward pass. "auto": bf16 where CUDA has it, fp16 on older CUDA, fp32 elsewhere.
        grad_clip: largest norm of the whole gradient; None: not clipped.
        warmup_steps: steps over which the learning rate rises to `optimizer.lr`.
        lr_decay: what the learning rate does after that.
        log_every: steps between two entries of the log.
        preview_every: steps between two grids of EMA samples; 0: none.
        preview_images: images in such a grid.
        checkpoint_every: steps between two checkpoints; 0: only at the end.
        keep_last: checkpoints kept; older ones are removed.
        keep_every: checkpoints whose step is a multiple of this are kept for good; 0: none.
        label_dropout: where the data has labels, the share of images trained without; None: LABEL_DROPOUT.

    Raises:
        ValueError: if a value is out of its range; the message names it.
    """

    steps: int
    batch_size: int
    accumulate: int | Literal["auto"] = 1
    activation_checkpointing: bool = False
    fsdp: bool = False
    compile: bool | Literal["auto", "graphs"] = "auto"
    device: str = "auto"
    deterministic: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    grad_clip: float | None = 1.0
    warmup_steps: int = 0
    lr_decay: Literal["constant", "cosine", "linear"] = "constant"
    log_every: int = 100
    preview_every: int = 5000
    preview_images: int = 64
    checkpoint_every: int = 5000
    keep_last: int = 3
    keep_every: int = 0
    label_dropout: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.compile not in (True, False, "auto", "graphs"):
            raise ValueError(f"compile must be true, false, auto or graphs, got {self.compile!r}")
        if isinstance(self.accumulate, str) and self.accumulate != "auto":
            raise ValueError(f"accumulate must be a number or auto, got {self.accumulate!r}")
        for name in ("steps", "batch_size", "log_every", "preview_images", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "preview_every", "checkpoint_every", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.accumulate != "auto" and not (self.accumulate >= 1 and self.batch_size % self.accumulate == 0):
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        if self.accumulate == "auto" and self.fsdp:
            raise ValueError("accumulate=auto is tried on a network in one piece; with fsdp=true say the number")
        if self.compile in (True, "graphs") and self.fsdp:
            raise ValueError("compile translates a network in one piece; with fsdp=true choose compile=false or auto")
        if self.keep_every > 0 and (self.checkpoint_every == 0 or self.keep_every % self.checkpoint_every != 0):
            raise ValueError(
                f"keep_every {self.keep_every} must be a multiple of checkpoint_every {self.checkpoint_every}: "
                "no other step is saved"
            )
        if self.label_dropout is not None and not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must lie in [0, 1] or be null, got {self.label_dropout:g}")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f"grad_clip must be positive or null, got {self.grad_clip:g}")

    @property
    def parts(self) -> int:
        """Micro-batches of a step, once they are known."""
        assert self.accumulate != "auto"
        return self.accumulate

    def compiles(self, device: str) -> bool:
        """Whether the network is translated on a device of this type.

        Not by a measurement: what is translated computes other last bits, and a run that goes on must compute the same.
        """
        if self.compile == "auto":
            return device == "cuda" and self.steps >= COMPILE_FROM and not self.fsdp
        return self.compile is not False

    @property
    def dropped_labels(self) -> float:
        """Share of images that are trained without their label."""
        return LABEL_DROPOUT if self.label_dropout is None else self.label_dropout
