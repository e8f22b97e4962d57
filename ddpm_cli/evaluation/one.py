"""One evaluation, of a checkpoint or of images that are there: from nothing to its record, resumed if it was killed."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ddpm_cli.checkpoint.pretrained import Selection
from ddpm_cli.config.compare import all_differences
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.eval_options import OF_MODEL
from ddpm_cli.config.sampler_spacing import is_optimized
from ddpm_cli.distributed.process_group import World
from ddpm_cli.evaluation import record, scalars
from ddpm_cli.evaluation.feature_store import FeatureStore, Layout, begun, files
from ddpm_cli.evaluation.figures import Clock, of_images, reference_side
from ddpm_cli.evaluation.metrics import Measured
from ddpm_cli.evaluation.of_model import images_text, of_model
from ddpm_cli.evaluation.record import Record, digest
from ddpm_cli.evaluation.samples import Drawn, Samples, drawn, missing_of
from ddpm_cli.evaluation.setting import Setting
from ddpm_cli.evaluation.subject import Looked, Subject, keeps_pixels, looked_at, subject_of
from ddpm_cli.evaluation.task import Task
from ddpm_cli.io import durable
from ddpm_cli.io.text import printable, size_text
from ddpm_cli.sampling.ending import ending_well, same_command
from ddpm_cli.sampling.model import agreed
from ddpm_cli.sampling.optimized import until_chosen, with_chosen


def evaluate(task: Task, setting: Setting, selection: Selection | None, directory: Path) -> tuple[Path, Record, bool]:
    """Evaluate, or find that this very evaluation is there already.

    Args:
        selection: the weights; None: of images alone.
        directory: where its record is, or will be.

    Returns:
        The record's file, the record (of rank 0), and whether it was there before.

    Raises:
        ConfigError: if it cannot be made.
        RunError, Stopped: if it had to end early; what is there is kept.
    """
    world = task.world
    planned = replace(setting, options=until_chosen(setting.options))
    looked = agreed(world, lambda: looked_at(planned, selection, world))
    if is_optimized(setting.options.sampler) and isinstance(looked.samples, Drawn):
        setting, looked = _with_timesteps(task, setting, looked)
    setting.prepare_features()
    subject = agreed(world, lambda: subject_of(setting, looked, directory))
    differing = world.first("; ".join(all_differences(world.broadcast(subject.decisive), subject.decisive)) or None)
    if differing is not None:
        raise ConfigError(f"not every process would evaluate the same as the first: {differing}")
    with naming("out"):
        before = world.on_main(lambda: record.read(subject.path))
    if before is not None:
        _save_reference(setting, world)
        return subject.path, before, True
    with ExitStack() as held:
        return subject.path, _make(task, setting, subject, held), False


def _with_timesteps(task: Task, setting: Setting, looked: Looked) -> tuple[Setting, Looked]:
    """The same with timesteps that have been chosen for the model, of which no more than the number was known."""
    samples, selection, world = looked.samples, looked.selection, task.world
    assert isinstance(samples, Drawn)
    assert selection is not None
    with _ending(task, setting, samples.image_shape, lambda: "Nothing had been drawn yet"):
        options = with_chosen(setting.options, samples.pretrained, samples.loop, selection, world)
    setting = replace(setting, options=options)
    classes = selection.checkpoint.metadata.classes
    return setting, looked._replace(samples=agreed(world, lambda: drawn(setting, samples.pretrained, classes)))


def _save_reference(setting: Setting, world: World) -> None:
    """Write the reference's statistics where `reference.save` asks for them, though no figure is made of them now."""
    if setting.reference is None or setting.reference.save is None:
        return

    def save() -> bool:
        with naming("reference"):
            reference_side(setting)
        return True

    world.on_main(save)


def _make(task: Task, setting: Setting, subject: Subject, held: ExitStack) -> Record:
    """The figures, and their record on the disk."""
    world, clock = task.world, Clock()
    store, rate = None, None
    if subject.samples is not None:
        assert subject.made is not None
        store = _store(task, setting, subject, held)
    with _ending_well(task, setting, subject, store):
        task.stop.begin()  # while the record of another checkpoint was written, signals were only noted
        _announce(task, setting, subject, store)
        if store is not None:
            assert subject.samples is not None
            rate = _draw(task, setting, subject.samples, store, clock)
        found: list[Measured] = []
        remarks: list[str] = []
        if store is not None and world.main:
            assert subject.samples is not None
            found, remarks = of_images(setting, subject.samples, store, clock)
        if subject.pretrained is not None and any(name in OF_MODEL for name in setting.options.metrics):
            with clock.spent_on("likelihood"):
                asked = of_model(setting, subject.pretrained, world)
            found += asked
            remarks += [f"{one.metric} is of {images_text(one)}" for one in asked]
        done = None
        if world.main:
            task.stop.defer("writing the record")
            done = _put_on_record(setting, subject, store, (found, remarks), clock, rate)
        return world.broadcast(done)


