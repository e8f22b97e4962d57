"""A run of `ddpm-export`: from checked options to a directory of diffusers, and how it may end.

Heavy modules are imported inside the functions: `--help` and a mistyped key are answered without torch.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.export_options import ExportOptions
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.conversion.output import written_whole
from ddpm_cli.io.named_runs import newest_of
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.exit_codes import Stopped
from ddpm_cli.runtime.signals import Stop

if TYPE_CHECKING:
    from ddpm_cli.conversion.diffusers_directory import Exported


def start(config: dict, invocation: Invocation, stop: Stop) -> None:
    """Write the model of a checkpoint in the format of diffusers.

    Raises:
        ConfigError: before anything has been written, if the configuration or the checkpoint cannot be used, or if
            diffusers has no such model.
        RunError: if the disk is full or fails; nothing is left.
        Stopped: if it was asked to stop; nothing is left.
    """
    options = ExportOptions(**config)
    out = _checked_out(options, invocation)
    with naming("ckpt"):
        newest = newest_of(Path(options.ckpt))
    if newest is not None:
        options = replace(options, ckpt=str(newest.directory))
    try:
        exported = _exported(options, invocation.changes)
        _write(exported, out, stop)
    except Stopped as stopped:
        raise Stopped(f"{stop.signal}: stopped. Nothing has been written") from stopped
    stop.finish()
    taken = [] if newest is None else [newest.said]
    print("\n".join(map(printable, [*taken, *exported.described, f"saved    {out}"])))


def _checked_out(options: ExportOptions, invocation: Invocation) -> Path:
    """The directory to create, which must not exist; checked before the checkpoint is read."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE: exporting runs in one process; start it without torchrun")
    if invocation.run_directory is not None:
        raise ConfigError("hydra.run.dir: has no effect here; out= names the directory")
    if not options.out:
        raise ConfigError("out: must name a directory")
    out = Path(options.out)
    if os.path.lexists(out):
        raise ConfigError(f"out: {out} exists already, and nothing is overwritten; choose another directory")
    return out


def _exported(options: ExportOptions, changes: Iterable[str]) -> "Exported":
    from ddpm_cli.checkpoint.pretrained import own_threshold, rebuild, select
    from ddpm_cli.conversion.diffusers_directory import exported

    with naming("ckpt"):
        selection = select(
            options.ckpt,
            weights=options.weights,
            ema_length=options.ema_length,
            trust=options.trust,
            sha256=options.ckpt_sha256,
        )
        own = own_threshold(selection, trust=options.trust)
        pretrained = rebuild(selection, trust=options.trust)
    if own is not None and not any(key.partition(".")[0] == "threshold" for key in changes):
        options = replace(options, threshold=own)
    return exported(selection, pretrained, options)


def _write(exported: "Exported", out: Path, stop: Stop) -> None:
    with written_whole(out) as directory:
        exported.write(directory)
        stop.defer("giving it its name")
