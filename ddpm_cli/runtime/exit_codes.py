"""How a command ends: its exit statuses, and the exceptions that lead to them."""

import os
import sys

FAILED = 1
MISTAKE = 2  # the command cannot be run as it was given; nothing was started
NON_FINITE = 3  # a loss, a gradient or a sample is not a finite number
INTERRUPTED = 130  # by a KeyboardInterrupt that no signal of ours has brought, as the shell has it
RESUME_LATER = 75  # EX_TEMPFAIL of sysexits.h: saved; the same command resumes. What a scheduler requeues on.


def leave(status: int) -> None:
    """End this process now if it is connected to others; otherwise return.

    Their connections have threads of their own, and C++ aborts a process that is taken down around them, whatever its
    exit status was to be.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class RunError(Exception):
    """A run that had started cannot continue; has the reason and the exit status."""

    def __init__(self, message: str, status: int = FAILED):
        super().__init__(message)
        self.status = status


class Stopped(BaseException):
    """A run was asked to stop and did. Not an Exception: no error handling may swallow it."""
