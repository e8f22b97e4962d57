"""A run of `ddpm-sample`: from checked options to pictures on the disk, and the ways it may end.

Heavy modules are imported inside the functions: `--help` and a mistyped key are answered without torch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple

from ddpm_cli.config.compare import all_differences
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.sample_options import SampleOptions
from ddpm_cli.config.sampler_spacing import check_chosen_for_one_model, is_optimized
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.own_output import GRID_FILE
from ddpm_cli.io.text import printable, size_text
from ddpm_cli.runtime import console
from ddpm_cli.runtime.exit_codes import RunError
from ddpm_cli.runtime.signals import Stop
from ddpm_cli.sampling.build import build_loop, identity
from ddpm_cli.sampling.classes import class_numbers, classes_text
from ddpm_cli.sampling.ending import ending_well, same_command, say_on_stderr
from ddpm_cli.sampling.model import agreed, choose, compile_now, rebuild, run_meant, select, with_own_threshold
from ddpm_cli.sampling.optimized import until_chosen, with_chosen

if TYPE_CHECKING:
    from ddpm_cli.checkpoint import Verified
    from ddpm_cli.checkpoint.pretrained import Pretrained, Selection
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.sampling.image_store import ImageStore
    from ddpm_cli.sampling.loop import SamplingLoop


class _Task(NamedTuple):
    """What every step of a run works with."""

    options: SampleOptions
    invocation: Invocation
    world: "World"
    stop: Stop
    checkpoint: "Verified | None" = None  # once it is known, and so
    class_names: tuple[str, ...] = ()  # of the network's labels


def start(config: dict, invocation: Invocation, stop: Stop) -> Path:
    """Sample from a checkpoint and write the pictures; returns the path of the one that shows all.

    Raises:
        ConfigError: before anything has been written, if the configuration or the checkpoint cannot be used.
        RunError: if it had to end early; what has been drawn is kept.
        Stopped: if it was asked to end early; what has been drawn is kept.
    """
    from ddpm_cli.distributed.process_group import LostRankError, join

    try:
        world, options = join(), SampleOptions(**config)
        check_chosen_for_one_model(options.sampler)
        with ExitStack() as held:
            return _sample(_Task(options, invocation, world, stop), held)
    except LostRankError as error:  # once drawing, what is there is said too
        raise RunError(str(error)) from error


def _sample(task: _Task, held: ExitStack) -> Path:
    from ddpm_cli.sampling import image_store
    from ddpm_cli.sampling.film import FILM_IMAGES
    from ddpm_cli.sampling.image_store import ImageStore
    from ddpm_cli.sampling.provenance import provenance

    world = task.world
    held.enter_context(console.telling(say_on_stderr("sample")))
    newest = run_meant(task.options.ckpt, world)
    if newest is not None:
        task = task._replace(options=replace(task.options, ckpt=str(newest.directory)))
    task, pretrained, loop = _prepared(task)
    options = task.options
    decisive = identity(pretrained, loop, options)
    differing = world.first("; ".join(all_differences(world.broadcast(decisive), decisive)) or None)
    if differing is not None:
        raise ConfigError(f"not every process would draw what the first does: {differing}")
    channels, height, width = pretrained.image_shape
    batches = {"batch_size": options.batch_size, "shape": (loop.plan.images, height, width, channels)}
    directory, finished = world.broadcast(_begin(task, decisive, batches, held) if world.main else (None, None))
    if world.main and newest is not None:
        print(newest.said)
    if finished:
        task.stop.finish()
        if world.main:
            print("\n".join(printable(str(text)) for text in (f"{directory} holds these images already:", *finished)))
        return directory / GRID_FILE
    if not world.main:
        durable.wait_for(*image_store.files(directory))
    with naming("out"):
        store = held.enter_context(ImageStore(directory, **batches))
    missing = world.broadcast(store.missing)
    with _ending_well(task, store, pretrained.image_shape):
        assert task.checkpoint is not None
        # Now: a training that goes on may have removed it by the end.
        drawn_by = provenance(options, task.checkpoint, decisive["ckpt"], loop) if world.main else ""
        if missing and loop.compiled is not None:
            compile_now(loop, options, pretrained.image_shape)
        if world.main:
            _announce(task, pretrained, loop, store)
        followed = FILM_IMAGES if options.save_trajectory else 0
        loop.draw(missing[world.rank :: world.size], store.keep, followed=followed, show_progress=world.main)
        store.flush()
        world.barrier()
        task.stop.defer("finishing the pictures")
        if world.main:
            durable.wait_for(*store.trajectory_files(followed))
            _finish(task, store, loop, directory, drawn_by)
        task.stop.finish()
    return directory / GRID_FILE


def _finish(task: _Task, store: "ImageStore", loop: "SamplingLoop", directory: Path, drawn_by: str) -> None:
    """Write the pictures, and say where they are."""
    from ddpm_cli.sampling.outputs import write

    written = write(store, loop.plan, save=task.options.save, drawn_by=drawn_by, class_names=task.class_names)
    _keep_record(task, directory)
    store.end()
    task.stop.finish()
    print("\n".join(printable(str(path)) for path in written))


def _with_what_it_knows(task: _Task, selection: "Selection") -> _Task:
    """With the classes by their numbers, and the threshold that the model came with."""
    names = selection.checkpoint.metadata.classes
    options = with_own_threshold(task.options, selection, task.invocation.changes)
    options = replace(options, classes=class_numbers(options.classes, names))
    return task._replace(options=options, checkpoint=selection.checkpoint, class_names=names)


def _keep_record(task: _Task, directory: Path) -> None:
    """Write `.hydra/` where the directory is Hydra's own, unless there is one: it may be that of a training."""
    call = task.invocation
    if call.record is not None and call.run_directory is not None and not (directory / run_dir.HYDRA).exists():
        run_dir.keep_hydra(directory, call.record(directory, None))


