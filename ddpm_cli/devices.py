"""Where and in which precision a run computes."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Compute:
    """A device and the precision of the forward pass there: "fp32", "bf16" or "fp16" (parameters stay float32)."""

    device: torch.device
    precision: str

    def place(self, module: nn.Module) -> None:
        """Move a network here, its convolutions with channels last: they are faster so on CPUs and on GPUs."""
        module.to(self.device)
        for parameter in module.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Only float16's gradients underflow; elsewhere the scaler is switched off and passes everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{name}, {self.precision}"


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """What `device=auto|cpu|cuda|cuda:N|mps` and `precision=auto|fp32|bf16|fp16` mean on this machine.

    Raises:
        ValueError: if the device is not there, or cannot compute in the precision asked for.
    """
    chosen = _choose_device(device)
    if precision == "auto":
        return Compute(chosen, _best_precision(chosen))
    if precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"precision must be auto, fp32, bf16 or fp16, got {precision!r}")
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"precision bf16 is beyond this {torch.cuda.get_device_name(chosen)}; use fp16 or fp32")
    return Compute(chosen, precision)


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ValueError(f"device {name} was asked for, but there is no usable CUDA device here; use auto or cpu")
        if (device.index or 0) >= count:
            raise ValueError(f"device {name} was asked for, but there are only {count} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps was asked for, but this machine has no usable Apple GPU; use auto or cpu")
    return device


def _best_precision(device: torch.device) -> str:
    # Never half precision on a CPU: without matrix units for it bf16 was measured 200 times slower than fp32.
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
