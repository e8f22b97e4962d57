"""A trained model back from its checkpoint, from the shell or in a notebook."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import CheckpointError, Metadata, Snapshot
from ddpm_cli.checkpoint.validate import MisfitError, check_ddpm, check_node
from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.ema import posthoc as averages

_OWN_WEIGHTS = "model."  # what the names of the network's own weights begin with in the training state


class Pretrained(NamedTuple):
    """What `load` returns."""

    ddpm: DDPM  # on the CPU, in eval mode
    image_shape: tuple[int, int, int]  # (C, H, W) of its images
    step: int  # it was trained for
    config: dict  # it was trained with


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
        ema_length: relative width sigma_rel of the average to make of a run's snapshots, instead of the one it has. Of
            more than 256 snapshots of two widths (512 averages in all) it takes so many evenly, the newest among them.
        trust: classes of your own, by full name, that the checkpoint may ask for beside ours.
        sha256: of the checkpoint's manifest.json (of a lone EMA file: of that file); any other is refused.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged, not ours, or not the one of that SHA-256.
        ConfigError: if it asks for something that is not on the list, or holds an impossible value; if it has no such
            weights, or no snapshots that make an average of that length.
    """
    found = checkpoint.find(path)
    if ema_length is not None:
        _check_length(ema_length, found, weights, sha256)
    if sha256 is not None:
        _check_pinned(found, sha256)
    trust = frozenset(trust)
    prefix = {"ema": "", "model": _OWN_WEIGHTS}.get(weights, f"ema.{weights.removeprefix('ema_')}.")

    def check(description: Metadata, shapes: dict[str, tuple[int, ...]]) -> None:
        if weights not in ("ema", "model"):
            _check_kept(weights, description.config, trust)
        own = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        try:
            check_ddpm(description.config, own, description.image_shape, trust=trust)
        except MisfitError as error:
            raise CheckpointError(f"{found}: {error}") from error

    if weights == "model":
        tensors, description = checkpoint.load_training(found, check=check, prefix=prefix)
    else:
        tensors, description = checkpoint.load_ema(found, check=check)
        if weights != "ema" and weights != _decays(description.config)[0]:
            tensors, description = checkpoint.load_training(found, check=check, prefix=prefix)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    ddpm = build_ddpm(description.config).eval()
    try:
        ddpm.model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{found}: its weights do not fit the network it describes: {error}") from error
    if description.config["model"]["_target_"] in trust:  # ours has been asked already, without memory
        with naming("model"):
            ddpm.check_images(description.image_shape)
    if ema_length is not None:
        check_node("ema", description.config.get("ema"), trust=trust)
        _synthesise(ddpm.model, found, description, ema_length)
    return Pretrained(ddpm, description.image_shape, description.step, description.config)


def _check_pinned(found: Path, sha256: str) -> None:
    file = checkpoint.pinned_file(found)
    actual = checkpoint.fingerprint(file)
    if actual != sha256.lower():
        raise CheckpointError(f"{file} is not the one asked for: its SHA-256 is {actual}")


def _check_kept(weights: str, config: dict, trust: frozenset[str]) -> None:
    """Raise ConfigError unless `weights` is the name of an average that a run of this configuration keeps."""
    check_node("ema", config.get("ema"), trust=trust)
    kept = _decays(config)
    if weights not in kept:
        listed = ", ".join(["ema", *(f"{name} (the same)" for name in kept[:1]), *kept[1:], "model"])
        raise ConfigError(f"weights: this checkpoint has {listed}, not {weights!r}")


def _decays(config: dict) -> list[str]:
    """The names of a run's exponential averages by their decays; the first is also called ema."""
    return [f"ema_{averages.ema_prefix(decay)[len('ema.') : -1]}" for decay in config["ema"].get("decays", [])]


# Averages made afterwards --------------------------------------------------------------------------------------------


def _check_length(sigma_rel: float, found: Path, weights: str, sha256: str | None) -> None:
    """Refuse what cannot be before anything is read."""
    with naming("ema_length"):
        averages.check_width(sigma_rel)
    if weights != "ema":
        raise ConfigError(f"ema_length: makes an average of its own, and cannot go with weights={weights}")
    if sha256 is not None:
        raise ConfigError("ema_length: cannot go with a SHA-256, which says nothing of the snapshots in averages/")
    if not found.is_dir():
        raise ConfigError(f"ema_length: {found} is one average alone; give the run directory, which has averages/")


@torch.no_grad()
def _synthesise(model: nn.Module, found: Path, description: Metadata, sigma_rel: float) -> None:
    """Give `model` the average of width `sigma_rel` at the checkpoint's step (Karras et al. 2024, algorithm 3)."""
    widths: list[float] = description.config["ema"].get("posthoc", [])
    try:
        averages.check_widths(widths)
    except ValueError as error:
        raise CheckpointError(f"{found}: its configuration has an impossible ema.posthoc: it {error}") from error
    parameters = dict(model.named_parameters())
    prefixes = [averages.posthoc_prefix(width) for width in widths]
    shapes = {f"{prefix}{name}": tuple(parameters[name].shape) for prefix in prefixes for name in parameters}
    snapshots = checkpoint.snapshots_of(found, description, shapes) if widths else []
    if not snapshots:
        raise ConfigError(f"ema_length: {found} has no averages to make one of; a run with ema=posthoc keeps them")
    if snapshots[-1].step != description.step:
        raise CheckpointError(f"{found}: the snapshot of step {description.step} is missing in its run's averages/")
    # Of several after the same update (float16 overflows change nothing in between) the newest stands for all.
    snapshots = list({snapshot.updates: snapshot for snapshot in snapshots}.values())
    snapshots = _thinned(snapshots, averages.MOST_TERMS // len(widths))
    times = [snapshot.updates for snapshot in snapshots for _ in widths]
    with naming("ema_length"):
        counts = averages.coefficients(times, widths * len(snapshots), t=times[-1], sigma_rel=sigma_rel)
    sums = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    for snapshot, weights in zip(snapshots, counts.reshape(-1, len(widths)).tolist(), strict=True):
        if not any(weights):
            continue
        tensors = checkpoint.load_snapshot(snapshot)
        for prefix, weight in zip(prefixes, weights, strict=True):
            for name, total in sums.items():
                total.add_(tensors[f"{prefix}{name}"], alpha=weight)
    for name, parameter in parameters.items():
        parameter.copy_(sums[name])


def _thinned(snapshots: list[Snapshot], most: int) -> list[Snapshot]:
    """At most `most` of them, evenly, the oldest and the newest among them."""
    if len(snapshots) <= most:
        return snapshots
    return [snapshots[i * (len(snapshots) - 1) // (most - 1)] for i in range(most)]
