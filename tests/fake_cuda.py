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
_BRING_OVER = {_aten.where.self, _aten.index.Tensor, _aten.index_put_.default}  # what they are given of the CPU
_PLACES = (str(Path(ddpm_cli.__file__).parent), str(Path(__file__).parent))  # whose functions are said to wait


class Wait(NamedTuple):
    """Something that the host cannot have before the device has done all that it was told to do."""

    where: str  # the innermost function of ours, such as Trainer.train_step
    what: str  # torch's name for it


class OnCuda(Tensor):
    """A tensor on "cuda"."""

    numbers: Tensor  # on the CPU, laid out in memory as this says that it is

    __torch_function__ = torch._C._disabled_torch_function_impl

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
        return False  # which takes longer than most calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        leaves = [*_leaves(args), *_leaves(kwargs)]
        on_cuda = any(map(_is_on_cuda, leaves))
        _check_generators(leaves, "cuda" if on_cuda else "cpu")
        with no_dispatch():
            if not on_cuda:
                return func(*args, **kwargs | ({"pin_memory": False} if "pin_memory" in kwargs else {}))
            _check_devices(func, leaves)
            if _waits(func, args, kwargs, leaves):
                self.waits.append(Wait(_asking(), str(func)))
            result = func(*_each(_numbers, args), **_each(_numbers, kwargs))
            if torch.Tag.inplace_view in func.tags:
                func(*args, **kwargs)  # the wrapper's shape, too
            if _goes_to_cpu(func, args, kwargs):
                return result
            given = {id(leaf.numbers): leaf for leaf in leaves if isinstance(leaf, OnCuda)}
            return _each(partial(_put_on_cuda, given), result)


# Arguments and results -----------------------------------------------------------------------------------------------


def _leaves(value: Any) -> Iterator[Any]:
    """What there is in a value of lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """The same of changed leaves."""
    if isinstance(value, dict):
        return {key: _each(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_each(change, item) for item in value])
    return change(value)


def _is_on_cuda(value: object) -> bool:
    return isinstance(value, OnCuda) or (isinstance(value, torch.device) and value.type == "cuda")


def _numbers(value: Any) -> Any:
    if isinstance(value, OnCuda):
        return value.numbers
    return torch.device("cpu") if _is_on_cuda(value) else value


def _put_on_cuda(given: dict[int, OnCuda], value: Any) -> Any:
    """A result; a tensor that was changed in place is the one that was given."""
    if not isinstance(value, Tensor):
        return value
    return given[id(value)] if id(value) in given else OnCuda(value)


# What CUDA refuses, and what it waits for ----------------------------------------------------------------------------


def _of_cpu(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OnCuda)]


def _check_generators(leaves: list[Any], device: str) -> None:
    for generator in leaves:
        if isinstance(generator, torch.Generator) and generator.device.type != device:
            raise RuntimeError(f"Expected a '{device}' device type for generator but found '{generator.device.type}'")


def _check_devices(func: Any, leaves: list[Any]) -> None:
    """A single number of the CPU may meet what is computed point by point."""
    for tensor in _of_cpu(leaves):
        if func not in _COPIES | _BRING_OVER and not (tensor.ndim == 0 and torch.Tag.pointwise in func.tags):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} was given cpu and cuda:0")


def _waits(func: Any, args: Any, kwargs: dict[str, Any], leaves: list[Any]) -> bool:
    """Whether `torch.cuda.set_sync_debug_mode` would find it."""
    if torch.Tag.data_dependent_output in func.tags or _goes_to_cpu(func, args, kwargs):
        return True
    from_cpu = bool(_of_cpu(leaves))
    if func in _COPIES:
        return from_cpu and not (kwargs.get("non_blocking", False) or args[2:3] == (True,))
    if func in _BRING_OVER:
        masked = func is not _aten.where.self and any(isinstance(x, OnCuda) and x.dtype == torch.bool for x in leaves)
        return from_cpu or masked
    return torch.Tag.dynamic_output_shape in func.tags


def _goes_to_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if func is _aten.copy_.default:
        return not isinstance(args[0], OnCuda)
    device = kwargs.get("device") if func is _aten._to_copy.default else None
    return device is not None and device.type == "cpu"


def _asking() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_PLACES) and code.co_filename != __file__:
            return code.co_qualname
        frame = frame.f_back
    return "?"


# In place of what needs a GPU ----------------------------------------------------------------------------------------


class Generator(torch.Generator):
    """One that may say it is on "cuda", and draws on the CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        made = super().__new__(cls)
        made._device = CUDA if torch.device(device).type == "cuda" else torch.device("cpu")
        return made

    @property
    def device(self) -> torch.device:
        return self._device


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
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())  # imports much, so before anything is replaced
        for owner, name, replacement in (
            (runtime_device, "choose_compute", _choose_compute),
            (Compute, "compile", lambda self, module, **options: None),
            (torch, "Generator", Generator),
            (Tensor, "backward", backward),
            (Tensor, "pin_memory", lambda self: self),
            (torch.cuda, "mem_get_info", lambda device: (free_bytes, free_bytes)),
            (torch.cuda, "is_bf16_supported", lambda: True),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (
                torch.__future__,
                "get_overwrite_module_params_on_conversion",
                lambda: True,
            ),  # wrappers cannot change data
            (_foreach_utils, "_foreach_supported_types", [*_foreach_utils._foreach_supported_types, OnCuda]),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield stack.enter_context(FakeCuda())
