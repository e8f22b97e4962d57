"""What the keys of the YAML files take: by the signatures of what they configure, and in words."""

import ast
import re
from pathlib import Path

import yaml
from ranges import Range

from ddpm_cli.config.common_options import common_options
from ddpm_cli.config.schema import SECTIONS, is_node
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.config.signatures import signature

Annotation = ast.expr | None

# How types are called; those that a YAML file has another name for.
_TYPES = {
    "int": "whole number",
    "float": "number",
    "bool": "`true`, `false`",
    "str": "text",
    "dict": "option of a group",
}
_PLURALS = {"int": "whole numbers", "float": "numbers", "str": "texts"}


def annotations(file: Path) -> dict[str, Annotation]:
    """The annotation of every key, with its group before it, of all that a YAML file's targets take."""
    found = {
        f"{place}.{parameter.name}" if place else parameter.name: parameter.annotation
        for place, target in targets(file).items()
        for parameter in signature(target) or []
    }
    if file == configs_directory() / "train.yaml":
        found |= {f"data.{name}": parameter.annotation for name, parameter in common_options("data").items()}
    return found


def targets(file: Path) -> dict[str, str]:
    """The full names of what a YAML file configures, by the key below which their options stand."""
    content, place = yaml.safe_load(file.read_text(encoding="utf-8")) or {}, package(file)
    if place is not None:
        return {place: content["_target_"]}
    nodes = {key: node["_target_"] for key, node in content.items() if is_node(node)}
    if file.parent == configs_directory():
        nodes |= {key: target for key, target in SECTIONS.items() if key in content}
        nodes[""] = f"ddpm_cli.config.{file.stem}_options.{file.stem.capitalize()}Options"
    return nodes


def package(file: Path) -> str | None:
    """The key below which a file stands in a configuration; None: its keys are whole."""
    if file.parent == configs_directory():
        return None
    named = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))
    if named is None:
        return file.parent.name
    return None if named[1] == "_global_" else named[1]


def is_number(annotation: Annotation) -> bool:
    """Whether numbers, or lists of them, can stand there."""
    return annotation is not None and any(map(_is_plain_number, ast.walk(annotation)))


def _is_plain_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("int", "float")


def alternatives(annotation: Annotation) -> list[ast.expr]:
    """The types that a value may be of."""
    if isinstance(annotation, ast.BinOp):
        return alternatives(annotation.left) + alternatives(annotation.right)
    return [] if annotation is None else [annotation]


# In words ------------------------------------------------------------------------------------------------------------


def in_words(annotation: Annotation, limits: Range | None = None) -> str:
    """What a YAML file may hold there. `limits` are those of the number; of a list, if no number stands alone."""
    each = alternatives(annotation)
    limited = list(filter(_is_plain_number, each)) or list(filter(is_number, each))
    said = (_limited(one, limits) if limits is not None and one in limited else _words(one) for one in each)
    return ", ".join(dict.fromkeys(said))


def _limited(annotation: ast.expr, limits: Range) -> str:
    if limits.choices:
        return ", ".join(f"`{choice}`" for choice in limits.choices)
    return f"{_words(annotation)}{', ' if limits.text.startswith('at ') else ' '}{limits.text}"


def _words(annotation: ast.expr) -> str:
    match annotation:
        case ast.Constant(value=None):
            return "`null`"
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return ", ".join(f"`{one.value}`" for one in _elements(choices) if isinstance(one, ast.Constant))
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=items)) if not _is_ellipsis(items[-1]):
            return f"[{', '.join(map(_words, items))}]"
        case ast.Subscript(value=ast.Name(id="list" | "Sequence" | "tuple"), slice=items):
            of = alternatives(_elements(items)[0])
            return f"list of {' or '.join(_PLURALS.get(ast.unparse(one), _words(one)) for one in of)}"
    return f"`{ast.unparse(annotation)}`"


def _elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
