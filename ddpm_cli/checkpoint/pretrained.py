"""Rebuilds a trained model from its checkpoint, for the commands and for notebooks."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import DESCRIPTION_FILE, EMA_FILE, TRAINING_FILE, CheckpointError, Snapshot, Verified
from ddpm_cli.checkpoint.files import Shapes
from ddpm_cli.checkpoint.read import shapes_of_ema
from ddpm_cli.checkpoint.tensor_names import MODEL, below
from ddpm_cli.checkpoint.validate import MisfitError, check_ddpm, check_node, check_types, check_weights
from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.errors import ConfigError, naming, shown
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.ema.posthoc import check_length, check_lengths, ema_prefix, posthoc_prefix
from ddpm_cli.ema.reconstruct import reconstruct, terms

# Snapshots from which an average is made, each with the coefficients of its lengths.
Average = tuple[tuple[Snapshot, tuple[float, ...]], ...]


class Pretrained(NamedTuple):
    """A trained model, as `load` returns it."""

    ddpm: DDPM  # on the CPU, in eval mode
    image_shape: tuple[int, int, int]  # (C, H, W) of its images
    step: int  # it was trained for
    config: dict  # it was trained with

    @property
    def label_dropout(self) -> float | None:
        """The share of images that the network was trained on without their label; None: it takes no labels."""
        if self.ddpm.needs_labels:
            return 0.0
        trainer = self.config.get("trainer")
        return trainer.get("label_dropout") if isinstance(trainer, dict) else None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The selected weights, and the verified files that hold them. It can be pickled.

    Args:
        checkpoint: where they are.
        prefix: of their names in the training state; None: they are in the EMA file.
        average: the snapshots from which the parameters are made instead.
    """

    checkpoint: Verified
    prefix: str | None = None
    average: Average = ()

    @property
    def files(self) -> list[Path]:
        """All files that `rebuild` may read."""
        found = [self.checkpoint.file(name) for name in self.checkpoint.files]
        return found + [snapshot.file for snapshot, _ in self.average]


def load(
    path: str | Path,
    *,
    weights: str = "ema",
    ema_length: float | None = None,
    trust: Iterable[str] = (),
    sha256: str | None = None,
) -> Pretrained:
    """Rebuild a model from a run directory (its newest checkpoint), a checkpoint directory, or an EMA file.

    Args:
        path: of the run directory, checkpoint directory or EMA file.
        weights: "ema"; "ema_0.999" for the average of that decay; "model" for the optimized weights themselves.
        ema_length: relative length of an average to reconstruct from the run's snapshots, instead of one that it has.
            From more than 256 snapshots of two lengths (512 averages in all) this many are taken, evenly spaced, with
            the newest.
        trust: full names of classes of your own that the checkpoint may build beside ours.
        sha256: of the checkpoint's manifest.json (of a lone EMA file: of that file); a checkpoint with another one is
            refused.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged, not ours, or has another SHA-256.
        ConfigError: if it names a class that is not on the list, or holds an impossible value; if it has no such
            weights, or no snapshots that make an average of that length.
    """
    trust = frozenset(trust)
    return rebuild(select(path, weights=weights, ema_length=ema_length, trust=trust, sha256=sha256), trust=trust)


def rebuild(selection: Selection, *, trust: Iterable[str] = ()) -> Pretrained:
    """Build the model with the weights that `select` has found; nothing is verified again.

    Raises:
        CheckpointError: if the weights do not fit the network that the checkpoint describes.
        ConfigError: if the checkpoint names a class that is not on the list, or holds an impossible value.
    """
    found, trust = selection.checkpoint, frozenset(trust)
    metadata = found.metadata
    try:
        network = check_ddpm(metadata.config, metadata.image_shape, trust=trust)
        tensors = _tensors(selection, network)
        check_types(tensors, network)
    except MisfitError as error:
        raise CheckpointError(f"{found.path}: {error}") from error
    ddpm = build_ddpm(metadata.config).eval()
    try:
        ddpm.model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = shown(str(error))
        raise CheckpointError(f"{found.path}: its weights do not fit the network it describes: {reason}") from error
    if network is None:  # our own network has been checked already, without memory
        with naming("model"):
            ddpm.check_images(metadata.image_shape)
    if selection.average:
        _reconstruct(ddpm.model, selection)
    return Pretrained(ddpm, metadata.image_shape, metadata.step, metadata.config)


def _tensors(selection: Selection, network: Shapes | None) -> dict[str, Tensor]:
    prefix = selection.prefix
    if prefix is None:
        return checkpoint.load_ema(selection.checkpoint, check=lambda shapes: check_weights(shapes, network))
    training = checkpoint.load_training(
        selection.checkpoint, check=lambda shapes: check_weights(below(prefix, shapes), network), prefix=prefix
    )
    return below(prefix, training)


# Which weights -------------------------------------------------------------------------------------------------------