def _prepared(task: _Task) -> "tuple[_Task, Pretrained, SamplingLoop]":
    """The model and what draws with it, of options that say what was left to the checkpoint and to be chosen for it."""
    world, changes = task.world, task.invocation.changes
    compute = agreed(world, lambda: choose(task.options, world))
    selection = select(task.options, task.options.ckpt, world)
    task = agreed(world, lambda: _with_what_it_knows(task, selection))

    def prepare() -> "tuple[Pretrained, SamplingLoop]":
        pretrained = rebuild(selection, task.options, compute, world)
        return pretrained, build_loop(pretrained, compute, until_chosen(task.options), changes)

    pretrained, loop = agreed(world, prepare)
    if not is_optimized(task.options.sampler):
        return task, pretrained, loop
    with _nothing_drawn(task, pretrained):
        options = with_chosen(task.options, pretrained, loop, selection, world)
    return (
        task._replace(options=options),
        pretrained,
        agreed(world, lambda: build_loop(pretrained, compute, options, changes)),
    )


def _begin(task: _Task, decisive: dict, batches: dict, held: ExitStack) -> tuple[Path, list[Path]]:
    """The output directory, locked, in which a run has been begun or may be resumed; its pictures if it is done."""
    from ddpm_cli.sampling import image_store
    from ddpm_cli.sampling.outputs import BESIDE

    with naming("out" if task.invocation.run_directory is None else "hydra.run.dir"):
        directory = _output_directory(task, held)
        held.enter_context(image_store.locked(directory))
        copies = 2 if task.options.save == "npz" else 1
        wanted = (GRID_FILE, *BESIDE[task.options.save])
        return directory, image_store.begin(directory, decisive, copies=copies, wanted=wanted, **batches)


def _output_directory(task: _Task, held: ExitStack) -> Path:
    options = task.options
    if options.out is None and task.invocation.sweep_directory is not None:
        return task.invocation.sweep_directory
    wanted = _wanted(task)
    if wanted is None:
        path = Path(options.ckpt).absolute()
        runs = [parent for parent in (path, *path.parents) if (parent / run_dir.CHECKPOINTS).is_dir()]
        if runs and (runs[0] / run_dir.SAMPLES).is_symlink():
            raise ConfigError(f"out: {runs[0] / run_dir.SAMPLES} is a link; choose a directory with out=DIR")
        place = runs[0] if runs else Path("outputs")
        above = durable.absent(place / run_dir.SAMPLES)
        directory = run_dir.create(place, run_dir.SAMPLES)
        held.callback(durable.remove_empty, [directory, *above])
        return directory
    directory = wanted
    made = durable.absent(directory)
    if not directory.is_dir():
        durable.make_directory(directory)
    held.callback(durable.remove_empty, made)
    with TemporaryFile(dir=directory):  # whether it can be written to is better known before than after sampling
        return directory


def _wanted(task: _Task) -> Path | None:
    """The directory that the command line names for the pictures."""
    out, in_hydra = task.options.out, task.invocation.run_directory
    if out is None:
        return in_hydra
    if in_hydra is not None:
        raise ConfigError("hydra.run.dir: out= names the directory already; leave out either")
    return Path(out)


def _announce(task: _Task, pretrained: "Pretrained", loop: "SamplingLoop", store: "ImageStore") -> None:
    options, world = task.options, task.world
    length = "" if options.ema_length is None else f" of length {options.ema_length:g}"
    together = f", {world.size} processes" if world.size > 1 else ""
    compiled = ", compiled" if loop.compiled else ""
    on = f"{loop.compute}{together}{compiled}"
    print(f"{printable(options.ckpt)}: step {pretrained.step:,}, {options.weights} weights{length}, on {on}")
    if loop.plan.labels is not None and options.classes is None:
        print("classes: the network needs a label for each image; the seed draws them, each equally often")
    elif loop.plan.labels is not None:
        print(f"classes: {classes_text(list(dict.fromkeys(loop.plan.labels)), task.class_names)}")
    if loop.guide is not None:
        print(f"guided away from {printable(loop.guide.said)}")
    if store.finished > 0:
        print(f"resumes: {_there(store)}")


def _there(store: "ImageStore") -> str:
    return f"{store.finished:,} of {store.shape[0]:,} images are there"


def _ending_well(task: _Task, store: "ImageStore", shape: tuple[int, int, int]) -> AbstractContextManager[None]:
    def keep() -> str:
        with suppress(OSError):
            store.flush()
        return _how_to_resume(task, store)

    return _ending(task, shape, keep)


def _nothing_drawn(task: _Task, pretrained: "Pretrained") -> AbstractContextManager[None]:
    return _ending(task, pretrained.image_shape, lambda: "Nothing had been drawn yet")


def _ending(task: _Task, shape: tuple[int, int, int], keep: Callable[[], str]) -> AbstractContextManager[None]:
    working_on = f"{task.options.batch_size} images of {size_text(shape)} at a time"
    cure = "a smaller batch_size takes less"
    return ending_well("sample", task.world, task.stop, keep=keep, working_on=working_on, cure=cure)


def _how_to_resume(task: _Task, store: "ImageStore") -> str:
    if store.finished == 0:
        return "Nothing had been drawn yet"
    if task.invocation.sweep_directory is not None:
        return f"{_there(store)}, in {store.directory}"
    out = None if task.options.out is not None else store.directory
    return f"{_there(store)}. To resume: {same_command('sample', task.world, out=out)}"
