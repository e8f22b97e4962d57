"""The model of a command on every process: device, weights, network. If one process refuses, all do.

Heavy modules are imported inside the functions: `--help` and mistyped keys are handled without importing torch.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from ddpm_cli.config.drawing_options import DrawingOptions
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.io import durable
from ddpm_cli.io.named_runs import Newest, newest_of

if TYPE_CHECKING:
    from ddpm_cli.checkpoint.pretrained import Pretrained, Selection
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.runtime.device import Compute
    from ddpm_cli.sampling.loop import SamplingLoop

T = TypeVar("T")
Options = TypeVar("Options", bound=DrawingOptions)


def agreed(world: "World", call: Callable[[], T]) -> T:
    """The result of `call` on this rank; if one rank refuses, all do, so that rank 0 can print the message."""
    if world.size == 1:
        return call()
    try:
        result, problem = call(), None
    except ValueError as error:
        result, problem = None, error
    said = world.first(None if problem is None else (world.rank, str(problem)))
    if said is not None:
        rank, message = said
        raise ConfigError(message if rank == 0 else f"{message} (process {rank})") from problem
    assert result is not None
    return result


def first_on_main(world: "World", call: Callable[[], T]) -> T:
    """The result of `call` on each rank: rank 0 calls it first, however long it takes; if it refuses, all do."""
    if world.size == 1:
        return call()
    result, problem = None, None
    if world.main:
        try:
            result = call()
        except ValueError as error:
            problem = error
    world.barrier()
    said = world.broadcast(None if problem is None else str(problem))
    if said is not None:
        raise ConfigError(said) from problem
    return agreed(world, lambda: cast(T, result) if world.main else call())


def choose(options: DrawingOptions, world: "World") -> "Compute":
    """The device and precision of this process."""
    from ddpm_cli.runtime.device import choose_compute

    with naming("device"):
        return choose_compute(options.device, options.precision, local_rank=world.local_rank)


def run_meant(ckpt: str, world: "World") -> Newest | None:
    """The run that rank 0 has found for a `ckpt=` that names a directory of runs; None: it names no such directory."""
    with naming("ckpt"):
        return world.on_main(lambda: newest_of(Path(ckpt)))


def select(options: DrawingOptions, path: str, world: "World") -> "Selection":
    """The weights that rank 0 has found at a path and verified for all ranks."""
    from ddpm_cli.checkpoint.pretrained import select

    with naming("ckpt"):
        return world.on_main(
            lambda: select(
                path,
                weights=options.weights,
                ema_length=options.ema_length,
                trust=options.trust,
                sha256=options.ckpt_sha256,
            )
        )


def with_own_threshold(options: Options, selection: "Selection", changes: Iterable[str]) -> Options:
    """The options with the model's threshold, if it came with one and the command line chooses no other.

    Args:
        changes: the dotted keys that the command line sets.
    """
    from ddpm_cli.checkpoint.pretrained import own_threshold

    if any(key.partition(".")[0] == "threshold" for key in changes):
        return options
    with naming("ckpt"):
        own = own_threshold(selection, trust=options.trust)
    return options if own is None else replace(options, threshold=own)


def rebuild(selection: "Selection", options: DrawingOptions, compute: "Compute", world: "World") -> "Pretrained":
    """The model of the selected weights, on its device."""
    from ddpm_cli.checkpoint.pretrained import rebuild

    if not world.main:
        durable.wait_for(selection.checkpoint.path)
        durable.wait_for(*selection.files)
    with naming("ckpt"):
        pretrained = rebuild(selection, trust=options.trust)
    compute.place(pretrained.ddpm)
    return pretrained


def compile_now(loop: "SamplingLoop", options: DrawingOptions, image_shape: tuple[int, int, int]) -> None:
    """Compile the network; with compile=auto, sample with it uncompiled if it cannot be compiled."""
    from ddpm_cli.runtime.device import out_of_memory

    try:
        loop.compile(image_shape)
    except Exception as error:  # whatever a compiler may raise
        if out_of_memory(error):
            raise
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
        if options.compile != "auto":
            raise ConfigError(f"compile: the network cannot be compiled here: {reason}") from error
        print(f"not compiled: {reason}", file=sys.stderr)
        loop.compiled = 0
