"""A run of `ddpm-import`: from checked options to a run directory with one checkpoint, complete or absent.

Heavy modules are imported inside the functions: `--help` and a mistyped key are answered without torch.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.import_options import ImportOptions
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.schema import targets_in
from ddpm_cli.config.signatures import signature
from ddpm_cli.config.unet_levels import levels_text
from ddpm_cli.conversion.hub import local_source
from ddpm_cli.conversion.imported import Given, Imported
from ddpm_cli.conversion.output import written_whole
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.command_line import command, override
from ddpm_cli.io.run_identity import Identity
from ddpm_cli.io.text import printable, size_text
from ddpm_cli.runtime.signals import Stop

if TYPE_CHECKING:
    from ddpm_cli.checkpoint import Metadata

OF_DIFFUSION = ("schedule", "prediction", "variance", "threshold")


def start(config: dict, invocation: Invocation, stop: Stop) -> Path:
    """Turn another program's model into a run of ours; returns its directory.

    Raises:
        ConfigError: before anything has been written, if there is no such model, or it is none that ours can be.
        RunError: if the disk is full or fails; nothing is left.
    """
    options = ImportOptions(**config)
    _check_place(options, invocation)
    source = local_source(options.source, download=options.download)
    imported = _read(source, options)
    description = _described(imported, options)
    out = Path(options.out)
    checkpoint = _write(out, imported, description)
    stop.finish()
    said = _announcement(imported, description, chosen=options.variance is not None)
    for line in (*said, f"saved    {checkpoint}"):
        print(printable(line))
    for what, line in (
        ("sample", command("ddpm-sample", override("ckpt", out))),
        ("evaluate", f"{command('ddpm-eval', override('ckpt', out))} reference=images reference.path=DIR"),
        ("train", command("ddpm-train", override("init", out))),
    ):
        print(printable(f"{what:8} {line}"))
    return out


def _check_place(options: ImportOptions, invocation: Invocation) -> None:
    if invocation.run_directory is not None:
        raise ConfigError("hydra.run.dir: out= names the directory already; leave out either")
    if not options.out:
        raise ConfigError("out: must name a directory")
    if os.path.lexists(options.out):
        raise ConfigError(f"out: {options.out} exists already, and nothing is overwritten; choose another directory")


def _read(source: Path, options: ImportOptions) -> Imported:
    from ddpm_cli.checkpoint.validate import check_config
    from ddpm_cli.conversion.read import read_source

    preset = None
    if options.preset is not None:
        check_config({"preset": options.preset}, trust=frozenset(targets_in(options.preset)))
        preset = instantiate(options.preset, "preset")
    given = Given(image_size=options.image_size, preset=preset, chosen=frozenset(_chosen(options)))
    with naming("source"):
        return read_source(source, given)


def _chosen(options: ImportOptions) -> dict[str, dict[str, Any]]:
    """Nodes of the groups that the command line chooses, which override the files."""
    nodes = {group: getattr(options, group) for group in OF_DIFFUSION}
    return {group: node for group, node in nodes.items() if node is not None}


# What it is ----------------------------------------------------------------------------------------------------------


def _described(imported: Imported, options: ImportOptions) -> "Metadata":
    """The description of the checkpoint; the network and its diffusion have been built, and take such images.

    Raises:
        ConfigError: if they do not go together, or no file and no option says one of them.
    """
    from ddpm_cli.checkpoint import Metadata, versions
    from ddpm_cli.checkpoint.metadata import parse
    from ddpm_cli.checkpoint.validate import check_config
    from ddpm_cli.config.build_ddpm import build_ddpm

    size = imported.unet["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    config = _config(imported, options)
    with naming("source"):
        metadata = Metadata(
            step=imported.step,
            image_shape=(imported.unet["in_channels"], height, width),
            images=0,
            config=config,
            versions=versions(),
        )
        parse(metadata.as_json(), Path(options.out))  # a description that could not be read again
    check_config(config, trust=frozenset(targets_in(_chosen(options))))
    build_ddpm(config).check_images(metadata.image_shape)
    return metadata


def _config(imported: Imported, options: ImportOptions) -> dict[str, Any]:
    """The configuration in the checkpoint: as much of a run's configuration as is known."""
    from ddpm_cli.checkpoint.metadata import IMPORTED
    from ddpm_cli.conversion.layers import UNET

    ours = "ddpm_cli.diffusion."
    learned = imported.unet["learn_variance"]
    groups = imported.groups | _chosen(options)
    for group, there_are in (("schedule", "linear, cosine or another"), ("prediction", "eps, x0 or v")):
        if group not in groups:
            raise ConfigError(f"{group}: {options.source} does not say it; choose {group}={there_are}")
    variance = groups.setdefault("variance", {"_target_": f"{ours}variance.{_variance(learned)}"})
    if variance["_target_"].endswith(".LearnedRange") is not learned:
        answers = "a variance too" if learned else "no variance"
        raise ConfigError(f"variance: the network predicts {answers}; {_fitting(learned)}")
    return {
        IMPORTED: f"{options.source}, {imported.description}",
        "model": {"_target_": UNET} | {option.name: imported.unet[option.name] for option in signature(UNET) or ()},
        "weighting": {"_target_": f"{ours}weighting.Uniform"},
        "loss": {"_target_": f"{ours}loss.{'Hybrid' if learned else 'Simple'}"},
        "ema": {"_target_": "ddpm_cli.ema.ema.EMA", "_partial_": True, "decays": [], "posthoc": []},
    } | groups


