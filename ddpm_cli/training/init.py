"""A new run that starts from trained weights, and nothing else: fine-tuning.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.init_options import InitOptions
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.shipped import options_by_target
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.io import run_dir
from ddpm_cli.io.run_identity import Identity, identity_of
from ddpm_cli.io.text import printable
from ddpm_cli.training.init_source import Source
from ddpm_cli.training.resume import names_a_run

if TYPE_CHECKING:
    from ddpm_cli.training.build import Parts, Training

SHOWN = 4  # tensors, options or classes in a message; the log has all of them


def check_alone(invocation: Invocation) -> None:
    """Raise ConfigError if the command line names weights and also a run that has its own."""
    if not any(key.partition(".")[0] == "init" for key in invocation.changes):
        return
    if names_a_run(invocation):
        raise ConfigError(
            "init: starts a new run from trained weights alone, resume=RUN_DIR resumes a run; leave out either"
        )
    if invocation.fork is not None:
        raise ConfigError(
            "init: starts a new run from trained weights alone, fork= from a run's whole state (moments, averages, "
            "step, configuration); leave out either"
        )


def take_weights(source: Source, parts: "Parts", options: TrainOptions, *, strict: bool) -> list[str]:
    """Load the weights into the network, on the CPU, before it is used.

    Returns:
        Remarks: a line for each tensor that is left out, and for each difference between the networks.

    Raises:
        ConfigError: if they do not fit and `strict`, or none of them fits.
    """
    from ddpm_cli.training.weights_fit import fit

    model = parts.ddpm.model
    own = model.state_dict()
    found = fit(options.model, own, source.config["model"], source.tensors)
    if not found.fitting:
        raise ConfigError(f"init: nothing of {source.path} fits the network: {listed(found.misfits)}")
    if strict and (found.misfits or found.options):
        raise ConfigError(_refusal(source, found.misfits, found.options, found.cure, len(own)))
    model.load_state_dict(own | found.fitting)
    said = [f"init     {printable(remark)}" for remark in source.remarks]
    if found.misfits:
        said.append(f"init     takes {len(found.fitting):,} of {len(own):,} tensors")
    said += [f"init     left out: {printable(line)}" for line in found.misfits]
    said += [f"init     the network differs from that of the weights: {printable(line)}" for line in found.options]
    there, here = (_called("prediction", config.get("prediction")) for config in (source.config, vars(options)))
    if there is not None and there != here:
        said.append(
            f"init     the weights predict {there}, and must first learn to predict {here}; prediction={there} "
            "avoids this"
        )
    return said


def on_classes(source: Source, training: "Training") -> list[str]:
    """A warning if the labels that the weights know are not those of the data."""
    images = training.trainer.batches.images
    if images.labels is None or not source.classes or images.class_names == source.classes:
        return []
    pairs = zip(source.classes, images.class_names, strict=False)
    other = listed([f"{there} is now {here}" for there, here in pairs if there != here])
    return [f"init     the weights learned their labels with other classes: {printable(other)}"]


def _called(group: str, node: dict | None) -> str | None:
    """The name of one of our options on the command line."""
    if node is None:
        return None
    target = str(node["_target_"])
    return next(iter(options_by_target(group).get(target, [])), target)


def listed(lines: list[str]) -> str:
    """The first lines of many, as one text."""
    more = f"; and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else ""
    return f"{'; '.join(lines[:SHOWN])}{more}"


def _refusal(source: Source, misfits: list[str], options: list[str], cure: str, count: int) -> str:
    if misfits:
        first = f"of {count} tensors of the network {len(misfits)} do not fit: {listed(misfits)}"
        otherwise = "init.strict=false leaves these randomly initialised"
    else:
        first = f"its weights fit, but belong to another network: {listed(options)}"
        otherwise = "init.strict=false uses them in this network all the same"
    lines = [f"init: {source.path}: {first}"]
    if cure:
        lines.append(f"{cure} gives the network of the weights")
    return "\n  ".join([*lines, otherwise])


def began_with(identity: Identity | None, init: InitOptions) -> bool:
    """Whether a run started from the weights that `init` names, which need not exist any more."""
    from ddpm_cli.checkpoint import EMA_FILE

    if identity is None or identity.init_from is None or init.path is None:
        return False
    if identity.init_weights not in (None, init.weights):
        return False
    asked, recorded = Path(os.path.abspath(init.path)), Path(identity.init_from)
    if recorded.is_relative_to(asked.parent if asked.name in (run_dir.BEST_FILE, EMA_FILE) else asked):
        return True
    if not (asked / run_dir.CHECKPOINTS).is_dir():
        return False
    with naming("init"):
        of_run = identity_of(asked)  # it may have been moved
    return of_run is not None and of_run.id == identity.init_of
