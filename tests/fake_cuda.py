"""A CUDA device without a GPU: what lies there meets nothing of the CPU, and whoever asks it for a number is noted.

Inside `fake_cuda()` a tensor on "cuda" is a wrapper around its numbers, which are computed on the CPU and drawn by the
CPU's generators: whatever is asked of the device has its answer, and the program goes on as it would. torch's
FakeTensors know devices too, but no numbers, without which a solver cannot even place its steps; their mode is what
lets torch say "cuda" where there is no driver. Three things are not as on a GPU: attention is computed without fused
kernels; nothing is compiled; and autograd's engine needs a GPU, so that `backward` leaves a constant gradient in every
parameter that a loss depends on.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

import ddpm_cli
from ddpm_cli.runtime import device as runtime_device
from ddpm_cli.runtime.device import Compute

CUDA = torch.device("cuda", 0)
GRADIENT = 1e5  # of everything: long enough to be clipped, even when a GradScaler has divided it by 2^16

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXES = {_aten.index.Tensor, _aten.index_put_.default}  # which may be of the CPU; they are then brought over
_ANSWERS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # what depends on numbers
_COMPUTED_BY: dict[Any, Callable[..., Any]] = {
    _aten.cudnn_batch_norm.default: lambda *args: (*_aten.native_batch_norm.default(*args), torch.empty(0)),
}
_PLACES = (str(Path(ddpm_cli.__file__).parent), str(Path(__file__).parent))  # whose functions are said to wait


class Wait(NamedTuple):
    """Something that the host cannot have before the device has done all that it was told to do."""

    where: str  # the innermost function of ours, such as Trainer.train_step
    what: str  # torch's name for it


class OnCuda(Tensor):
    """A tensor on "cuda"."""

    numbers: Tensor  # on the CPU, laid out in memory as this says that it is

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnCuda":
        layout = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, numbers.size(), dtype=numbers.dtype, device=CUDA, **layout)
        made.numbers = numbers
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch's own refuses wrappers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor that has left fake_cuda()")


class FakeCuda(TorchDispatchMode):
    """Computes on the CPU what is on "cuda", unless devices meet. `waits` grows by all that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what it would put around every call takes longer than most calls

    def note(self, what: str) -> None:
        """That the host waits here."""
        frame = sys._getframe(1)
        while frame is not None and not _is_of_ours(frame.f_code.co_filename):
            frame = frame.f_back
        self.waits.append(Wait("?" if frame is None else frame.f_code.co_qualname, what))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        tensors = [leaf for leaf in _leaves([*args, *kwargs.values()]) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnCuda)]
        with no_dispatch():
            if not (there or _is_cuda(kwargs.get("device"))):
                return func(*args, **kwargs | ({"pin_memory": False} if "pin_memory" in kwargs else {}))
            to_cpu = _goes_to_cpu(func, args, kwargs)
            if len(there) < len(tensors):
                _check_devices(func, args, [tensor for tensor in tensors if not isinstance(tensor, OnCuda)])
            if to_cpu or _waits(func, args, kwargs, here=len(there) < len(tensors)):
                self.note(str(func))
            compute: Any = _COMPUTED_BY.get(func, func)  # on a CPU
            result = compute(*_each(_numbers, args), **{key: _each(_numbers, value) for key, value in kwargs.items()})
            if torch.Tag.inplace_view in func.tags:
                func(*args, **kwargs)  # the wrapper's shape, too
            if to_cpu:
                return result
            given = {id(tensor.numbers): tensor for tensor in there} if func._schema.is_mutable else {}
            return _each(partial(_put_on_cuda, given), result)


# Arguments and results -----------------------------------------------------------------------------------------------


