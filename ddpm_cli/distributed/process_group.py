"""Several processes that train one model together, as torchrun starts them: which this is, what they tell each other.

Rank 0 decides, logs and saves. Every rank holds the whole network, or a part of it (`ddpm_cli.distributed.fsdp`), and
computes its part of each batch.
"""

import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm_cli.distributed.fsdp import is_sharded, local_tensors, whole, without_reduction

T = TypeVar("T")

# How long a rank waits for the others: longer than a preview or a save of rank 0 takes.
TIMEOUT = timedelta(minutes=30)
ANY_TIME = timedelta(days=365)  # where ranks work on their own: one that has died is noticed without a time-out


class LostRankError(RuntimeError):
    """Another process of this run has gone, or does not answer."""


@dataclass(frozen=True)
class World:
    """This process among those that train together; `Ranks()` is a process on its own."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine: which of its GPUs is ours

    @property
    def main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; anything that pickles."""
        if self.size == 1:
            return value
        box = [value]
        with self.answering():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, call: Callable[[], T]) -> T:
        """What `call` returns on rank 0, on every rank; anything that pickles. What it refuses there all refuse."""
        value, problem = None, None
        if self.main:
            try:
                value = call()
            except (OSError, ValueError) as error:
                problem = error
        value, problem = self.broadcast((value, problem))
        if problem is not None:
            raise problem
        return value

    def main_first(self, call: Callable[[], T]) -> T:
        """What `call` returns, on every rank; the others call it once rank 0 has done so, however long it takes."""
        meet = self.meeting()
        value = call() if self.main else None
        meet()
        return cast(T, value) if self.main else call()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return bool(self.most(int(flag)))

    def most(self, value: int) -> int:
        """The largest `value` of all ranks."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        with self.answering():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def finite(self, tensor: Tensor) -> bool:
        """Whether a tensor, of which every rank holds all or a part, has only finite numbers."""
        (part,) = local_tensors([tensor])
        return not self.any(not torch.isfinite(part).all())

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks, of equal shapes, one after another along the first dimension."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        with self.answering():
            dist.all_gather(parts, part)
        return torch.cat(parts)

    def first(self, value: T | None) -> T | None:
        """The value of the first rank that has one, on every rank; anything that pickles."""
        if self.size == 1:
            return value
        values: list[Any] = [None] * self.size
        with self.answering():
            dist.all_gather_object(values, value)
        return next((found for found in values if found is not None), None)

    def meeting(self) -> Callable[[], None]:
        """What each rank is to call when it has done work of its own; all of them make it together.

        It returns once every rank has called it, however late that is, and answers signals meanwhile.
        """
        if self.size == 1:
            return lambda: None
        with self.answering():
            group = dist.new_group(backend="gloo", timeout=ANY_TIME)
        assert isinstance(group, dist.ProcessGroup)

        def meet() -> None:
            with self.answering():
                work = dist.all_reduce(torch.zeros(1), group=group, async_op=True)
                while work is not None and not work.is_completed():
                    time.sleep(0.01)
                if work is not None:
                    work.wait()

        return meet

    def answering(self) -> AbstractContextManager:
        """Turns what a broken connection raises inside into `LostRankError`."""
        return nullcontext() if self.size == 1 else _answering()

    def wait(self) -> None:
        """Return when every rank has called this."""
        self.any(False)

    def gather_full_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """On rank 0 all tensors in one piece; those that are sharded come to its CPU. On the others nothing."""
        kept = {}
        for name, tensor in tensors:
            with self.answering():
                complete = whole(tensor)
            if self.main:
                kept[name] = complete if complete is tensor else complete.cpu()
        return kept

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """`model` whose backward pass averages the gradients over all ranks; itself where nothing is to be added."""
        if self.size == 1 or is_sharded(model):
            return model
        device = next(model.parameters()).device
        ids = [device] if device.type == "cuda" else None
        # Buffers are the same everywhere without being sent around; the option has another name from torch 2.14 on.
        names = inspect.signature(DistributedDataParallel).parameters
        buffers: Any = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        return DistributedDataParallel(model, ids, gradient_as_bucket_view=True, **buffers)

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """Inside, the backward pass of what `data_parallel` returned only adds up this rank's own gradients."""
        if is_sharded(model):
            return without_reduction(model)
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def join() -> World:
    """Meet the other processes that torchrun has started; a process that was started by itself stays so."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        with _answering():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]))


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostRankError(f"another process of this run has gone or does not answer: {error}") from error
