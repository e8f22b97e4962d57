"""Which checkpoints there are."""

import os
from pathlib import Path

from ddpm_cli.checkpoint.metadata import EMA_FILE, FILES, MANIFEST_FILE, CheckpointError
from ddpm_cli.checkpoint.verify import Verified, compare, described
from ddpm_cli.io.command_line import command, override
from ddpm_cli.io.named_runs import newest_of
from ddpm_cli.io.run_dir import BEST_FILE, CHECKPOINTS, best_checkpoint, by_step, step_of
from ddpm_cli.io.run_identity import runs_below

RUNS_SHOWN = 2  # in a message


def newest(run_directory: Path) -> Path:
    """The checkpoint of the highest step in a run, whole or not.

    Raises:
        CheckpointError: if there is none.
    """
    return _all_of_run(run_directory)[-1]


def newest_whole(run_directory: Path) -> tuple[Verified, dict[Path, str]]:
    """The checkpoint of the highest step that is not damaged, and for each newer one what is wrong with it.

    Raises:
        CheckpointError: if there is no checkpoint, or none is whole (says what is wrong with each); if the one that is
            whole is not ours.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(_all_of_run(run_directory)):
        try:
            compare(checkpoint, *FILES)
        except CheckpointError as error:
            damaged[checkpoint] = str(error)
        else:
            return described(checkpoint, *FILES), damaged
    raise CheckpointError(f"no checkpoint in {run_directory} is whole: {'; '.join(damaged.values())}")


def find(path: str | Path, *, program: str = "ddpm-sample", key: str = "ckpt") -> Path:
    """What `ckpt=` means: the newest checkpoint of a run directory, its best.json, a checkpoint, or its EMA file.

    Of a directory of runs of one name it is that of the run begun last, as `ddpm_cli.io.named_runs` has it.

    Args:
        program, key: the command, and its option, for a message that says which runs there are.

    Returns:
        A checkpoint directory, or a single `.safetensors` file.

    Raises:
        CheckpointError: if the path is none of these.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist")
    try:
        of_name = newest_of(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if of_name is not None:
        return newest(of_name.directory)
    if path.name == BEST_FILE and os.path.isfile(path):
        try:
            return best_checkpoint(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    if path.is_file():
        if path.parent.joinpath(MANIFEST_FILE).is_file() and path.name == EMA_FILE:
            return path.parent
        if path.suffix == ".safetensors":
            return path
    elif step_of(path) is not None or (path / MANIFEST_FILE).is_file():
        return path
    elif (path / CHECKPOINTS).is_dir():
        return newest(path)
    elif path.name == CHECKPOINTS:
        return newest(path.parent)
    raise CheckpointError(
        f"{path} is neither a run directory nor a checkpoint nor an EMA file ({EMA_FILE})"
        f"{runs_to_choose_from(path, program, key)}"
    )


def runs_to_choose_from(path: Path, program: str, key: str) -> str:
    """What to add to a message about a directory that is no run but holds some: how the newest are named.

    Args:
        program, key: the command, and its option, that a run is named to.
    """
    runs = runs_below(path)
    if not runs:
        return ""
    newest = [f"\n  {command(program, override(key, run))}" for run in runs[:RUNS_SHOWN]]
    count = f"{len(runs):,} runs, newest first" if len(runs) > 1 else "a run"
    return f"; it holds {count}:{''.join(newest)}"


def newer_than(checkpoint: Path) -> list[Path]:
    """The checkpoints of later steps of the same run, whole or not."""
    step = step_of(checkpoint)
    assert step is not None, checkpoint
    return [path for other, path in all_of(checkpoint.parent).items() if other > step]


def all_of(directory: Path) -> dict[int, Path]:
    """All in a run's `checkpoints/` by their step: also those that have lost files, which must not be passed over.

    Raises:
        CheckpointError: if the directory is a link.
    """
    if directory.is_symlink():
        raise CheckpointError(f"{directory} is a link; a run's checkpoints lie in the run")
    return by_step(directory)


def _all_of_run(run_directory: Path) -> list[Path]:
    """Oldest first, and at least one."""
    found = list(all_of(run_directory / CHECKPOINTS).values())
    if not found:
        raise CheckpointError(f"{run_directory} holds no checkpoint")
    return found