def _leaves(value: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    """What there is in lists of lists."""
    for item in value:
        if isinstance(item, list | tuple):
            yield from _leaves(item)
        else:
            yield item


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """The same, of changed leaves."""
    if isinstance(value, list | tuple):
        return type(value)([_each(change, item) for item in value])
    return change(value)


def _is_cuda(device: object) -> bool:
    return isinstance(device, torch.device) and device.type == "cuda"


def _numbers(value: Any) -> Any:
    if isinstance(value, OnCuda):
        return value.numbers
    return torch.device("cpu") if _is_cuda(value) else value


def _put_on_cuda(given: dict[int, OnCuda], value: Any) -> Any:
    """A result; a tensor that was changed in place is the one that was given."""
    if not isinstance(value, Tensor):
        return value
    return given[id(value)] if id(value) in given else OnCuda(value)


# What CUDA refuses, and what it waits for ----------------------------------------------------------------------------


def _check_devices(func: Any, args: Any, of_cpu: list[Tensor]) -> None:
    """A single number of the CPU may meet what is computed point by point."""
    if func in _COPIES or (func in _INDEXES and isinstance(args[0], OnCuda)):
        return
    if torch.Tag.pointwise not in func.tags or any(tensor.ndim > 0 for tensor in of_cpu):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} was given cpu and cuda:0")


def _waits(func: Any, args: Any, kwargs: dict[str, Any], *, here: bool) -> bool:
    """Whether `torch.cuda.set_sync_debug_mode` would find it.

    Args:
        here: whether a tensor of the CPU is among the arguments.
    """
    if func in _COPIES:
        return here and not (kwargs.get("non_blocking", False) or args[2:3] == (True,))
    if func in _INDEXES:
        return here or any(isinstance(index, OnCuda) and index.dtype == torch.bool for index in args[1])
    # Other kernels take a number of the CPU as it is.
    return not _ANSWERS.isdisjoint(func.tags) or (here and func is _aten.where.self)


def _goes_to_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if func is _aten.copy_.default:
        return not isinstance(args[0], OnCuda)
    device = kwargs.get("device") if func is _aten._to_copy.default else None
    return device is not None and device.type == "cpu"


def _is_of_ours(file: str) -> bool:
    return file.startswith(_PLACES) and file != __file__


# In place of what needs a GPU ----------------------------------------------------------------------------------------


class Generator(torch.Generator):
    """One that may say it is on "cuda", and draws on the CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        made = super().__new__(cls)
        made._device = CUDA if torch.device(device).type == "cuda" else torch.device("cpu")
        return made

    device: Any = property(lambda self: self._device)


class SameDevice(TorchFunctionMode):
    """Refuses a generator of another device than what it draws."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        result, generator = func(*args, **kwargs), kwargs.get("generator")
        if generator is not None and generator.device.type != result.device.type:
            raise RuntimeError(f"Expected a '{result.device}' device type for generator, found '{generator.device}'")
        return result


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """In place of `Tensor.backward`."""
    to_see, seen = [loss.grad_fn], set()
    while to_see:
        node = to_see.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        to_see += [function for function, _ in node.next_functions]
        parameter = getattr(node, "variable", None)
        if parameter is None:
            continue
        gradient = torch.full_like(parameter, GRADIENT)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _choose_compute(device: str, precision: str, *, local_rank: int = 0) -> Compute:
    return Compute(CUDA, precision)


@contextmanager
def fake_cuda(*, free_bytes: int = 2**33) -> Iterator[FakeCuda]:
    """Inside, there is one GPU, and every `device=` means it.

    Args:
        free_bytes: how much memory it says is free.
    """
    cuda = FakeCuda()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())  # imports much, so before anything is replaced
        for owner, name, replacement in (
            (runtime_device, "choose_compute", _choose_compute),
            (Compute, "compile", lambda self, module, **options: None),
            (torch, "Generator", Generator),
            (Tensor, "backward", backward),
            (Tensor, "pin_memory", lambda self: self),
            (torch.cuda, "synchronize", lambda device=None: cuda.note("synchronize")),
            (torch.cuda, "mem_get_info", lambda device: (free_bytes, free_bytes)),
            (torch.cuda, "get_device_name", lambda device=None: "a GPU that is not there"),
            (torch.cuda, "is_bf16_supported", lambda: True),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            # `Module.to` makes parameters anew, where it would give old ones the data of new tensors: these have none.
            (torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True),
            (_foreach_utils, "_foreach_supported_types", [*_foreach_utils._foreach_supported_types, OnCuda]),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(SameDevice())
        yield stack.enter_context(cuda)