def _variance(learned: bool) -> str:
    return "LearnedRange" if learned else "FixedSmall"


def _fitting(learned: bool) -> str:
    return "leave it out, or choose variance=learned_range" if learned else "choose fixed_small or fixed_large"


def _announcement(imported: Imported, metadata: "Metadata", *, chosen: bool) -> list[str]:
    """A report on what has been read, in the form of a training run's.

    Args:
        chosen: whether the command line says the variance.
    """
    from ddpm_cli.checkpoint.metadata import IMPORTED

    config = metadata.config
    parameters = sum(tensor.numel() for tensor in imported.tensors.values())
    classes = imported.unet["num_classes"]
    labels = [] if classes is None else [f"{classes:,} classes"]
    network = ["UNet", f"{parameters:,} parameters", levels_text(imported.unet), *labels]
    diffusion = [_text(group, config[group]) for group in OF_DIFFUSION if group in config]
    assumed = []
    if "variance" not in imported.groups and not chosen:
        assumed.append(f"{_text('variance', config['variance'])} is used, as no file says it")
    return [
        f"source   {config[IMPORTED]}",
        f"images   {size_text(metadata.image_shape)}",
        f"network  {', '.join(network)}",
        f"noise    {', '.join(diffusion)}",
        *(f"note     {remark}" for remark in (*imported.remarks, *assumed)),
    ]


def _text(group: str, node: dict[str, Any]) -> str:
    """The choice of a group as on a command line."""
    from ddpm_cli.config.shipped import options_by_target

    (name, *_) = options_by_target(group).get(node["_target_"], [node["_target_"]])
    return f"{group}={name}"


# Writing -------------------------------------------------------------------------------------------------------------


def _write(out: Path, imported: Imported, metadata: "Metadata") -> Path:
    """Create the run directory, which appears complete; returns the checkpoint in it."""
    from ddpm_cli import checkpoint
    from ddpm_cli.checkpoint.tensor_names import MODEL

    with written_whole(out) as directory:
        durable.replace(directory / run_dir.CONFIG_FILE, _yaml(metadata.config))
        written = checkpoint.save(
            directory / run_dir.CHECKPOINTS,
            ema=imported.tensors,
            training={f"{MODEL}{name}": tensor for name, tensor in imported.tensors.items()},
            description=metadata,
        )
        Identity(begun_in=os.getcwd()).write(directory)
    return out / run_dir.CHECKPOINTS / written.name


def _yaml(config: dict[str, Any]) -> bytes:
    import yaml

    return yaml.safe_dump(config, sort_keys=False).encode()
