"""Reads another program's JSON key by key: each value must have its type, and no key is ignored."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ddpm_cli.config.errors import shown
from ddpm_cli.conversion.imported import ConversionError


class Said:
    """The keys of a JSON object, each of which is read once; messages name them after `where`.

    Args:
        content: what the file holds, which may be anybody's.
        where: the file.
        defaults: what a key means that is not there.
    """

    def __init__(self, content: Mapping[str, Any], where: str, defaults: Mapping[str, Any]):
        self._left = dict(content)
        self._where = where
        self._defaults = defaults

    def any(self, key: str) -> Any:
        """A value of any type."""
        return self._left.pop(key, self._defaults.get(key))

    def whole(self, key: str) -> int:
        value = self.any(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refused(key, value, "expected a whole number")
        return value

    def whole_or_none(self, key: str) -> int | None:
        """A count, or null."""
        value = self.any(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise self.refused(key, value, "expected a whole number above 0, or null")
        return value

    def number(self, key: str) -> float:
        value = self.any(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refused(key, value, "expected a number")
        return float(value)

    def truth(self, key: str) -> bool:
        value = self.any(key)
        if not isinstance(value, bool):
            raise self.refused(key, value, "expected true or false")
        return value

    def list_of(self, kind: type, key: str) -> list[Any]:
        """A list, not empty, of texts (`str`), whole numbers (`int`) or numbers (`float`)."""
        value = self.any(key)
        kinds = (int, float) if kind is float else (kind,)
        good = isinstance(value, list | tuple) and value and all(isinstance(item, kinds) for item in value)
        if not good or any(isinstance(item, bool) for item in value):
            what = {str: "texts", int: "whole numbers", float: "numbers"}[kind]
            raise self.refused(key, value, f"expected a list of {what}")
        return list(value)

    def list_or_none(self, kind: type, key: str) -> list[Any] | None:
        """As `list_of`; None if the key is missing."""
        if self._left.get(key, self._defaults.get(key)) is None:
            return self.any(key)
        return self.list_of(kind, key)

    def one_of(self, key: str, meanings: Mapping[Any, Any]) -> Any:
        """The meaning of a value from a table; any other value is refused."""
        value = self.any(key)
        if isinstance(value, list | dict) or value not in meanings:
            raise self.refused(key, value, f"here it can be {' or '.join(map(_spelt, meanings))} only")
        return meanings[value]

    def rest(self) -> list[str]:
        """The keys that have not been read, except the program's own (`_class_name`)."""
        return sorted(key for key in self._left if not key.startswith("_"))

    def refused(self, key: str, value: object, why: str) -> ConversionError:
        """The error for this value, to be raised."""
        return ConversionError(f"{self._where}: {key} is {shown(_spelt(value))}: {why}")


def _spelt(value: object) -> str:
    return json.dumps(value, default=str)
