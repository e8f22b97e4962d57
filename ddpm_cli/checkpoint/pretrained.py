"""A trained model back from its checkpoint, from the shell or in a notebook."""

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

# Snapshots that together make an average, each with the weights of the lengths that it holds.
Average = tuple[tuple[Snapshot, tuple[float, ...]], ...]


class Pretrained(NamedTuple):
    """What `load` returns."""

    ddpm: DDPM  # on the CPU, in eval mode
    image_shape: tuple[int, int, int]  # (C, H, W) of its images
    step: int  # it was trained for
    config: dict  # it was trained with

    @property
    def label_dropout(self) -> float | None:
        """The share of images that the network was trained on without their label; None: it knows no labels."""
        if self.ddpm.needs_labels:
            return 0.0
        trainer = self.config.get("trainer")
        return trainer.get("label_dropout") if isinstance(trainer, dict) else None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Weights that have been asked for, and the verified files that hold them. It pickles.

    Args:
        checkpoint: where they are.
        prefix: of their names in the training state; None: they are the EMA file's.
        average: what the parameters are made of instead.
    """

    checkpoint: Verified
    prefix: str | None = None
    average: Average = ()

    @property
    def files(self) -> list[Path]:
        """All that `rebuild` may read."""
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
        path: which.
        weights: "ema"; "ema_0.999" for the average of that decay; "model" for the weights that were optimized.
        ema_length: relative length of the average to make of a run's snapshots, instead of the one it has. Of more than
            256 snapshots of two lengths (512 averages in all) it takes so many evenly, the newest among them.
        trust: classes of your own, by full name, that the checkpoint may ask for beside ours.
        sha256: of the checkpoint's manifest.json (of a lone EMA file: of that file); any other is refused.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged, not ours, or not the one of that SHA-256.
        ConfigError: if it asks for something that is not on the list, or holds an impossible value; if it has no such
            weights, or no snapshots that make an average of that length.
    """
    trust = frozenset(trust)
    return rebuild(select(path, weights=weights, ema_length=ema_length, trust=trust, sha256=sha256), trust=trust)


def rebuild(selection: Selection, *, trust: Iterable[str] = ()) -> Pretrained:
    """The model of weights that `select` has found; nothing is verified again.

    Raises:
        CheckpointError: if they do not fit the network that the checkpoint describes.
        ConfigError: if it asks for something that is not on the list, or holds an impossible value.
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
    if network is None:  # ours has been asked already, without memory
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
    """Find the weights that `load` is asked for and verify the files that hold them, each once. Arguments as of `load`.

    Of several processes one does so, tells the others what it has found, and all of them `rebuild`.

    Args:
        key: what the option for `weights` is called, for messages.

    Raises:
        CheckpointError, ConfigError: as `load`, but for what `rebuild` raises.
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
    """How x_0 is kept in bounds for a model that has come with that, as a configuration has it; None for any other.

    Raises:
        ConfigError: if it is not on the list, or holds an impossible value.
    """
    node = selection.checkpoint.metadata.config.get("threshold")
    if node is not None:
        check_node("threshold", node, trust=trust)
    return node


def _one_of_several(found: Path, weights: str, *, trust: frozenset[str], sha256: str | None, key: str) -> Selection:
    """The exponential average called `weights`, as the description says where it is."""
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
    """What an exponential average is called on the command line."""
    return f"ema_{float(decay)!r}"


# Averages made afterwards --------------------------------------------------------------------------------------------


def _check_length(length: float, found: Path, weights: str, sha256: str | None) -> None:
    """Refuse what cannot be before anything is read."""
    with naming("ema_length"):
        check_length(length)
    if weights != "ema":
        raise ConfigError(f"ema_length: reconstructs an average, and cannot be combined with weights={weights}")
    if sha256 is not None:
        raise ConfigError("ema_length: cannot be combined with a SHA-256, which does not cover averages/")
    if not found.is_dir():
        raise ConfigError(f"ema_length: {found} is a single average; give the run directory, which has averages/")


def _average(found: Verified, length: float, *, trust: frozenset[str]) -> Average:
    """The snapshots that make the average of `length` at the checkpoint's step, verified, and how each counts."""
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
    """Give `model` the average of the selected snapshots."""
    parameters, lengths = dict(model.named_parameters()), _lengths(selection.checkpoint)
    needed = {f"{posthoc_prefix(length)}{name}" for length in lengths for name in parameters}

    def loaded(snapshot: Snapshot) -> dict[str, Tensor]:
        tensors = checkpoint.load_snapshot(snapshot)
        missing = sorted(needed - tensors.keys())
        if missing:
            raise CheckpointError(f"{snapshot.file} does not fit the checkpoint: {shown(missing[0])} is missing")
        return tensors

    reconstruct(parameters, lengths, ((loaded(snapshot), weights) for snapshot, weights in selection.average))
