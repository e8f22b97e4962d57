"""The device and precision of a run."""

import os
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
        """Move a network to the device; each parameter keeps the memory layout that the network chose."""
        module.to(self.device)

    def compile(self, module: nn.Module, *, graphs: bool = False) -> None:
        """Have `torch.compile` compile `module`'s forward and backward pass when it is first called, as one graph.

        In place: the module, its parameters and their names stay what they are. It is compiled anew for every shape of
        input, which takes up to minutes.

        Args:
            graphs: on CUDA, let CUDA graphs launch the kernels: the host cannot launch those of small networks in time.
        """
        module.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if graphs else None)

    def has_room_for(self, size: int) -> bool:
        """Whether `size` bytes would take no more than an eighth of the memory that is free on this GPU."""
        return self.device.type == "cuda" and 8 * size <= torch.cuda.mem_get_info(self.device)[0]

    def make_deterministic(self) -> None:
        """Let torch use only algorithms that give the same bits every time; operations without one raise."""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)

    def autocast(self) -> AbstractContextManager:
        """Inside, a forward pass computes in this precision."""
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


def choose_compute(device: str = "auto", precision: str = "auto", *, local_rank: int = 0) -> Compute:
    """What `device=auto|cpu|cuda|cuda:N|mps` and `precision=auto|fp32|bf16|fp16` mean on this machine.

    Of several processes on it, each takes the GPU of its `local_rank` where none is named. The GPU becomes torch's
    current one: that is where fully_shard puts a network, whatever device it is told of.

    Raises:
        ValueError: if the device is not there, or cannot compute in the precision asked for.
    """
    chosen = _choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if precision == "auto":
        return Compute(chosen, _best_precision(chosen))
    if precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"precision must be auto, fp32, bf16 or fp16, got {precision!r}")
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"precision bf16 is not supported by {torch.cuda.get_device_name(chosen)}; use fp16 or fp32")
    return Compute(chosen, precision)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an out-of-memory error of torch or Python, on a GPU or on the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    of_torch_on_a_cpu = "DefaultCPUAllocator" in said or "bad_alloc" in said
    # oneDNN says no more where it finds none for itself; what it cannot compute has no primitive *descriptor*.
    of_onednn = said.strip() in ("could not create a primitive", "could not create a memory object")
    return isinstance(error, RuntimeError) and (of_torch_on_a_cpu or of_onednn)


def _choose_device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return _choose_device("cuda", local_rank)
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
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise ValueError(f"device cuda:{index} was asked for, but there are only {count} CUDA devices")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps was asked for, but this machine has no usable Apple GPU; use auto or cpu")
    return device


def _best_precision(device: torch.device) -> str:
    # Never half precision on a CPU: without matrix units for it bf16 was measured 200 times slower than fp32.
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
