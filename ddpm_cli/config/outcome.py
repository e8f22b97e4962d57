"""What a run returns to Hydra: a number that sweepers can optimise, and what it is called."""

from typing import Any


class Outcome(float):
    """A figure with its name.

    Args:
        value: of the figure.
        name: what it is called in the table of a sweep.
    """

    name: str

    def __new__(cls, value: float, name: str) -> "Outcome":
        outcome = super().__new__(cls, value)
        outcome.name = name
        return outcome

    def __getnewargs__(self) -> tuple[Any, ...]:
        return float(self), self.name
