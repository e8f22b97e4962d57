"""Several processes that work together, started by torchrun: their ranks, and how they exchange values.

Rank 0 decides, logs and saves. Every rank holds the whole network, or a part of it (`ddpm_cli.distributed.fsdp`).
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
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ddpm_cli.distributed import fsdp

T = TypeVar("T")

# How long a rank waits for the others if all do the same work: longer than a save of rank 0 takes.
TIMEOUT = timedelta(minutes=30)
# At a barrier, before which ranks work independently. A dead rank is noticed at once: its connections are closed.
BARRIER_TIMEOUT = timedelta(days=365)


class LostRankError(RuntimeError):
    """Another process of this run has ended, or does not respond."""


@dataclass(frozen=True)
class World:
    """This process among those that work together; `World()` is a process on its own, `join` connects several.

    All ranks must call every method but `main` and `answering`, in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine: which of its GPUs is ours
    barrier_group: dist.ProcessGroup | None = None  # of all ranks, with another time-out; None: the default group

    @property
    def main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; it must be picklable."""
        if self.size == 1:
            return value
        box = [value]
        with self.answering():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, call: Callable[[], T]) -> T:
        """The result of `call` on rank 0, on every rank, however long it takes; it must be picklable.

        An OSError or ValueError that it raises there is raised on all ranks.
        """
        value, problem = None, None
        if self.main:
            try:
                value = call()
            except (OSError, ValueError) as error:
                problem = error
        self.barrier()
        value, problem = self.broadcast((value, problem))
        if problem is not None:
            raise problem
        return value

    def main_first(self, call: Callable[[], T]) -> T:
        """The result of `call` on each rank; the others call it after rank 0 has finished, however long that takes."""
        value = call() if self.main else None
        self.barrier()
        return cast(T, value) if self.main else call()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return bool(self.max(int(flag)))

    def max(self, value: int) -> int:
        """The largest `value` of all ranks."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        with self.answering():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def finite(self, tensor: Tensor) -> bool:
        """Whether a tensor, which every rank holds in full or in part, has only finite numbers."""
        (part,) = fsdp.local_tensors([tensor])
        return not self.any(not torch.isfinite(part).all())

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks, of equal shapes, concatenated along the first dimension."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        with self.answering():
            dist.all_gather(parts, part)
        return torch.cat(parts)

    def first(self, value: T | None) -> T | None:
        """The value of the first rank that has one, on every rank; it must be picklable."""
        if self.size == 1:
            return value
        values: list[Any] = [None] * self.size
        with self.answering():
            dist.all_gather_object(values, value)
        return next((found for found in values if found is not None), None)

    def barrier(self) -> None:
        """Wait until every rank has called this, however long that takes; signals are handled meanwhile."""
        if self.size == 1:
            return
        with self.answering():
            work = dist.all_reduce(torch.zeros(1), group=self.barrier_group, async_op=True)
            assert work is not None
            while not work.is_completed():  # Python handles signals here, but not inside torch's `wait`
                time.sleep(0.01)
            work.wait()

    def answering(self) -> AbstractContextManager:
        """Inside, errors of broken connections become `LostRankError`."""
        return nullcontext() if self.size == 1 else _answering()

    def gather_full_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """All tensors in full, on rank 0's CPU; nothing on the other ranks."""
        kept = {}
        for name, tensor in tensors:
            with self.answering():
                full = fsdp.full_tensor(tensor)
            if self.main:
                kept[name] = full if full is tensor else full.cpu()
        return kept

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """`model` with a backward pass that averages the gradients over all ranks; itself if it needs no wrapper."""
        if self.size == 1 or fsdp.is_sharded(model):
            return model
        device = next(model.parameters()).device
        ids = [device] if device.type == "cuda" else None
        # Buffers are equal on all ranks without broadcasting; the option has another name from torch 2.14 on.
        names = inspect.signature(DistributedDataParallel).parameters
        buffers: Any = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        return DistributedDataParallel(model, ids, gradient_as_bucket_view=True, **buffers)

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """Inside, the backward pass of `data_parallel`'s result accumulates only this rank's own gradients."""
        if fsdp.is_sharded(model):
            return fsdp.no_sync(model)
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def join() -> World:
    """Connect to the other processes that torchrun has started; without torchrun, return `World()`.

    Raises:
        LostRankError: if one of them does not connect.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    with _answering():
        if not dist.is_initialized():
            _connect("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        # Created while all ranks are here: creating it at the first barrier would not wait for a late rank.
        group = dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)
    return World(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]), group)


def _connect(backend: str) -> None:
    """Create the default process group.

    When torchrun restarts the ranks (`--max-restarts`), it keeps the store through which they find each other, and
    torch would look there for the ports of processes that have ended.
    """
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    place = f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = dist.PrefixStore(place, store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostRankError(f"another process of this run has ended or does not respond: {error}") from error
