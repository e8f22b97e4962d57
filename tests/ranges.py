"""The ranges of numbers that the comments of the YAML files state.

A range stands in parentheses: (at least 1), (above 0, at most 1), (from 0 to 1), (only 1 or 3). That of a list is the
range of every number in it.
"""

import operator
import re
from dataclasses import dataclass

_NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"
_BOUND = rf"(?:(?:at least|at most|above|below) {_NUMBER}|from {_NUMBER} to {_NUMBER})"
_ONLY = rf"only {_NUMBER}(?:(?:, {_NUMBER})* or {_NUMBER})?"
_RANGE = re.compile(rf" ?\(({_BOUND}(?:, {_BOUND})*|{_ONLY})\)")
_COMPARISONS = {"at least": operator.ge, "at most": operator.le, "above": operator.gt, "below": operator.lt}


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes."""

    text: str  # as in the comment, without the parentheses

    @property
    def numbers(self) -> list[float]:
        """The numbers in the text, from the first to the last."""
        return [float(number.replace(",", "")) for number in re.findall(_NUMBER, self.text)]

    @property
    def choices(self) -> list[int]:
        """The numbers themselves, if the range is a few of them."""
        return [int(number) for number in self.numbers] if self.text.startswith("only") else []

    def __contains__(self, value: float) -> bool:
        if self.choices:
            return value in self.choices
        bounds = re.sub(rf"from ({_NUMBER}) to ({_NUMBER})", r"at least \1, at most \2", self.text)
        compared = re.findall(rf"({'|'.join(_COMPARISONS)}) {_NUMBER}", bounds)
        return all(_COMPARISONS[word](value, bound) for word, bound in zip(compared, self.numbers, strict=True))


def split_range(comment: str) -> tuple[str, Range | None]:
    """A comment without its range, and the range; None if it has none.

    Raises:
        ValueError: if it has more than one.
    """
    found = _RANGE.findall(comment)
    if len(found) > 1:
        raise ValueError(f"more than one range: {comment}")
    return _RANGE.sub("", comment).strip(), Range(found[0]) if found else None
