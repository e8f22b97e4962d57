"""The parameters of functions and classes, read from their source, without importing torch."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ddpm_cli.config.source import Definition, Module, lookup, read

_WITHOUT_PARAMETERS = ("ABC", "Generic", "Protocol", "object")  # bases that bring no constructor and no fields
# What stands in YAML where an object of a class is wanted: a node that builds one; null: the program fills it in.
_NODE = ast.parse("dict | None", mode="eval").body


@dataclass(frozen=True)
class Parameter:
    """One parameter of a target, as its source spells it, with the names of types written out."""

    name: str
    annotation: ast.expr | None
    required: bool
    positional: bool


class _NotInSourceError(Exception):
    """The source does not say it: the object itself must be imported."""


def signature(target: str) -> list[Parameter] | None:
    """Parameters of a function or class by its full name, from its source; None if it accepts any keyword.

    Raises:
        ImportError: if there is no such target.
    """
    try:
        return _parameters_of(*_definition(target))
    except _NotInSourceError:
        return _live_signature(resolve(target))


def class_variable(target: str, name: str) -> object:
    """The constant that the source of a class, or of its bases, assigns to an attribute; None if there is none."""
    try:
        definition, module = _definition(target)
        if not isinstance(definition, ast.ClassDef):
            return None
        for item in definition.body:
            match item:
                case (
                    ast.AnnAssign(target=ast.Name(id=assigned), value=ast.Constant(value=value))
                    | ast.Assign(targets=[ast.Name(id=assigned)], value=ast.Constant(value=value))
                ) if assigned == name:
                    return value
        inherited = (class_variable(f"{home.name}.{base.name}", name) for base, home in _bases(definition, module))
        return next((value for value in inherited if value is not None), None)
    except _NotInSourceError:
        return None


def resolve(target: str) -> Any:
    """Import the function or class of a full name.

    Raises:
        ImportError: if there is none.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ImportError(f"there is no {target!r} ({error})") from error


def _definition(target: str) -> tuple[Definition | ast.expr, Module]:
    module, _, name = target.rpartition(".")
    found = lookup(name, read(module))
    if found is None:
        raise _NotInSourceError
    return found


def _parameters_of(definition: Definition | ast.expr, module: Module) -> list[Parameter] | None:
    match definition:
        case ast.FunctionDef(args=arguments):
            return _parameters(arguments, module)
        case ast.ClassDef():
            for item in definition.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return _parameters(item.args, module, skip_self=True)
            if _is_dataclass(definition):
                return list(_fields(definition, module).values())
            inherited = (_parameters_of(*base) for base in _bases(definition, module))
            return next((parameters for parameters in inherited if parameters != []), [])
    raise _NotInSourceError


def _parameters(arguments: ast.arguments, module: Module, *, skip_self: bool = False) -> list[Parameter] | None:
    if arguments.kwarg is not None:
        return None
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found = [(a, i < required, True) for i, a in enumerate(positional)][1 if skip_self else 0 :]
    found += [(a, default is None, False) for a, default in keywords]
    return [Parameter(a.arg, _plain(a.annotation, module), needed, place) for a, needed, place in found]


def _is_dataclass(definition: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list)


def _bases(definition: ast.ClassDef, module: Module) -> Iterator[tuple[ast.ClassDef, Module]]:
    for base in definition.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if name.rpartition(".")[2] in _WITHOUT_PARAMETERS:
            continue
        found = lookup(name, module)
        if found is None or not isinstance(found[0], ast.ClassDef):
            raise _NotInSourceError
        yield found[0], found[1]


def _fields(definition: ast.ClassDef, module: Module) -> dict[str, Parameter]:
    """The parameters of a dataclass, by name: as in `dataclasses`, those of a base come first and may be replaced."""
    fields: dict[str, Parameter | None] = {}
    for base in reversed(list(_bases(definition, module))):
        fields |= _fields(*base)
    if _is_dataclass(definition):
        for item in definition.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                fields[item.target.id] = _field(item, module, fields.get(item.target.id))
    return {name: field for name, field in fields.items() if field is not None}


def _field(item: ast.AnnAssign, module: Module, inherited: Parameter | None) -> Parameter | None:
    """A field as a parameter, which keeps a default that it inherits; None for what the constructor does not take."""
    options: dict[str | None, str] = {}
    has_default = item.value is not None or (inherited is not None and not inherited.required)
    if isinstance(item.value, ast.Call) and ast.unparse(item.value.func) in ("field", "dataclasses.field"):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in item.value.keywords}
        has_default = not options.keys().isdisjoint(("default", "default_factory"))
    annotation = ast.unparse(item.annotation)
    if "ClassVar" in annotation or annotation.endswith("KW_ONLY") or options.get("init") == "False":
        return None
    return Parameter(ast.unparse(item.target), _plain(item.annotation, module), not has_default, positional=False)


def _plain(annotation: ast.expr | None, module: Module, seen: frozenset[str] = frozenset()) -> ast.expr | None:
    """An annotation with every name for a type replaced by that type, and every class by a node that builds one."""
    match annotation:
        case ast.Name(id=name) if name not in seen:
            match lookup(name, module):
                case (ast.expr() as alias, home):
                    return _plain(alias, home, seen | {name})
                case (ast.ClassDef() as definition, home) if _is_ordinary(definition, home):
                    return _NODE
        case ast.BinOp(left=left, op=op, right=right):
            return ast.BinOp(_plain(left, module, seen) or left, op, _plain(right, module, seen) or right)
        case ast.Subscript(value=value, slice=items):
            return ast.Subscript(value, _plain(items, module, seen) or items)
        case ast.Tuple(elts=items):
            return ast.Tuple([_plain(item, module, seen) or item for item in items])
    return annotation


def _is_ordinary(definition: ast.ClassDef, module: Module) -> bool:
    """Whether all bases of a class can be read; for an Enum, say, YAML may hold something else."""
    try:
        return all(True for _ in _bases(definition, module))
    except _NotInSourceError:
        return False


def _live_signature(target: Any) -> list[Parameter] | None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [Parameter(p.name, None, p.default is p.empty, p.kind is not p.KEYWORD_ONLY) for p in parameters]
