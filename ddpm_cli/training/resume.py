"""A run as its newest whole checkpoint left it: read, reconciled with the command line, checked, restored.

Heavy modules are imported inside the functions: a mistyped key is answered without torch.
"""

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddpm_cli.config.compare import differences, merge
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.schema import check, targets_in
from ddpm_cli.config.train_options import OPTIONS, TrainOptions
from ddpm_cli.training.build import build_training

if TYPE_CHECKING:
    from ddpm_cli.checkpoint import Metadata
    from ddpm_cli.checkpoint.training_state import TrainingState
    from ddpm_cli.data.image_set import ImageSet
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.training.build import Training


AUTO = "auto"  # resume=auto: resume the newest run of this name, if there is one


class Saved(NamedTuple):
    """The newest whole checkpoint of a run, read and checked."""

    path: Path
    metadata: "Metadata"
    state: "TrainingState"
    damaged: dict[Path, str]  # newer ones that are not whole: what is wrong with each


def names_a_run(invocation: Invocation) -> bool:
    """Whether the command line says which run to resume: then its configuration counts, with a few changes."""
    return invocation.resume is not None and invocation.resume != AUTO


def resume(directory: Path, config: dict, invocation: Invocation, world: "World") -> "tuple[Training, list[str]]":
    """The run in `directory` where its newest whole checkpoint left it, and what there is to say about newer ones.

    Raises:
        ConfigError: if there is no such checkpoint, or not with this configuration, or not on this data.
    """
    from ddpm_cli.training import train_state

    saved = read_checkpoint(directory, _trusted(config, invocation), world)
    training = build_training(reconcile(saved.metadata.config, config, directory, invocation), world)
    warnings = check_same_data(training.trainer.batches.images, saved.metadata, directory)
    with naming("resume"):
        train_state.restore(training.trainer, saved.state.training, saved.state.ema)
        step = training.trainer.step
        if step != saved.metadata.step:
            raise ConfigError(
                f"resume: {saved.path}: its training state is of step {step}, it says {saved.metadata.step}"
            )
    world.barrier()  # until every rank has read what rank 0 is about to rename
    return training, [*warnings, *set_damaged_aside(saved)] if world.main else []


def read_checkpoint(directory: Path, trust: Iterable[str], world: "World") -> Saved:
    """The newest whole checkpoint of a run, of which everything has been checked that can be without its data.

    Args:
        trust: the full names of classes beside ours that it may ask for.

    Raises:
        ConfigError: if there is none, or it asks for what it may not, or its parts do not belong together.
    """
    from ddpm_cli import checkpoint
    from ddpm_cli.checkpoint.training_state import load_state

    with naming("resume"):
        newest, damaged = world.on_main(lambda: checkpoint.newest_whole(directory))  # one hashes the files for all
        return Saved(newest.path, newest.metadata, load_state(newest, trust=trust), damaged)


def reconcile(saved: dict, config: dict, directory: Path, invocation: Invocation) -> TrainOptions:
    """The options to resume with: the `saved` configuration with the few changes that may be made to it.

    Args:
        config: the whole configuration of the command line, which counts unless that names the run. Where it leaves
            `trainer.accumulate` to be found, the run keeps the number that was found when it began.

    Raises:
        ConfigError: if it would be another run; says how it would differ.
    """
    if names_a_run(invocation):
        merged = merge(saved, invocation.changes)
        check(merged, OPTIONS)
        return TrainOptions(**merged)
    changed = differences(saved, config)
    if changed:
        key, other = "name", "choose another name, or resume=null to begin another run under this one"
        if invocation.sweep_directory is not None:
            key, other = "hydra.sweep.dir", "choose another directory"
        listed = "\n  ".join([*changed, other])
        raise ConfigError(f"{key}: {directory} was trained with another configuration:\n  {listed}")
    trainer = config["trainer"]
    if trainer.get("accumulate") == "auto":
        trainer = trainer | {"accumulate": saved["trainer"]["accumulate"]}
    return TrainOptions(**config | {"trainer": trainer})


def check_same_data(images: "ImageSet", metadata: "Metadata", directory: Path) -> list[str]:
    """Make sure that these are the images that the run in `directory` was trained on.

    Returns:
        What is to be said where that cannot be told.

    Raises:
        ConfigError: if they are others; says what differs.
    """
    differs = _data_difference(images, metadata)
    if differs is not None:
        raise ConfigError(f"data: {differs}. fork={directory} begins a new run from it on this data")
    if images.fingerprint is not None and not metadata.data:
        return ["data     the checkpoint is of an earlier version: whether these are the same images is not known"]
    return []


def _data_difference(images: "ImageSet", metadata: "Metadata") -> str | None:
    """In what these images differ from those that a checkpoint was trained on; None: in nothing that is known."""
    if len(images) != metadata.images:
        return f"the run was trained on {metadata.images} images, there are now {len(images)}"
    classes = tuple(images.class_names)
    if classes != metadata.classes:
        then, now = next((a, b) for a, b in zip_longest(metadata.classes, classes) if a != b)
        return f"the run was trained on other classes: {then!r} then, {now!r} now"
    then, now = metadata.data, images.fingerprint
    if not then or now is None:
        return None
    if then.get("images") != now["images"]:
        if then.get("unordered") == now["unordered"]:
            return f"{images.name}: these are the images that the run was trained on, but in another order"
        pillow = f"Pillow {metadata.versions['pillow']}" if "pillow" in metadata.versions else "another Pillow"
        return (
            f"{images.name}: these {len(images)} images are not those that the run was trained on: at least one has "
            f"another content (or was decoded otherwise, then by {pillow})"
        )
    if then.get("labels") != now["labels"]:
        return f"{images.name}: the images have other labels than when the run was trained on them"
    return None


def set_damaged_aside(saved: Saved) -> list[str]:
    """Rename the damaged checkpoints, so that their steps can be saved again; what is to be said of each."""
    from ddpm_cli.checkpoint import set_aside

    warnings = []
    with naming("resume"):
        for path, problem in saved.damaged.items():
            warnings.append(f"damaged  {problem}; set aside as {set_aside(path).name}")
    if warnings:
        warnings.append(f"damaged  resumes from the newest whole checkpoint, {saved.path}")
    return warnings


def _trusted(config: dict, invocation: Invocation) -> list[str]:
    """The classes that the command line itself names: in `trust`, or, where it is the whole configuration, anywhere."""
    trust = invocation.changes.get("trust", [])
    if not isinstance(trust, list):
        raise ConfigError(f"trust: expected a list of full names, as trust=[package.Class], got {trust!r}")
    return [str(name) for name in trust] + list(targets_in(config))
