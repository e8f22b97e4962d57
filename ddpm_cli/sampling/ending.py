"""How a command that draws ends early, for whatever reason: what is there is kept, and the message says how to resume.

Heavy modules are imported inside the functions: `--help` and a mistyped key are answered without torch.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.io.command_line import command, override
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.exit_codes import RunError, Stopped
from ddpm_cli.runtime.signals import Stop

if TYPE_CHECKING:
    from ddpm_cli.distributed.process_group import World


@contextmanager
def ending_well(
    program: str, world: "World", stop: Stop, *, keep: Callable[[], str], working_on: str, cure: str
) -> Iterator[None]:
    """Inside, whatever ends the drawing early says what is there and how to resume.

    Args:
        keep: puts what is there on the disk as well as it can, and says so.
        working_on: what there was not enough memory for, if that is the reason.
        cure: what takes less.
    """
    from ddpm_cli.distributed.process_group import LostRankError
    from ddpm_cli.runtime.device import out_of_memory

    try:
        with _said_by_every_rank(program, world):
            try:
                yield
            except LostRankError as error:
                raise RunError(f"{error}. {keep()}") from error
            except OSError as error:
                where = "" if error.filename is None else f"{error.filename}: "
                raise RunError(f"{where}{error.strerror or error}. {keep()}") from error
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    error.add_note(keep())
                    raise
                raise RunError(f"out of memory with {working_on}; {cure}. {keep()}") from error
            except Exception as error:
                error.add_note(keep())
                raise
    except Stopped as stopped:
        raise Stopped(f"{stop.signal}: stopped. {keep()}") from stopped


def same_command(program: str, world: "World", *, out: Path | None) -> str:
    """The command line of this process, for a person to give again.

    Args:
        out: the directory that it is to write to, where that was not said.
    """
    launched = f"ddpm-{program}"
    if world.size > 1:
        here = os.environ.get("LOCAL_WORLD_SIZE", world.size)
        launched = f"torchrun --nproc_per_node={here} -m ddpm_cli.{program}"
    # In hydra.run.dir there may be a reference that would lead to another directory: the time of day, say.
    arguments = [argument for argument in sys.argv[1:] if argument.lstrip("+").partition("=")[0] != "hydra.run.dir"]
    return command(launched, *arguments, *([] if out is None else [override("out", out)]))


def say_on_stderr(program: str) -> Callable[[str], None]:
    """What says a line of a command's at any moment, also where its own standard streams are gone."""

    def say(message: str) -> None:
        with suppress(OSError):
            os.write(2, f"ddpm-{program}: {message}\n".encode())

    return say


@contextmanager
def _said_by_every_rank(program: str, world: "World") -> Iterator[None]:
    """Inside, an error that may be of this process alone is said by itself: otherwise only rank 0 speaks."""
    try:
        yield
    except RunError as error:
        if not world.main:
            print(f"ddpm-{program}: process {world.rank}: {printable(str(error))}", file=sys.stderr)
        raise
