"""Configurations checked against what will consume them.

A configuration is a tree of plain dicts. A node with `_target_` names a function or class, and its other keys are that
target's arguments; with `_partial_: true` the target is not called yet, and its positional parameters are left to the
program. A node's keys are therefore checked against the target's signature, which is read from its source: a typo is
found without importing torch. A section of the top level holds options as a node does, but nothing is built of it.

What a person types is taken for what is meant: 1e5 where a whole number is wanted, a name that looks like a number, one
value in the place of a list. What a checkpoint holds has to be of its type.
"""

import ast
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from ddpm_cli.config.common_options import DATA_PLACE, common_options
from ddpm_cli.config.errors import ConfigError, nearest, shown
from ddpm_cli.config.known_elsewhere import called_here
from ddpm_cli.config.renamed import new_key, new_value
from ddpm_cli.config.shipped import shipped_targets
from ddpm_cli.config.signatures import Parameter, signature


def check(
    config: dict, target: str, *, groups: Iterable[str] = (), spelt: Mapping[str, str] = MappingProxyType({})
) -> dict:
    """Check a whole configuration whose top-level keys are the arguments of `target`.

    Args:
        groups: names of groups, some of which leave no key in a configuration: a misspelt key may have meant one.
        spelt: by dotted key, how numbers and truth values were typed: 1e5 is no name, but the text of one.

    Returns:
        A configuration in which every value is of the type that its consumer takes.

    Raises:
        ConfigError: for the first key that is unknown, missing or of a wrong type.
    """
    return _checked_arguments(config, target, path="", partial=False, trusted=None, groups=groups, spelt=spelt)


def options_of(target: str) -> frozenset[str]:
    """The names of what a function or class takes; none if it takes anything."""
    return frozenset(_settable(target, path="", partial=False) or ())


def check_key(config: dict, key: str, target: str, *, groups: Iterable[str] = (), absent: object = None) -> Any:
    """The value that a configuration has at a dotted key, `absent` if it has none.

    Args:
        config: need not be whole, nor its references followed.
        target, groups: as for `check`.

    Raises:
        ConfigError: if nothing takes an option of that name.
    """
    value: Any = {"_target_": target} | config
    path, several = "", False
    for name in key.split("."):
        if several:
            chosen = value if isinstance(value, dict) else {}
            if name not in chosen:
                would = f"{path}=[{','.join([*chosen, name])}]"
                raise ConfigError(f"{key}: {shown(name)} is not chosen{nearest(name, chosen)}; {would} chooses it")
            value, path, several = chosen[name], f"{path}.{name}", False
            continue
        if not is_node(value) and path not in SECTIONS:
            raise ConfigError(f"{key}: no such option; {path} has none")
        if name not in NODE_KEYS:
            target = str(value["_target_"]) if is_node(value) else SECTIONS[path]
            settable = _settable(target, path=path, partial=is_node(value) and value.get("_partial_") is True)
            if settable is None:
                return absent
            _check_name(name, settable, target, path=path, groups=groups, key=key)
            several = _is_several(settable[name].annotation)
        inner = value.get(name, absent) if isinstance(value, dict) else absent
        value, path = inner, f"{path}.{name}" if path else name
    return value


def check_untrusted(group: str, node: Any, *, trust: Iterable[str] = ()) -> None:
    """Check one group of a checkpoint's configuration: it may name only what we ship for that group.

    Args:
        trust: further names that the user allows as `_target_`.

    Raises:
        ConfigError: as `check`, and for a `_target_` that is not on the list.
    """
    own = frozenset(trust)
    trusted = {key: own.union(targets) for key, targets in shipped_targets().items()}
    _checked_value(node, ast.Name("dict"), key=group, path=group, trusted=trusted, spelt={})


def is_node(value: object) -> bool:
    return isinstance(value, dict) and "_target_" in value


def targets_in(config: object) -> Iterator[str]:
    """The full name of everything that a configuration builds."""
    if isinstance(config, dict):
        if is_node(config):
            yield str(config["_target_"])
        for value in config.values():
            yield from targets_in(value)


# Checking ------------------------------------------------------------------------------------------------------------

NODE_KEYS = ("_target_", "_partial_")
SECTIONS = {"init": "ddpm_cli.config.init_options.InitOptions"}  # by key, the class whose fields are its options


