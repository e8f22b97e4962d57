"""The origin of an exported model: its checkpoint's description, and the run that contains it, if any."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ddpm_cli.checkpoint import Metadata
from ddpm_cli.checkpoint.metadata import IMPORTED
from ddpm_cli.checkpoint.pretrained import Selection
from ddpm_cli.comparison.again import command_again
from ddpm_cli.comparison.evaluations import Evaluation
from ddpm_cli.comparison.run import Run, read_run
from ddpm_cli.comparison.series import HELDOUT, LOSS
from ddpm_cli.config.export_options import ExportOptions
from ddpm_cli.config.shipped import options_by_target
from ddpm_cli.io.command_line import command
from ddpm_cli.io.run_dir import CHECKPOINTS


class Figure(NamedTuple):
    """A line of the model card's table of figures."""

    name: str
    value: float
    standard_error: float | None
    how: str


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of a model. Texts may be anybody's.

    Args:
        step: optimizer steps.
        imported: whether another program trained it.
        weights: which of its weights, in words; of an imported model, what they were read from.
        data: the images that it was trained on, in words.
        classes: names of its labels, from 0 on; none: not known.
        versions: of what trained it, or imported it.
        trained_by: the command that trains it again; None: that is not known.
        exported_by: the command that has written it.
        figures: the losses of its training, and evaluations of just these weights.
    """

    step: int
    imported: bool
    weights: str
    data: str
    classes: tuple[str, ...]
    versions: dict[str, str]
    trained_by: str | None
    exported_by: str
    figures: tuple[Figure, ...]


def origin_of(selection: Selection, options: ExportOptions) -> Origin:
    """What is known about the selected weights."""
    metadata, run = selection.checkpoint.metadata, _run(selection.checkpoint.path)
    return Origin(
        step=metadata.step,
        imported=metadata.imported,
        weights=_weights(metadata, options),
        data=_data(metadata.config, metadata.images),
        classes=metadata.classes,
        versions=metadata.versions,
        # Without the directory that it was begun in, which is nobody else's.
        trained_by=None if run is None or run.nodes is None else command_again(replace(run, identity=None)),
        exported_by=command("ddpm-export", *sys.argv[1:]),
        figures=() if run is None else (*_losses(run, metadata.step), *_evaluations(run, metadata.step, options)),
    )


def _run(checkpoint: Path) -> Run | None:
    """The run that contains a checkpoint; None if it is not in a run."""
    directory = checkpoint.absolute().parent
    return read_run(directory.parent) if directory.name == CHECKPOINTS else None


def _weights(metadata: Metadata, options: ExportOptions) -> str:
    config = metadata.config
    if metadata.imported:
        return str(config[IMPORTED])
    if options.ema_length is not None:
        return f"the post-hoc EMA of relative length {options.ema_length:g}"
    if options.weights == "model":
        return "the optimized weights themselves, not averaged"
    decays = config["ema"].get("decays") if isinstance(config.get("ema"), dict) else None
    if options.weights == "ema":
        return f"the EMA of decay {decays[0]}" if isinstance(decays, list) and decays else "the EMA"
    return f"the EMA of decay {options.weights.removeprefix('ema_')}"


def _data(config: dict, images: int) -> str:
    node = config.get("data")
    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(target, str):
        return "not known"
    names = options_by_target("data").get(target, [])
    count = f", {images:,} images" if images else ""
    return f"{names[0] if len(names) == 1 else target.rpartition('.')[2]}{count}"


def _losses(run: Run, step: int) -> Iterator[Figure]:
    """The last value of each figure that was measured up to a step."""
    for name, called in ((LOSS, "training loss"), (HELDOUT, "held-out loss")):
        points = [point for point in run.series.get(name, []) if point[0] <= step]
        if points:
            yield Figure(called, points[-1][1], None, f"`{name}` at step {points[-1][0]:,}")


def _evaluations(run: Run, step: int, options: ExportOptions) -> Iterator[Figure]:
    for made in run.evaluations:
        of_these = (made.step, made.weights, made.ema_length) == (step, options.weights, options.ema_length)
        if of_these and made.of_class is None:
            yield Figure(made.name, made.value, made.standard_error, _how(made))


def _how(made: Evaluation) -> str:
    calls = "" if made.network_calls is None else f"{made.network_calls:,} network calls"
    n = "" if made.n is None else f"n = {made.n:,}"
    return ", ".join(part for part in (made.drawn_by, calls, n) if part)
