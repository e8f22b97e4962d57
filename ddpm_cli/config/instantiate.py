"""The objects that a checked configuration describes."""

import functools
from typing import Any

from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.schema import NODE_KEYS, importing, is_node
from ddpm_cli.config.signatures import resolve


def instantiate(node: Any, path: str) -> Any:
    """The object that a checked node describes; nested nodes are built first. Other values are returned as they are.

    Raises:
        ConfigError: if the target refuses a value, with `path` before its message.
    """
    if isinstance(node, list):
        return tuple(node)  # nothing inside a list is ever built
    if not is_node(node):
        return node
    keywords = {key: instantiate(value, f"{path}.{key}") for key, value in node.items() if key not in NODE_KEYS}
    with importing(path):
        target = resolve(node["_target_"])
    if node.get("_partial_"):
        return functools.partial(target, **keywords)
    try:
        with naming(path):
            return target(**keywords)
    except (TypeError, OverflowError, RuntimeError, MemoryError) as error:  # such as more memory than there is
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{path}: {reason}") from error