Trusted = dict[str, frozenset[str]] | None


@contextmanager
def importing(path: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{path}._target_: {error}") from error


def _checked_arguments(
    node: dict,
    target: str,
    *,
    path: str,
    partial: bool,
    trusted: Trusted,
    spelt: Mapping[str, str],
    groups: Iterable[str] = (),
) -> dict:
    settable = _settable(target, path=path, partial=partial)
    if settable is None:
        return node
    found = {key: node[key] for key in NODE_KEYS if key in node} | node  # first, wherever they were composed from
    for key, value in node.items():
        if key not in NODE_KEYS:
            _check_name(str(key), settable, target, path=path, groups=groups)
            where, annotation = f"{path}.{key}" if path else str(key), settable[key].annotation
            found[key] = _checked_value(value, annotation, key=str(key), path=where, trusted=trusted, spelt=spelt)
    for name, parameter in settable.items():
        if parameter.required and name not in node:
            raise ConfigError(f"{path}.{name}: missing" if path else f"{name}: missing")
    return found


def _settable(target: str, *, path: str, partial: bool) -> dict[str, Parameter] | None:
    """The options of a target, by name; None if it takes any."""
    with importing(path):
        parameters = signature(target)
    if parameters is None:
        return None
    return {p.name: p for p in parameters if not (partial and p.positional)} | common_options(path, target)


def _check_name(
    name: str,
    settable: dict[str, Parameter],
    target: str,
    *,
    path: str,
    groups: Iterable[str],
    key: str | None = None,  # the whole key, of which `name` is a part
) -> None:
    if name not in settable:
        where, near = (f"{path}.{name}", settable) if path else (name, [*settable, *groups])
        for asked in (where, key):
            if asked is not None and (ours := called_here(asked, target)) is not None:
                raise ConfigError(f"{asked}: here it is {ours}")
        takes = f"{path or 'this command'} takes {', '.join(settable) or 'no options'}"
        if target == DATA_PLACE:
            takes += ", which say where the images are; the checkpoint has all other options of the run's data"
        raise ConfigError(f"{shown(where)}: no such option{new_key(where) or nearest(name, near)}; {takes}")


def _checked_value(
    value: Any, annotation: ast.expr | None, *, key: str, path: str, trusted: Trusted, spelt: Mapping[str, str]
) -> Any:
    if path in SECTIONS:
        options = value if isinstance(value, dict) else {"path": value}  # the short spelling
        if is_node(options):
            raise ConfigError(f"{path}._target_: no such option; {path} builds nothing")
        return _checked_arguments(options, SECTIONS[path], path=path, partial=False, trusted=trusted, spelt=spelt)
    if _is_several(annotation) and isinstance(value, dict):
        _check_several(value, path)
        node = ast.Name("dict")
        return {
            name: _checked_value(one, node, key=key, path=f"{path}.{name}", trusted=trusted, spelt=spelt)
            for name, one in value.items()
        }
    if is_node(value):
        target = value["_target_"]
        if not isinstance(target, str):
            raise ConfigError(f"{path}._target_: expected the full name of a function or class, got {_shown(target)}")
        if trusted is not None and target not in trusted.get(key, ()):
            raise ConfigError(f"{path}._target_: {shown(target)} is not on the list of what a checkpoint may build")
        partial = value.get("_partial_", False)
        if not isinstance(partial, bool) or partial != shipped_targets().get(key, {}).get(target, partial):
            raise ConfigError(f"{path}._partial_: cannot be {_shown(partial)} for {shown(target)}")
        return _checked_arguments(value, target, path=path, partial=partial, trusted=trusted, spelt=spelt)
    expected = mismatch(value, annotation)
    if expected is None:
        return value
    for alternative in _alternatives(annotation) if trusted is None else ():
        meant = _meant(value, alternative, spelt.get(path))
        if meant is not None:
            return meant
    raise ConfigError(f"{path}: expected {expected}, got {_shown(value)}{new_value(path, value)}")


def _is_several(annotation: ast.expr | None) -> bool:
    """Whether a parameter takes any number of a group's options, as nodes by name: `dict[str, dict]`."""
    return isinstance(annotation, ast.Subscript) and ast.unparse(annotation) == "dict[str, dict]"


def _check_several(nodes: dict, path: str) -> None:
    for name, node in nodes.items():
        if not is_node(node):
            chosen = ",".join([*(other for other in nodes if is_node(nodes[other])), str(name)])
            header = f"'# @package {path}.NAME' must be the first line of your own option's file"
            raise ConfigError(f"{path}.{name}: is not chosen; {path}=[{chosen}] chooses it. {header}")


def _shown(value: object) -> str:
    return shown(json.dumps(value, default=str))


def mismatch(value: object, annotation: ast.expr | None) -> str | None:
    """What a parameter annotated so would have expected, or None if the value fits or the annotation is not plain."""
    alternatives = _alternatives(annotation)
    descriptions = []
    for alternative in alternatives:
        fits, description = _fits(value, alternative)
        if fits:
            return None
        descriptions.append(description)
    return " or ".join(descriptions) or None


def _alternatives(annotation: ast.expr | None) -> list[ast.expr]:
    if annotation is None:
        return []
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _alternatives(annotation.left) + _alternatives(annotation.right)
    return [annotation]


def _fits(value: object, annotation: ast.expr) -> tuple[bool, str]:
    match annotation:
        case ast.Constant(value=None):
            return value is None, "null"
        case ast.Name(id="bool"):
            return isinstance(value, bool), "true or false"
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool), "a whole number"
        case ast.Name(id="float"):
            if isinstance(value, float) and not math.isfinite(value):
                return False, "a finite number"
            return isinstance(value, int | float) and not isinstance(value, bool), "a number"
        case ast.Name(id="str"):
            return isinstance(value, str) and _is_unicode(value), "text"
        case ast.Name(id="dict"):
            return is_node(value), "a group of options"
        case ast.Subscript(value=ast.Name(id="dict")):
            return False, "options of a group, by name"
        case ast.Subscript(value=ast.Name(id="Callable")):
            return is_node(value) or value is None, "a group of options"  # None: filled in by the program
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            allowed = [ast.literal_eval(item) for item in _elements(choices)]
            close = nearest(value, allowed) if isinstance(value, str) else ""
            return value in allowed, f"one of {', '.join(map(str, allowed))}{close}"
        case ast.Subscript(value=ast.Name(id="Sequence" | "list" | "tuple"), slice=items):
            return _fits_list(value, _elements(items))
    return True, ""