def _store(task: Task, setting: Setting, subject: Subject, held: ExitStack) -> FeatureStore:
    """Where the features are collected, begun or found."""
    samples, options = subject.samples, setting.options
    assert samples is not None
    assert subject.made is not None
    assert setting.extractor is not None
    channels, height, width = samples.image_shape
    layout = Layout(
        batch_size=options.batch_size,
        shape=(setting.n, height, width, channels),
        dimensions=setting.extractor.dimensions,
        keeps_pixels=keeps_pixels(setting),
    )
    folder = subject.path.parent / f".{digest(subject.made)}"

    def begin() -> bool:
        with naming("out"):
            held.enter_context(begun(folder, subject.made or {}, layout, copies=int(options.keep)))
        return True

    agreed(task.world, lambda: begin() if task.world.main else True)
    if not task.world.main:
        durable.wait_for(*files(folder, layout))
    with naming("out"):
        return held.enter_context(FeatureStore(folder, layout))


def _draw(task: Task, setting: Setting, samples: Samples, store: FeatureStore, clock: Clock) -> float | None:
    """Make what is missing of the features, in all processes; returns images per second, None if there was nothing."""
    world, extractor = task.world, setting.extractor
    assert extractor is not None
    all_missing = world.broadcast(store.missing)
    missing, begun_at = missing_of(world, all_missing), time.perf_counter()
    of_features = 0.0

    def take(indices: range, images: Tensor) -> None:
        nonlocal of_features
        since = time.perf_counter()
        store.add(indices, images, extractor(images))
        of_features += time.perf_counter() - since

    samples.batches(missing, take, show_progress=world.main)
    since = time.perf_counter()
    store.flush()
    of_features += time.perf_counter() - since
    world.barrier()
    seconds = time.perf_counter() - begun_at
    if not missing:
        return None
    what = "reading" if setting.options.samples is not None else "sampling"
    clock.seconds |= {what: seconds - of_features, "features": of_features}
    return sum(map(len, all_missing)) / seconds


def _put_on_record(
    setting: Setting,
    subject: Subject,
    store: FeatureStore | None,
    found: tuple[Sequence[Measured], Sequence[str]],
    clock: Clock,
    rate: float | None,
) -> Record:
    from ddpm_cli.evaluation.described import describe
    from ddpm_cli.evaluation.pictures import write_files

    measured, remarks = found
    written = write_files(setting, subject.path, measured, store)
    done = describe(setting, subject, measured, remarks=remarks, seconds=clock.seconds, rate=rate, files=tuple(written))
    step = None if subject.selection is None or subject.pretrained is None else subject.pretrained.step
    if step is not None:
        scalars.add(subject.path.parent / "tensorboard", done.figures, step)
    done.write(subject.path)
    if store is not None:
        store.end()
    return done


def _announce(task: Task, setting: Setting, subject: Subject, store: FeatureStore | None) -> None:
    options, world = task.options, task.world
    if not world.main:
        return
    if subject.pretrained is not None:
        length = "" if options.ema_length is None else f" of length {options.ema_length:g}"
        together = f", {world.size} processes" if world.size > 1 else ""
        name = printable(str(options.ckpt))
        on = f"{setting.compute}{together}"
        print(f"{name}: step {subject.pretrained.step:,}, {options.weights} weights{length}, on {on}")
    if store is not None and store.finished > 0:
        print(f"resumes: {_there(store)}")


def _there(store: FeatureStore) -> str:
    return f"{store.finished:,} of {store.n:,} images are there"


def _ending_well(
    task: Task, setting: Setting, subject: Subject, store: FeatureStore | None
) -> AbstractContextManager[None]:
    def keep() -> str:
        if store is None:
            return "Nothing is on record yet"
        with suppress(OSError):
            store.flush()
        if store.finished == 0:
            if task.options.checkpoints is None:
                return "Nothing had been drawn yet"
            return (
                "Nothing of this checkpoint had been drawn yet. "
                f"To continue: {same_command('eval', task.world, out=None)}"
            )
        if task.invocation.sweep_directory is not None:
            return f"{_there(store)}, in {subject.path.parent}"
        out = subject.path.parent if task.options.out is None and task.invocation.run_directory is not None else None
        return f"{_there(store)}. To resume: {same_command('eval', task.world, out=out)}"

    return _ending(task, setting, None if subject.samples is None else subject.samples.image_shape, keep)


def _ending(
    task: Task, setting: Setting, shape: tuple[int, int, int] | None, keep: Callable[[], str]
) -> AbstractContextManager[None]:
    of_shape = "" if shape is None else f" of {size_text(shape)}"
    working_on, cure = f"{setting.options.batch_size} images{of_shape} at a time", "use a smaller batch_size"
    return ending_well("eval", task.world, task.stop, keep=keep, working_on=working_on, cure=cure)
