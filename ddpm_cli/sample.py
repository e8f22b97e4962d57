"""`ddpm-sample`: pictures out of a checkpoint, which alone says what network and diffusion it holds.

Heavy modules are imported inside the functions: `--help` and a mistyped key are answered without torch.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeVar

from ddpm_cli.cli.launch import launch
from ddpm_cli.config.compare import differences
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.sample_options import OPTIONS, SampleOptions
from ddpm_cli.io import durable
from ddpm_cli.io import run_dir as run_directory
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.exit_codes import RunError, Stopped
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.sampling import files as files
from ddpm_cli.sampling.build import prepare
from ddpm_cli.training.build import pixels

if TYPE_CHECKING:
    from ddpm_cli.checkpoint.pretrained import Pretrained
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.runtime.device import Compute
    from ddpm_cli.sampling.build import Prepared
    from ddpm_cli.sampling.image_store import ImageStore
    from ddpm_cli.sampling.loop import SamplingLoop

T = TypeVar("T")


def main() -> None:
    stop = Stop()
    stop.listen()
    launch("ddpm-sample", "sample", OPTIONS, partial(start, stop=stop), stop=stop)


def start(config: dict, call: Invocation, stop: Stop) -> Path:
    """Sample from a checkpoint and write the pictures; returns the path of the one that shows all.

    Raises:
        ConfigError: before anything has been written, if the configuration or the checkpoint cannot be used.
        RunError: if it had to end early; what has been drawn is kept.
        Stopped: if it was asked to end early; what has been drawn is kept.
    """
    from ddpm_cli.distributed.process_group import LostRankError, join

    try:
        world = join()
        if world.size > 1 and call.sweep_directory is not None:
            raise ConfigError("-m: a sweep cannot run in several processes that sample together; start its runs singly")
        with ExitStack() as held:
            return _start(SampleOptions(**config), call, stop, world, held)
    except LostRankError as error:  # once drawing, what is there is said too
        raise RunError(str(error)) from error


def _start(options: SampleOptions, call: Invocation, stop: Stop, world: "World", held: ExitStack) -> Path:
    from ddpm_cli.sampling.image_store import ImageStore
    from ddpm_cli.sampling.loop import FILM_IMAGES, SamplingLoop
    from ddpm_cli.sampling.outputs import write

    compute, pretrained, prepared = _agreed(world, lambda: _prepare(options, call, world))
    differing = world.first("; ".join(differences(world.broadcast(prepared.identity), prepared.identity)) or None)
    if differing is not None:
        raise ConfigError(f"not every process would draw what the first does: {differing}")
    plan = prepared.plan
    channels, height, width = pretrained.image_shape
    batches = {"batch_size": options.batch_size, "shape": (plan.images, height, width, channels)}
    directory = world.broadcast(_begin(options, call, prepared, batches, held) if world.main else None)
    with naming("out"):
        unfinished = held.enter_context(ImageStore(directory, **batches))
    missing = world.broadcast(unfinished.missing)
    drawing = SamplingLoop(pretrained.ddpm, plan, prepared.denoiser, prepared.labels, compute)
    with _ending_well(options, call, stop, world, unfinished, pixels(pretrained.image_shape)):
        if missing and prepared.compiled:
            _translate(drawing, options, pretrained.image_shape)
        if world.main:
            _announce(options, pretrained, drawing, unfinished, world)
        drawing.draw(
            missing[world.rank :: world.size],
            unfinished.keep,
            filmed=FILM_IMAGES if options.save_trajectory else 0,
            show_progress=world.main,
        )
        unfinished.flush()
        world.barrier()
        if world.main:
            written = write(unfinished, plan, save=options.save)
            unfinished.end()
            print("\n".join(map(str, written)))
    return directory / files.GRID_FILE


def _prepare(options: SampleOptions, call: Invocation, world: "World") -> "tuple[Compute, Pretrained, Prepared]":
    from ddpm_cli.checkpoint.pretrained import load
    from ddpm_cli.runtime.device import choose_compute

    with naming("device"):
        compute = choose_compute(options.device, options.precision, local_rank=world.local_rank)
    with naming("ckpt"):
        pretrained = load(
            options.ckpt,
            weights=options.weights,
            ema_length=options.ema_length,
            trust=options.trust,
            sha256=options.ckpt_sha256,
        )
    compute.place(pretrained.ddpm)
    return compute, pretrained, prepare(pretrained, compute, options, call.changes)


def _agreed(world: "World", call: Callable[[], T]) -> T:
    """What `call` returns on this rank; what one rank refuses all do, so that rank 0 can say it."""
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


def _begin(options: SampleOptions, call: Invocation, prepared: "Prepared", batches: dict, held: ExitStack) -> Path:
    """The output directory, held, in which a run has been begun or may go on."""
    from ddpm_cli.sampling import image_store as unfinished

    with naming("out"):
        directory = _output_directory(options, call, held)
        held.enter_context(unfinished.held(directory))
        unfinished.begin(directory, prepared.identity, copies=2 if options.save == "npz" else 1, **batches)
    return directory


def _output_directory(options: SampleOptions, call: Invocation, held: ExitStack) -> Path:
    if options.out is None and call.sweep_directory is not None:
        return call.sweep_directory
    if options.out is None:
        path = Path(options.ckpt).absolute()
        runs = [parent for parent in (path, *path.parents) if (parent / run_directory.CHECKPOINTS).is_dir()]
        if runs and (runs[0] / run_directory.SAMPLES).is_symlink():
            raise ConfigError(f"out: {runs[0] / run_directory.SAMPLES} is a link; choose a directory with out=DIR")
        directory = run_directory.create(runs[0] if runs else "outputs", run_directory.SAMPLES)
        held.callback(_remove_if_empty, directory)
        return directory
    directory = Path(options.out)
    if not directory.is_dir():
        durable.make_directory(directory)
    with TemporaryFile(dir=directory):  # whether it can be written to is better known before than after sampling
        return directory


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()
        directory.parent.rmdir()


def _translate(drawing: "SamplingLoop", options: SampleOptions, image_shape: tuple[int, int, int]) -> None:
    """Compile the network; where compile=auto finds that this cannot be, it is drawn with as it was written."""
    from ddpm_cli.runtime.device import out_of_memory

    drawing.compiled = min(options.batch_size, drawing.plan.images)
    try:
        drawing.translate(image_shape)
    except Exception as error:  # whatever a compiler may raise
        if out_of_memory(error):
            raise
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
        if options.compile != "auto":
            raise ConfigError(f"compile: the network cannot be compiled here: {reason}") from error
        print(f"not compiled: {reason}", file=sys.stderr)
        drawing.compiled = 0


def _announce(
    options: SampleOptions, pretrained: "Pretrained", drawing: "SamplingLoop", unfinished: "ImageStore", world: "World"
) -> None:
    length = "" if options.ema_length is None else f" of length {options.ema_length:g}"
    together = f", {world.size} processes" if world.size > 1 else ""
    compiled = ", compiled" if drawing.compiled else ""
    on = f"{drawing.compute}{together}{compiled}"
    print(f"{options.ckpt}: step {pretrained.step:,}, {options.weights} weights{length}, on {on}")
    if unfinished.finished > 0:
        print(f"goes on: {_there(unfinished)}")


def _there(unfinished: "ImageStore") -> str:
    return f"{unfinished.finished:,} of {unfinished.shape[0]:,} images are there"


@contextmanager
def _ending_well(
    options: SampleOptions, call: Invocation, stop: Stop, world: "World", unfinished: "ImageStore", image: str
) -> Iterator[None]:
    """Inside, whatever ends the drawing early says what is there and how to go on."""
    from ddpm_cli.distributed.process_group import LostRankError
    from ddpm_cli.runtime.device import out_of_memory

    def kept() -> str:
        with suppress(OSError):
            unfinished.flush()
        return _how_to_go_on(options, call, world, unfinished)

    try:
        with _said_by_every_rank(world):
            try:
                yield
            except LostRankError as error:
                raise RunError(f"{error}. {kept()}") from error
            except OSError as error:
                where = "" if error.filename is None else f"{error.filename}: "
                raise RunError(f"{where}{error.strerror or error}. {kept()}") from error
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                described = f"{options.batch_size} images of {image} at a time"
                less = "a smaller batch_size takes less"
                raise RunError(f"out of memory with {described}; {less}. {kept()}") from error
    except Stopped as stopped:
        raise Stopped(f"{stop.signal}: stopped. {kept()}") from stopped


@contextmanager
def _said_by_every_rank(world: "World") -> Iterator[None]:
    """Inside, an error that may be of this process alone is said by itself: otherwise only rank 0 speaks."""
    try:
        yield
    except RunError as error:
        if not world.main:
            print(f"ddpm-sample: process {world.rank}: {printable(str(error))}", file=sys.stderr)
        raise


def _how_to_go_on(options: SampleOptions, call: Invocation, world: "World", unfinished: "ImageStore") -> str:
    if unfinished.finished == 0:
        return "Nothing had been drawn yet"
    if call.sweep_directory is not None:
        return f"{_there(unfinished)}, in {unfinished.directory}"
    program = ["ddpm-sample"]
    if world.size > 1:
        program = ["torchrun", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", "-m", "ddpm_cli.sample"]
    out = [] if options.out is not None else [f"out={_quoted(str(unfinished.directory))}"]
    return f"{_there(unfinished)}. To go on: {shlex.join([*program, *sys.argv[1:], *out])}"


def _quoted(path: str) -> str:
    """As Hydra reads it on a command line."""
    if re.fullmatch(r"[\w./+@%:-]+", path):
        return path
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", path)
    return f"'{escaped}'"


if __name__ == "__main__":
    main()
