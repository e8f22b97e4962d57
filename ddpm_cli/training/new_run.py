"""The directory of a new run, in which it says who it is.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.io import durable, run_dir, run_identity
from ddpm_cli.io.run_identity import Identity
from ddpm_cli.training.resume import directory_key

if TYPE_CHECKING:
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.training.build import Training


def begin(
    directory: Path | None,
    training: "Training",
    identity: Identity,
    invocation: Invocation,
    world: "World",
    held: ExitStack,
) -> Path:
    """The directory of a new run: `directory`, if one has been begun there that has saved nothing, or a new one."""
    from ddpm_cli.training.checks import check_readable, check_space

    options = training.options
    with naming("the configuration"):
        check_readable(training.trainer, options)
    with naming(directory_key(invocation)):
        check_space(invocation.directory or Path(options.output_dir), training.trainer)
        if directory is None:
            data = run_dir.plain_name(training.trainer.batches.images.name)
            directory = world.on_main(lambda: _new_directory(options, data, identity, invocation, held))
        elif world.main:
            identity.write(directory)
            if options.name is not None and invocation.directory is None:
                run_identity.remember(options.output_dir, options.name, directory, identity)
        if world.main and invocation.record is not None:
            own = None if invocation.fork is None else asdict(options)
            run_dir.keep_hydra(directory, invocation.record(directory, own))
    return directory


def _new_directory(
    options: TrainOptions, data: str, identity: Identity, invocation: Invocation, held: ExitStack
) -> Path:
    """A locked directory of the run's own, in which it says who it is.

    What of it and those above it was made goes when `held` is closed, if nothing has come of it.
    """
    if invocation.directory is not None:
        return _in_new_directory(invocation.directory, identity, held)
    name, others = data if options.name is None else options.name, nullcontext()
    above = durable.absent(Path(options.output_dir, name))
    if options.name is not None:
        others = run_identity.choosing(options.output_dir, name)
    with others:
        if options.name is not None and invocation.resume is not None:  # when this command began to look there was none
            begun = run_identity.find(options.output_dir, name).directory
            if begun is not None:
                raise ConfigError(f"name: another process has just started {begun}; resume=null starts another run")
        directory = run_dir.create(options.output_dir, name)
        held.callback(durable.remove_empty, [directory, *above])
        held.enter_context(run_dir.locked_for_training(directory))
        identity.write(directory)
        if options.name is not None:
            run_identity.remember(options.output_dir, name, directory, identity)
    return directory


def _in_new_directory(directory: Path, identity: Identity, held: ExitStack) -> Path:
    made = durable.absent(directory)
    if not directory.is_dir():
        with suppress(FileExistsError):
            durable.make_directory(directory)
    held.callback(durable.remove_empty, made)
    held.enter_context(run_dir.locked_for_training(directory))
    if run_identity.identity_of(directory) is not None:
        raise ConfigError(f"another process has started a run in {directory} meanwhile; choose another directory")
    identity.write(directory)
    return directory