_EXACT = 2**53  # from here on a number with a point need not be the one that was typed


def _meant(value: object, annotation: ast.expr, spelt: str | None) -> object:
    """What was meant by a value that is of another type than this one; None if nothing can have been."""
    match annotation:
        case ast.Name(id="int") if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
            return int(value)
        case ast.Name(id="str") if isinstance(value, int | float) and spelt is not None:
            return spelt
        case ast.Name(id="str") if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        case ast.Subscript(value=ast.Name(id="Sequence" | "list" | "tuple"), slice=items):
            elements = _elements(items)
            given = list(value) if isinstance(value, list | tuple) else [value]
            if value is None or isinstance(value, dict) or not (_any_length(elements) or len(given) == len(elements)):
                return None
            annotations = [elements[0]] * len(given) if _any_length(elements) else elements
            meant = [_of_list(one, other, spelt) for one, other in zip(given, annotations, strict=True)]
            return None if None in meant else meant
    return None


def _of_list(value: object, annotation: ast.expr, spelt: str | None) -> object:
    if mismatch(value, annotation) is None:
        return value
    found = (_meant(value, alternative, spelt) for alternative in _alternatives(annotation))
    return next((meant for meant in found if meant is not None), None)


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8; what comes from the environment may hold bytes of something else."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


_PLURALS = {"int": "whole numbers", "float": "numbers", "str": "texts", "int | str": "whole numbers or texts"}


def _fits_list(value: object, items: list[ast.expr]) -> tuple[bool, str]:
    any_length = _any_length(items)
    what = _PLURALS.get(ast.unparse(items[0]), "values")
    expected = f"a list of {what}" if any_length else f"a list of {len(items)} {what}"
    if not isinstance(value, list | tuple) or (not any_length and len(value) != len(items)):
        return False, expected
    annotations = [items[0]] * len(value) if any_length else items
    return all(mismatch(v, a) is None for v, a in zip(value, annotations, strict=True)), expected


def _any_length(items: list[ast.expr]) -> bool:
    return len(items) == 1 or (isinstance(items[-1], ast.Constant) and items[-1].value is ...)


def _elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]
