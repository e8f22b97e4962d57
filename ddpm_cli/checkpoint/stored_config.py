"""How a configuration is written in a checkpoint, so that it can be read by versions whose modules lie elsewhere.

In memory a node names what it builds by its full path. In a checkpoint, a function or class that we ship for the node's
group stands there by its last name alone, without `_partial_`:

    "schedule": {"_target_": "cosine", "timesteps": 1000}

A `_target_` with a dot is the user's own, and is kept as it is. A configuration that is read may come from anywhere and
hold any JSON: names that we do not know are left to be refused by whoever checks it.
"""

import functools
from collections.abc import Callable
from typing import Any

from ddpm_cli.config.schema import is_node
from ddpm_cli.config.shipped import shipped_targets

Node = dict[str, Any]


def encode(config: dict) -> dict:
    """A configuration as it is written, out of one with full paths; a new dict."""
    return map_nodes(config, _encoded)


def decode(config: dict) -> dict:
    """A configuration with full paths, out of one as it is written; a new dict."""
    return map_nodes(config, _decoded)


def map_nodes(config: dict, change: Callable[[str, Node], Node]) -> dict:
    """A new configuration of the same structure, in which `change(group, node)` replaces every node, inner ones first.

    Those in lists are left as they are: they are never built.
    """

    def mapped(group: str, value: object) -> object:
        if not isinstance(value, dict):
            return value
        inner = {key: mapped(key, item) for key, item in value.items()}
        return change(group, inner) if is_node(inner) else inner

    return {key: mapped(key, value) for key, value in config.items()}


def _encoded(group: str, node: Node) -> Node:
    target = node["_target_"]
    shipped = shipped_targets().get(group, {})
    if not isinstance(target, str) or target not in shipped or node.get("_partial_", False) is not shipped[target]:
        return node
    return {key: value for key, value in node.items() if key != "_partial_"} | {"_target_": _last_name(target)}


def _decoded(group: str, node: Node) -> Node:
    name = node["_target_"]
    target = _paths().get(group, {}).get(name) if isinstance(name, str) else None
    if target is None:
        return node
    partial = {"_partial_": True} if shipped_targets()[group][target] else {}
    rest = {key: value for key, value in node.items() if key != "_target_"}
    return {"_target_": target} | partial | rest  # a `_partial_` that stands there all the same is there to be checked


@functools.cache
def _paths() -> dict[str, dict[str, str]]:
    """The full path of everything we ship, by group and last name."""
    return {group: {_last_name(target): target for target in targets} for group, targets in shipped_targets().items()}


def _last_name(target: str) -> str:
    return target.rpartition(".")[2]
