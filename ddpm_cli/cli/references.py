"""Checks references, `${a.b}`, before they are resolved: their values may be far larger than their text.

Thirty values of which each names the one before it twice stand for a billion of the first.
"""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_cli.config.errors import ConfigError, shown

MOST = 2**20  # characters and values; a schedule of 8192 values has a tenth of it
# One that holds no other: a key (with dots before it, as seen from where it stands), or a resolver and its arguments.
_INNERMOST = re.compile(r"\$\{([^${}]*)\}")


def check_references(config: DictConfig) -> None:
    """Raise ConfigError, naming the key, if a value would be larger than a configuration can hold."""
    sizes = _Sizes(OmegaConf.to_container(config, resolve=False))
    try:
        for key in config:
            if sizes.of((str(key),)) > MOST:
                raise ConfigError(f"{shown(str(key))}: what it refers to has more than {MOST:,} characters and values")
    except RecursionError as error:
        raise ConfigError("values refer to each other, one to the next, too often") from error


class _Sizes:
    """The number of characters and values that each key stands for; more than MOST count as MOST + 1."""

    def __init__(self, written: Any):
        self._written = written
        self._known: dict[tuple[str, ...], int] = {}

    def of(self, path: tuple[str, ...]) -> int:
        if path not in self._known:
            self._known[path] = 0  # should it refer to itself, which OmegaConf refuses
            self._known[path] = self._measure(path, self._at(path))
        return self._known[path]

    def _measure(self, path: tuple[str, ...], value: Any) -> int:
        if isinstance(value, dict | list):
            keys = value if isinstance(value, dict) else range(len(value))
            return self._capped(1 + sum(self.of((*path, str(key))) for key in keys))
        return self._capped(1 + len(str(value)) + self._referred(path, str(value)))

    def _referred(self, path: tuple[str, ...], text: str) -> int:
        size = 0
        while (found := _INNERMOST.search(text)) is not None and size <= MOST:
            inner = found[1]
            for name in inner.split(":", 1)[-1].split(",") if ":" in inner else [inner]:
                key = self._key(path, name.strip(" '\""))
                if key is not None:
                    size += self.of(key)
            # Where it stands within another reference, that one is to what this one says.
            plain = self._at(self._key(path, inner) or ())
            said = str(plain) if isinstance(plain, str | int | float) and "${" not in str(plain) else ""
            text = text[: found.start()] + said.replace("$", "") + text[found.end() :]
        return size

    def _key(self, path: tuple[str, ...], name: str) -> tuple[str, ...] | None:
        """The path to which `name` refers at `path`; None if it does not exist."""
        dots = len(name) - len(name.lstrip("."))
        steps = tuple(re.findall(r"[^.\[\]]+", name))
        key = (*path[: len(path) - dots], *steps) if dots else steps
        return key if key and self._at(key) is not None else None

    def _at(self, path: tuple[str, ...], follow: int = 32) -> Any:
        """The value there, also behind a reference on the way; None if there is none."""
        value = self._written if path else None
        for i, step in enumerate(path):
            if isinstance(value, str):  # a reference to what has this step
                found = _INNERMOST.fullmatch(value)
                key = None if found is None or follow == 0 else self._key(path[:i], found[1])
                return None if key is None else self._at((*key, *path[i:]), follow - 1)
            if isinstance(value, list):
                value = value[int(step)] if step.isdecimal() and int(step) < len(value) else None
            else:
                value = value.get(step) if isinstance(value, dict) else None
        return value

    @staticmethod
    def _capped(size: int) -> int:
        return min(size, MOST + 1)
