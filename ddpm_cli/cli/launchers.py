"""Refuses a command that a launcher has started several times, in processes that do not know of each other.

torchrun tells its processes of each other (WORLD_SIZE, RANK). Slurm's srun and MPI's mpirun only start them: each
process would train the same run, or sample the same images.
"""

import os
import sys
from typing import NamedTuple

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.io.command_line import command


class _Launcher(NamedTuple):
    name: str
    size: str  # the variable that says how many processes it has started
    rank: str  # and which of them this is


# srun comes first: it also sets what MPI's libraries look for. A script of sbatch is no step, and has no such number.
_LAUNCHERS = (
    _Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    _Launcher("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    _Launcher("mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    _Launcher("mpirun", "PMI_SIZE", "PMI_RANK"),
)
_ALONE = ("ddpm-import",)  # commands that are not for several processes


def refuse_copies(program: str | None) -> None:
    """Raise ConfigError if this command was started several times without torchrun; the message has the right command.

    A user who sets WORLD_SIZE wants it so, and is let through.

    Args:
        program: the command's name; None: a sweep, which must be one process, with or without torchrun.
    """
    launcher = _of_copies()
    if program in _ALONE and (together := _number("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            f"{program} runs in one process, torchrun has started {together} (WORLD_SIZE); start it without torchrun"
        )
    if program is None and launcher is None and (together := _number("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            f"-m: torchrun has started {together} processes (WORLD_SIZE), which work on one run together; start the "
            "sweep without torchrun, or its runs one by one with it"
        )
    if launcher is None:
        return
    size = _number(launcher.size) or 1
    started = f"{launcher.name} has started {size} processes ({launcher.size}), and each would"
    if program is None:
        raise ConfigError(f"-m: {started} run the whole sweep; start it once")
    if program in _ALONE:
        raise ConfigError(f"{started} write the same files; start {program} once")
    what = "train the same run" if program == "ddpm-train" else "sample the same images"
    raise ConfigError(
        f"{started} {what}; to have them work together, use torchrun:\n  {_command(launcher, size, program)}\n"
        f"  (to run each on its own, set WORLD_SIZE=1)"
    )


def speaks() -> bool:
    """Whether this process is the one that prints errors for all of them."""
    launcher = _of_copies()
    rank = "RANK" if launcher is None else launcher.rank
    return _number(rank) in (None, 0)


def _of_copies() -> _Launcher | None:
    """The launcher that started this process beside others that do not know of it; None if there is none."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if "WORLD_SIZE" in os.environ and not (by_torchrun and _number("WORLD_SIZE") == 1):
        return None
    return next((launcher for launcher in _LAUNCHERS if (_number(launcher.size) or 1) > 1), None)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdecimal() else None


def _command(launcher: _Launcher, size: int, program: str) -> str:
    """The command line that starts the same number of processes with torchrun, on as many machines."""
    nodes = (_number("SLURM_STEP_NUM_NODES") or 1) if launcher.name == "srun" else 1
    each = -(-size // nodes)
    words = ["torchrun", f"--nproc_per_node={each}"]
    if launcher.name == "srun":
        words = ["srun", "--ntasks-per-node=1", *words]
    if nodes > 1:
        first = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        words += [f"--nnodes={nodes}", "--rdzv_backend=c10d", "--rdzv_id=$SLURM_JOB_ID"]
        words += [f"--rdzv_endpoint={first}:29500"]
    return command(" ".join([*words, "-m", program.replace("ddpm-", "ddpm_cli.")]), *sys.argv[1:])
