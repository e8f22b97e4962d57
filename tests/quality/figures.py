"""How figures of several seeds are said."""

from collections.abc import Sequence
from statistics import mean


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Their mean, and the interval they lie in."""
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
