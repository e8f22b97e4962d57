"""Several processes that train one model together, as torchrun starts them: which this is, what they tell each other.

Rank 0 decides, logs and saves. Every rank holds the whole network and computes its part of each batch.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ddpm_cli.diffusion.ddpm import DDPM

T = TypeVar("T")

# How long a rank waits for the others: longer than a preview or a save of rank 0 takes.
TIMEOUT = timedelta(minutes=30)


class LostRankError(RuntimeError):
    """Another process of this run has gone, or does not answer."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; `Ranks()` is a process on its own."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine: which of its GPUs is ours

    @property
    def main(self) -> bool:
        return self.rank == 0

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; anything that pickles."""
        if self.size == 1:
            return value
        box = [value]
        with self.answering():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def main_first(self, call: Callable[[], T]) -> T:
        """What `call` returns, on every rank; the others call it once rank 0 has done so."""
        value = call() if self.main else None
        self.wait()
        return cast(T, value) if self.main else call()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        with self.answering():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks, of equal shapes, one after another along the first dimension."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        with self.answering():
            dist.all_gather(parts, part)
        return torch.cat(parts)

    def answering(self) -> AbstractContextManager:
        """Turns what a broken connection raises inside into `LostRankError`."""
        return nullcontext() if self.size == 1 else _answering()

    def wait(self) -> None:
        """Return when every rank has called this."""
        self.any(False)

    def parallel(self, ddpm: DDPM) -> DDPM:
        """The same diffusion around a network whose backward pass averages the gradients over all ranks."""
        if self.size == 1:
            return ddpm
        ids = [ddpm.device] if ddpm.device.type == "cuda" else None
        return ddpm.with_model(DistributedDataParallel(ddpm.model, device_ids=ids, broadcast_buffers=False))

    def without_averaging(self, ddpm: DDPM) -> AbstractContextManager:
        """Inside, the backward pass of what `parallel` returned only adds up this rank's own gradients."""
        return ddpm.model.no_sync() if isinstance(ddpm.model, DistributedDataParallel) else nullcontext()


def join() -> Ranks:
    """Meet the other processes that torchrun has started; a process that was started by itself stays so."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if not dist.is_initialized():
        with _answering():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    return Ranks(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]))


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostRankError(f"another process of this run has gone or does not answer: {error}") from error
