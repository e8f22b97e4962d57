"""What is said of a run that ends: of one that is done where everything is, of others why, and what is lost."""

import logging
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.distributed.process_group import LostRankError
from ddpm_cli.io import run_dir
from ddpm_cli.io.command_line import command, override
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.device import out_of_memory
from ddpm_cli.runtime.exit_codes import FAILED, INTERRUPTED, RunError
from ddpm_cli.runtime.logs import FOR_FILE, log
from ddpm_cli.training.trainer import Trainer

FEW_STEPS = 25  # of a solver that draws as well in them as all timesteps do


def what_next(trainer: Trainer, directory: Path, loggers: Sequence[str]) -> list[str]:
    """Of a run that is done, where its pictures are, and the commands that one wants next, a line each.

    Args:
        loggers: overrides that a command has to say again.
    """
    config, timesteps = trainer.config, trainer.ddpm.schedule.timesteps
    watched = (directory / run_dir.TENSORBOARD).is_dir()
    *_, picture = [None, *run_dir.by_step(directory / run_dir.PREVIEWS, ".png").values()]
    ckpt = override("ckpt", directory)
    few = ("sampler=dpmpp_2m_sde", f"sampler.steps={min(FEW_STEPS, timesteps)}")
    further = [f"trainer.steps={2 * config.steps}"]
    if config.lr_decay != "constant":  # it has come down, and has to be told to begin again
        further.append(f"trainer.lr_decay={config.lr_decay}")
    # Beside its siblings it has a name there.
    shown = directory.parent if run_dir.is_dated(directory) else directory
    lines = {
        "pictures": None if picture is None else printable(str(picture)),
        "sample": command("ddpm-sample", ckpt, *few),
        "watch": command("tensorboard", "--logdir", str(shown)) if watched else None,
        "resume": command("ddpm-train", override("resume", directory), *further, *loggers),
        "evaluate": command("ddpm-eval", ckpt),
    }
    return [f"{what:8} {line}" for what, line in lines.items() if line is not None]


def reason(error: BaseException, trainer: Trainer) -> tuple[str, int]:
    """Why `error` ended a run, and the exit status. Of one that is out of memory, frees what its step had taken."""
    match error:
        case LostRankError() | ConfigError():
            return str(error), FAILED
        case RunError():
            return str(error), error.status
        case KeyboardInterrupt():
            return "interrupted", INTERRUPTED
        case _ if out_of_memory(error):
            traceback.clear_frames(error.__traceback__)
            trainer.optimizer.zero_grad(set_to_none=True)
            return _what_needs_less_memory(trainer), FAILED
        case OSError():
            return f"{error}; earlier checkpoints are untouched", FAILED
    return f"{first_line(error)}; the traceback is in the log", FAILED


def first_line(error: BaseException) -> str:
    """One line of an error of any kind."""
    name, text = type(error).__name__, str(error).strip()
    line = printable(text.splitlines()[0])[:500] if text else ""
    return line if isinstance(error, OSError) and line else f"{name}: {line}".rstrip(": ")


def lost(step: int, saved_step: int | None, first_step: int = 0) -> str:
    """What a run loses that ends at once after `step` steps, of which it has saved `saved_step` (None: nothing yet).

    Args:
        first_step: where it began: another one than 0 where it is a fork.
    """
    done = first_step if saved_step is None else saved_step
    if step <= done:
        return "nothing is lost"
    steps = f"step {step:,}" if step == done + 1 else f"steps {done + 1:,} to {step:,}"
    since = "" if saved_step is None else f" since the checkpoint of step {saved_step:,}"
    return f"lost: {steps}{since}"


def put_on_record(message: str, error: BaseException | None = None) -> None:
    """Add to the log file how the run ends, with the traceback of an error that nobody has foreseen.

    Where there is no log file, or it cannot be written, the traceback is printed.
    """
    expected = LostRankError | ConfigError | RunError | KeyboardInterrupt | OSError | ArithmeticError
    unexpected = error is not None and not isinstance(error, expected) and not out_of_memory(error)
    with suppress(OSError):
        level = logging.WARNING if error is None else logging.ERROR
        log.log(level, printable(message), extra=FOR_FILE, exc_info=error if unexpected else None)
        if any(isinstance(handler, logging.FileHandler) for handler in log.handlers):
            return
    if unexpected:
        traceback.print_exception(error)


def _what_needs_less_memory(trainer: Trainer) -> str:
    config = trainer.config
    at_a_time = config.batch_size // (config.micro_batches * trainer.world.size)
    ways = [f"trainer.accumulate={2 * config.micro_batches} or auto (now {at_a_time} images at a time)"]
    if not config.activation_checkpointing:
        ways.append("trainer.activation_checkpointing=true")
    if config.preview_images > at_a_time:
        ways.append(f"trainer.preview_images={at_a_time}")
    if trainer.world.size > 1 and not config.fsdp:
        ways.append("trainer.fsdp=true")
    return f"out of memory with batch_size {config.batch_size} on {trainer.compute}; what takes less: {', '.join(ways)}"
