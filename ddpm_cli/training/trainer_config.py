"""The options of a training loop, checked before anything is built."""

from dataclasses import dataclass
from typing import Literal, get_args

from ddpm_cli.config.figures import Name

_CHOICES = {"precision": ("auto", "fp32", "bf16", "fp16"), "lr_decay": ("constant", "cosine", "linear")}

_DEBUG = ("overfit_batches", "profile_steps")

COMPILE_FROM = 5000  # steps: compiling takes a minute or two, and saves milliseconds a step
PROFILE_FROM = 10  # steps: until then memory is allocated, kernels are chosen, networks compiled
LABEL_DROPOUT = 0.1  # as Ho & Salimans (2022) recommend, and enough for guidance


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What `trainer=` configures; configs/trainer/default.yaml says what each option means.

    `accumulate`, `activation_checkpointing`, `fsdp` and `compile` change the cost of a step, not what it computes,
    except for rounding and, if a batch is split, the draws of dropout. `accumulate="auto"` stands for a number that is
    found before the run starts (`ddpm_cli.training.build`), `label_dropout=None` for LABEL_DROPOUT.

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
    eval_every: int = 0
    eval_images: int = 0
    keep_best: Name | None = None
    overfit_batches: int = 0
    profile_steps: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.compile not in (True, False, "auto", "graphs"):
            raise ValueError(f"compile must be true, false, auto or graphs, got {self.compile!r}")
        if isinstance(self.accumulate, str) and self.accumulate != "auto":
            raise ValueError(f"accumulate must be a number or auto, got {self.accumulate!r}")
        previews = ("preview_images",) if self.preview_every > 0 else ()
        for name in ("steps", "batch_size", "log_every", *previews, "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "warmup_steps",
            "preview_every",
            "checkpoint_every",
            "keep_every",
            "eval_every",
            "eval_images",
            *_DEBUG,
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.accumulate != "auto" and not (self.accumulate >= 1 and self.batch_size % self.accumulate == 0):
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        if self.accumulate == "auto" and self.fsdp:
            raise ValueError("accumulate=auto needs a network in one piece; with fsdp=true set the number")
        if self.compile in (True, "graphs") and self.fsdp:
            raise ValueError("compile needs a network in one piece; with fsdp=true choose compile=false or auto")
        if self.keep_every > 0 and (self.checkpoint_every == 0 or self.keep_every % self.checkpoint_every != 0):
            raise ValueError(
                f"keep_every {self.keep_every} must be a multiple of checkpoint_every {self.checkpoint_every}: "
                "no other step is saved"
            )
        if self.profile_steps > 0 and self.steps < PROFILE_FROM + self.profile_steps:
            raise ValueError(
                f"profile_steps {self.profile_steps} follow the first {PROFILE_FROM} steps; steps is {self.steps}"
            )
        if self.eval_images == 1:
            raise ValueError("eval_images must be 0 or at least 2 (one image has no covariance), got 1")
        if self.keep_best is not None and self.keep_best not in get_args(Name):
            raise ValueError(f"keep_best must be one of {', '.join(get_args(Name))} or null, got {self.keep_best!r}")
        if self.label_dropout is not None and not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must lie in [0, 1] or be null, got {self.label_dropout:g}")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f"grad_clip must be positive or null, got {self.grad_clip:g}")

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches of a step, once it is known."""
        assert self.accumulate != "auto"
        return self.accumulate

    def due(self, every: int, step: int) -> bool:
        """Whether something that is done every `every` steps (0: never), and at the end, is due after `step` steps."""
        return every > 0 and (step % every == 0 or step == self.steps)

    def compiles(self, device: str) -> bool:
        """Whether the network is compiled on a device of this type.

        Not decided by a measurement: a compiled network rounds differently, and a resumed run must compute the same.
        """
        if self.compile == "auto":
            return device == "cuda" and self.steps >= COMPILE_FROM and not self.fsdp
        return self.compile is not False

    @property
    def dropped_labels(self) -> float:
        """The share of images that are trained without their label."""
        return LABEL_DROPOUT if self.label_dropout is None else self.label_dropout
