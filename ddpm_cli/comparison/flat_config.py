"""Configurations as dotted keys with short texts, and the keys in which runs differ."""

import json
from collections.abc import Mapping, Sequence

from ddpm_cli.config.shipped import options_by_target

# They say where a run lies, and how it was called, and decide nothing that it learns.
DECIDE_NOTHING = ("name", "output_dir", "resume", "trust", "logger")
MOST_KEYS = 2000  # of a configuration that may be anybody's: aliases in YAML make much of little
DEEPEST = 12
LONGEST_VALUE = 300  # characters

# What an option that a version does not have yet is like in a later one: it is off.
_OFF = ("null", "false", "0", "0.0", "[]", "{}", "")


def flat(config: Mapping[str, object]) -> dict[str, str]:
    """A configuration by dotted keys, in its order; a node's own key says which option of its group it is."""
    found: dict[str, str] = {}
    _flatten(config, "", found, 0)
    return found


def _flatten(node: Mapping[str, object], path: str, found: dict[str, str], depth: int) -> None:
    target = node.get("_target_")
    if path and isinstance(target, str):
        found[path] = _option(path.rpartition(".")[2], target)
    for key, value in node.items():
        if len(found) >= MOST_KEYS:
            return
        where = f"{path}.{key}" if path else str(key)
        if key in ("_target_", "_partial_") or where in DECIDE_NOTHING or len(where) > LONGEST_VALUE:
            continue
        if where == "init" and isinstance(value, Mapping) and value.get("path") is None:
            continue  # the rest says how that is taken
        if isinstance(value, Mapping) and value and depth < DEEPEST:
            _flatten(value, where, found, depth + 1)
        else:
            found[where] = value_text(value)


def _option(group: str, target: str) -> str:
    """What a node is called on the command line, or, if several options are of one class, the class."""
    options = options_by_target(group).get(target, [])
    return options[0] if len(options) == 1 else target.rpartition(".")[2][:LONGEST_VALUE]


def value_text(value: object) -> str:
    """A value as on a command line, shortened if it is long."""
    if isinstance(value, str):
        found = value
    else:
        pieces, length = [], 0
        try:
            for piece in json.JSONEncoder(separators=(",", ":"), default=str).iterencode(value):
                pieces.append(piece)
                length += len(piece)
                if length > LONGEST_VALUE:
                    break
        except (ValueError, RecursionError, TypeError):  # it holds itself, or keys that are no texts
            pieces.append("...")
        found = "".join(pieces).replace('"', "")
    return found if len(found) <= LONGEST_VALUE else f"{found[:LONGEST_VALUE]}..."


def differing(configs: Sequence[dict[str, str] | None], parts: Sequence[dict[str, str]] = ()) -> list[str]:
    """The keys in which configurations differ, in their order; None stands for one that is not known.

    Keys below an option that another run has not chosen are compared among those that have.

    Args:
        parts: of further configurations, of which nothing else is known.
    """
    known = [config for config in configs if config is not None]
    order = dict.fromkeys(key for config in (*known, *parts) for key in config)
    found = [key for key in order if _differs(key, known, {part[key] for part in parts if key in part})]
    return [key for i, key in enumerate(found) if not _repeats(key, found[:i], [*known, *parts])]


def _differs(key: str, configs: Sequence[dict[str, str]], others: set[str]) -> bool:
    values: dict[tuple, set[str | None]] = {}
    parts = key.split(".")
    above = [".".join(parts[:i]) for i in range(1, len(parts))]
    for config in configs:
        values.setdefault(tuple(config.get(path) for path in above), set()).add(config.get(key))
    groups = [found | others for found in values.values()] or [set(others)]
    return any(len(found - {None}) > 1 or (None in found and not found <= {None, *_OFF}) for found in groups)


def _repeats(key: str, earlier: Sequence[str], configs: Sequence[dict[str, str]]) -> bool:
    """Whether another key of this name has the same value in every run, like data.image_size and model.image_size."""
    own = [config.get(key) for config in configs]
    return any(
        other.rpartition(".")[2] == key.rpartition(".")[2] and [config.get(other) for config in configs] == own
        for other in earlier
    )


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The keys, shortened to as few of their last parts as distinguish them."""
    return {key: _ending(key.split("."), [other.split(".") for other in keys]) for key in keys}


def _ending(parts: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    lengths = range(1, len(parts) + 1)
    alone = (n for n in lengths if sum(other[-n:] == parts[-n:] for other in others) == 1)
    return ".".join(parts[-next(alone, len(parts)) :])
