"""What every step of a run of `ddpm-eval` works with."""

from typing import TYPE_CHECKING, NamedTuple

from ddpm_cli.config.eval_options import EvalOptions
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.runtime.signals import Stop

if TYPE_CHECKING:
    from ddpm_cli.distributed.process_group import World


class Task(NamedTuple):
    """A command, and this process's part in it."""

    options: EvalOptions
    invocation: Invocation
    world: "World"
    stop: Stop
