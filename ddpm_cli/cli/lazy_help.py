"""Hydra 1.3 on Python 3.14: argparse checks a help text when it is added there, and Hydra adds an object.

Hydra 1.4 adds a text; this goes when that is what we build on.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside, argparse takes any object as a help text, as it did until Python 3.13."""
    place, name = argparse.ArgumentParser, "_check_help"
    if not hasattr(place, name):
        yield
        return
    setattr(place, name, lambda self, action: None)  # of the class itself, which inherits it
    try:
        yield
    finally:
        delattr(place, name)
