"""Openers for `open`: files that somebody else has put there, opened without waiting for anybody."""

import os


def nonblocking(path: str, flags: int) -> int:
    """A descriptor as `open` has it made; not even that of a FIFO to which nobody writes keeps it waiting."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