def select(
    path: str | Path,
    *,
    weights: str = "ema",
    ema_length: float | None = None,
    trust: Iterable[str] = (),
    sha256: str | None = None,
    key: str = "weights",
) -> Selection:
    """Find the weights that `load` would load, and verify their files, each once. Arguments as for `load`.

    Of several processes, one calls this and sends the result to the others, and all of them `rebuild`.

    Args:
        key: the name of the option for `weights`, for messages.

    Raises:
        CheckpointError, ConfigError: as `load`, except those of `rebuild`.
    """
    found = checkpoint.find(path)
    trust = frozenset(trust)
    if ema_length is not None:
        _check_length(ema_length, found, weights, sha256)
    if weights == "model":
        return Selection(
            checkpoint=checkpoint.verify(found, TRAINING_FILE, DESCRIPTION_FILE, sha256=sha256), prefix=MODEL
        )
    if weights != "ema":
        return _one_of_several(found, weights, trust=trust, sha256=sha256, key=key)
    verified = checkpoint.verify(found, EMA_FILE, sha256=sha256)
    average = () if ema_length is None else _average(verified, ema_length, trust=trust)
    return Selection(checkpoint=verified, average=average)


def own_threshold(selection: Selection, *, trust: Iterable[str] = ()) -> dict | None:
    """The threshold that came with a model, as a configuration node; None if it came without one.

    Raises:
        ConfigError: if it is not on the list, or holds an impossible value.
    """
    node = selection.checkpoint.metadata.config.get("threshold")
    if node is not None:
        check_node("threshold", node, trust=trust)
    return node


def _one_of_several(found: Path, weights: str, *, trust: frozenset[str], sha256: str | None, key: str) -> Selection:
    """The exponential average called `weights`, in the file that the description says."""
    verified = checkpoint.verify(found, DESCRIPTION_FILE if found.is_dir() else EMA_FILE, sha256=sha256)
    config = verified.metadata.config
    check_node("ema", config.get("ema"), trust=trust)
    prefixes = {_called(decay): ema_prefix(decay) for decay in config["ema"].get("decays", [])}
    if weights not in prefixes:
        names = list(prefixes)
        listed = ["ema", *(f"{name} (the same)" for name in names[:1]), *names[1:], "model"]
        raise ConfigError(f"{key}: this checkpoint has {shown(', '.join(listed))}, not {shown(repr(weights))}")
    if weights == next(iter(prefixes)):
        return Selection(checkpoint=verified.also(EMA_FILE))
    return Selection(checkpoint=verified.also(TRAINING_FILE), prefix=prefixes[weights])


def _called(decay: float) -> str:
    """The name of an exponential average on the command line."""
    return f"ema_{float(decay)!r}"


# Averages made afterwards --------------------------------------------------------------------------------------------


def _check_length(length: float, found: Path, weights: str, sha256: str | None) -> None:
    """Raise ConfigError for an impossible request, before anything is read."""
    with naming("ema_length"):
        check_length(length)
    if weights != "ema":
        raise ConfigError(f"ema_length: reconstructs an average, and cannot be combined with weights={weights}")
    if sha256 is not None:
        raise ConfigError("ema_length: cannot be combined with a SHA-256, which does not cover averages/")
    if not found.is_dir():
        raise ConfigError(f"ema_length: {found} is a single average; give the run directory, which has averages/")


def _average(found: Verified, length: float, *, trust: frozenset[str]) -> Average:
    """The verified snapshots that make the average of `length` at the checkpoint's step, with their coefficients."""
    check_node("ema", found.metadata.config.get("ema"), trust=trust)
    lengths = _lengths(found)
    try:
        check_lengths(lengths)
    except ValueError as error:
        raise CheckpointError(f"{found.path}: its configuration has an impossible ema.posthoc: it {error}") from error
    snapshots = checkpoint.snapshots_of(found, lengths, shapes_of_ema(found)) if lengths else []
    if not snapshots:
        raise ConfigError(f"ema_length: {found.path} has no averages to start from; a run with ema=posthoc keeps them")
    step = found.metadata.step
    if snapshots[-1].step != step:
        raise CheckpointError(f"{found.path}: the snapshot of step {step} is missing in its run's averages/")
    with naming("ema_length"):
        parts = terms([snapshot.updates for snapshot in snapshots], lengths, length)
    average = tuple((snapshots[part.snapshot], part.weights) for part in parts)
    for snapshot, _ in average:
        checkpoint.verify_snapshot(snapshot)
    return average


def _lengths(found: Verified) -> list[float]:
    return found.metadata.config["ema"].get("posthoc", [])


def _reconstruct(model: nn.Module, selection: Selection) -> None:
    """Set `model`'s parameters to the average of the selected snapshots."""
    parameters, lengths = dict(model.named_parameters()), _lengths(selection.checkpoint)
    needed = {f"{posthoc_prefix(length)}{name}" for length in lengths for name in parameters}

    def loaded(snapshot: Snapshot) -> dict[str, Tensor]:
        tensors = checkpoint.load_snapshot(snapshot)
        missing = sorted(needed - tensors.keys())
        if missing:
            raise CheckpointError(f"{snapshot.file} does not fit the checkpoint: {shown(missing[0])} is missing")
        return tensors

    reconstruct(parameters, lengths, ((loaded(snapshot), weights) for snapshot, weights in selection.average))
