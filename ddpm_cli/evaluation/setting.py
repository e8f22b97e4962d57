"""From the options of `ddpm-eval` to what is evaluated, and what with: checked before anything is drawn or written.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

import functools
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.eval_options import OF_MODEL, EvalOptions
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.evaluation.record import INCEPTION, WHOLE
from ddpm_cli.io import run_dir
from ddpm_cli.io.text import printable, size_text
from ddpm_cli.sampling.model import agreed, choose, first_on_main, select, with_own_threshold

if TYPE_CHECKING:
    from ddpm_cli.checkpoint.metadata import Metadata
    from ddpm_cli.checkpoint.pretrained import Selection
    from ddpm_cli.data.image_set import ImageSet
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.evaluation.features.extractor import Extractor
    from ddpm_cli.evaluation.image_files import ImageFiles
    from ddpm_cli.evaluation.reference import Reference
    from ddpm_cli.evaluation.run_data import RunImages
    from ddpm_cli.runtime.device import Compute

Data = Callable[[], "RunImages"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the evaluations of one command have in common.

    Args:
        run: the directory of the run, if `ckpt` lies in one.
        checkpoints: that are evaluated, oldest first; none for samples without a model.
        data: reads the images of the run; raises ConfigError where that cannot be.
        has_read_data: whether that was asked for so far.
        given: the samples, where they are there already.
        extractor, reference: None where no metric is of images.
        n: images that are evaluated; 0 where no metric is of images.
        prepare_features: makes the extractor ready, in every process at once; only the first call does anything. It may
            take a minute, so it comes after all that can be refused; it raises ConfigError itself.
    """

    options: EvalOptions
    compute: "Compute"
    run: Path | None
    checkpoints: "Sequence[Selection]"
    data: Data
    has_read_data: Callable[[], bool]
    given: "ImageFiles | None" = None
    extractor: "Extractor | None" = None
    reference: "Reference | None" = None
    n: int = 0
    prepare_features: Callable[[], object] = lambda: None

    @property
    def knows_data(self) -> bool:
        """Whether there is a model, and it says what it was trained on."""
        return bool(self.checkpoints) and not self.checkpoints[-1].checkpoint.metadata.imported


def prepare(options: EvalOptions, changes: Collection[str], world: "World") -> Setting:
    """Find, read and check everything but the networks themselves.

    Args:
        changes: the dotted keys that the command line sets.

    Raises:
        ConfigError: if it cannot be evaluated; names the key.
    """
    options.check_effect(changes)
    compute = agreed(world, lambda: choose(options, world))
    run = None if options.ckpt is None else _run_of(Path(options.ckpt))
    checkpoints = [select(options, path, world) for path in world.on_main(lambda: _paths(options, run))]
    if checkpoints:
        options = with_own_threshold(options, checkpoints[-1], changes)
    data = functools.cache(lambda: _images(options, run, checkpoints))
    setting = Setting(
        options=options,
        compute=compute,
        run=run,
        checkpoints=checkpoints,
        data=data,
        has_read_data=lambda: data.cache_info().currsize > 0,
    )
    if any(name in OF_MODEL for name in options.metrics):
        first_on_main(world, lambda: _check_held_out(setting))
    if not options.looks_at_images:
        return setting
    moved = [key for key in changes if key.partition(".")[0] == "data"]
    return first_on_main(world, lambda: _with_images(setting, world, moved))


def _check_held_out(setting: Setting) -> bool:
    """Raise ConfigError where a metric has no images to ask the model about."""
    if setting.data().held_out is None and "heldout" in setting.options.metrics:
        raise ConfigError(
            "metrics: heldout is measured on held-out images, and the run held out none "
            "(ddpm-train data.holdout=N); bpd is measured on its training images"
        )
    return True


def _with_images(setting: Setting, world: "World", moved: Sequence[str]) -> Setting:
    """With all that metrics of images take; the features are not ready yet.

    Args:
        moved: the keys of the command line that say where the run's images are.
    """
    from ddpm_cli.evaluation.features.choice import default_extractor
    from ddpm_cli.evaluation.metrics import check

    options = setting.options
    given = None if options.samples is None else _given(options)
    if options.features is None:
        has_labels = setting.knows_data and setting.data().trained_on.labels is not None
        extractor = default_extractor(has_labels)
    else:
        extractor = instantiate(options.features, "features")
    reference = _reference(setting)
    n = _count(options, given, reference)
    alone = reference.statistics_alone
    check(options.metrics, has_probabilities=extractor.name == INCEPTION, statistics_alone=alone)
    if given is not None and reference.image_shape is not None and _seen(given.shape) != _seen(reference.image_shape):
        theirs, others = size_text(given.shape), size_text(reference.image_shape)
        raise ConfigError(f"samples: the samples are {theirs}, the reference's images {others}; resize either")
    _check_classes(options, given, reference)

    def prepare_features() -> bool:
        with naming("features"):
            data = (lambda: setting.data().trained_on) if setting.knows_data else None
            extractor.prepare(data, setting.compute.device)
        reference.check(extractor)
        if moved and not setting.has_read_data() and reference.split is None:
            raise ConfigError(f"{moved[0]}: has no effect; these features and reference use no image of the run")
        return True

    ready = functools.cache(lambda: first_on_main(world, prepare_features))
    return replace(setting, given=given, extractor=extractor, reference=reference, n=n, prepare_features=ready)


