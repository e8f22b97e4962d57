"""Several processes that work together, as torchrun starts them: which this is, what they tell each other.

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

# How long a rank waits for the others where all do the same: longer than a save of rank 0 takes.
TIMEOUT = timedelta(minutes=30)
# At a barrier, up to which ranks work on their own. One that has died is noticed at once: its connections are closed.
BARRIER_TIMEOUT = timedelta(days=365)


class LostRankError(RuntimeError):
    """Another process of this run has gone, or does not answer."""


@dataclass(frozen=True)
class World:
    """This process among those that work together; `World()` is a process on its own, `join` finds out which this is.

    Every method but `main` and `answering` is to be called by all ranks, in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine: which of its GPUs is ours
    barrier_group: dist.ProcessGroup | None = None  # of all ranks, with a time-out of its own; None: the default one

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
        """What `call` returns on rank 0, on every rank, however long it takes; anything that pickles.

        An OSError or ValueError that it raises there is raised on all.
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
        """What `call` returns, on every rank; the others call it once rank 0 has done so, however long it takes."""
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
        """Whether a tensor, of which every rank holds all or a part, has only finite numbers."""
        (part,) = fsdp.local_tensors([tensor])
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

    def barrier(self) -> None:
        """Return when every rank has called this, however late that is; signals are answered meanwhile."""
        if self.size == 1:
            return
        with self.answering():
            work = dist.all_reduce(torch.zeros(1), group=self.barrier_group, async_op=True)
            assert work is not None
            while not work.is_completed():  # Python answers signals here, and not in a `wait` of torch's
                time.sleep(0.01)
            work.wait()

    def answering(self) -> AbstractContextManager:
        """Turns what a broken connection raises inside into `LostRankError`."""
        return nullcontext() if self.size == 1 else _answering()

    def gather_full_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """On rank 0 all tensors, those that are sharded put together, on its CPU. On the others nothing."""
        kept = {}
        for name, tensor in tensors:
            with self.answering():
                full = fsdp.full_tensor(tensor)
            if self.main:
                kept[name] = full if full is tensor else full.cpu()
        return kept

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """`model` whose backward pass averages the gradients over all ranks; itself where nothing is to be added."""
        if self.size == 1 or fsdp.is_sharded(model):
            return model
        device = next(model.parameters()).device
        ids = [device] if device.type == "cuda" else None
        # Buffers are the same everywhere without being sent around; the option has another name from torch 2.14 on.
        names = inspect.signature(DistributedDataParallel).parameters
        buffers: Any = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        return DistributedDataParallel(model, ids, gradient_as_bucket_view=True, **buffers)

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """Inside, the backward pass of what `data_parallel` returned only adds up this rank's own gradients."""
        if fsdp.is_sharded(model):
            return fsdp.no_sync(model)
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def join() -> World:
    """Connect to the other processes that torchrun has started; a process that was started by itself stays so.

    Raises:
        LostRankError: if one of them does not come.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    with _answering():
        if not dist.is_initialized():
            _connect("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        # Made while all ranks are here: making it at the first barrier would not wait for one that is late.
        group = dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)
    return World(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]), group)


def _connect(backend: str) -> None:
    """Make the default process group.

    torchrun keeps the store through which ranks find each other when it starts them again (`--max-restarts`), and torch
    would look there for the ports of those that are gone.
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