def _seen(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, H, W) of images as features see them: RGBA over white, in RGB."""
    channels, height, width = shape
    return 3 if channels == 4 else channels, height, width


def _given(options: EvalOptions) -> "ImageFiles":
    from ddpm_cli.evaluation.image_files import open_images

    assert options.samples is not None
    with naming("samples"):
        return open_images(Path(options.samples))


def _reference(setting: Setting) -> "Reference":
    from ddpm_cli.evaluation.run_data import test_images

    def of_test() -> "ImageSet":
        metadata, node = _data_node(setting.options, setting.run, setting.checkpoints)
        return test_images(metadata, node)

    reference = instantiate(setting.options.reference, "reference")
    with naming("reference"):
        return reference.open(setting.data, of_test)


def _check_classes(options: EvalOptions, given: "ImageFiles | None", reference: "Reference") -> None:
    """Raise ConfigError for `per_class` where the classes of either side are not known."""
    if not options.per_class:
        return
    if reference.labels is None:
        raise ConfigError("per_class: the images of the reference have no labels")
    if given is not None and given.labels is None:
        raise ConfigError("per_class: the samples have no labels; an .npz may have them as arr_1")
    if given is not None and given.labels is not None and given.labels.max() >= len(reference.class_names):
        raise ConfigError(f"per_class: the samples have more classes than the reference's {len(reference.class_names)}")


def _count(options: EvalOptions, given: "ImageFiles | None", reference: "Reference") -> int:
    """How many images are evaluated."""
    if given is None:
        return options.n if options.n is not None else max(2, min(reference.n or WHOLE, WHOLE))
    if options.n is not None and options.n > len(given):
        raise ConfigError(f"n: {printable(str(options.samples))} has only {len(given):,} images")
    return len(given) if options.n is None else options.n


def _run_of(ckpt: Path) -> Path | None:
    """The directory of the run that a path lies in."""
    as_given, whole = (
        [path for path in (start, *start.parents) if os.path.isdir(path / run_dir.CHECKPOINTS)]
        for start in (ckpt, ckpt.absolute())
    )
    return next(iter([*as_given, *whole]), None)


def _paths(options: EvalOptions, run: Path | None) -> list[str]:
    """What is evaluated, as `ckpt=` would name it, oldest first."""
    if options.ckpt is None:
        return []
    if options.checkpoints is None:
        return [options.ckpt]
    from ddpm_cli.checkpoint.find import all_of

    ckpt = Path(options.ckpt)
    if run is None or ckpt not in (run, run / run_dir.CHECKPOINTS):
        raise ConfigError(f"checkpoints: needs a run directory; ckpt={printable(options.ckpt)} is not one")
    with naming("ckpt"):
        found = [str(path) for path in all_of(run / run_dir.CHECKPOINTS).values()]
    if not found:
        raise ConfigError(f"ckpt: {printable(options.ckpt)} holds no checkpoint")
    return found


def _images(options: EvalOptions, run: Path | None, checkpoints: "Sequence[Selection]") -> "RunImages":
    """The images of the run."""
    from ddpm_cli.evaluation.run_data import run_images

    metadata, node = _data_node(options, run, checkpoints)
    with naming("data"):
        return run_images(metadata, node)


def _data_node(
    options: EvalOptions, run: Path | None, checkpoints: "Sequence[Selection]"
) -> "tuple[Metadata, dict[str, Any]]":
    """What the newest checkpoint says of itself, and the configuration of its data as it is to be read here."""
    from ddpm_cli.evaluation.run_data import data_node

    if not checkpoints:
        raise ConfigError("reference: data needs a run, ckpt=RUN; or choose reference=images")
    metadata = checkpoints[-1].checkpoint.metadata
    place = instantiate(options.data, "data")
    with naming("data"):
        return metadata, data_node(metadata, run, place, trust=options.trust)
