"""What a function or class takes, read from its source: an answer that needs no import of torch."""

import ast
import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One parameter of a target, as its source spells it."""

    name: str
    annotation: ast.expr | None
    required: bool
    positional: bool


def signature(target: str) -> list[Parameter] | None:
    """Parameters of a function or class by its full name, from its source; None if it accepts any keyword.

    Raises:
        ImportError: if there is no such target.
    """
    module, _, name = target.rpartition(".")
    source = _source(module)
    definitions = {item.name: item for item in source if isinstance(item, ast.FunctionDef | ast.ClassDef)}
    aliases = {
        item.targets[0].id: item.value
        for item in source
        if isinstance(item, ast.Assign) and len(item.targets) == 1 and isinstance(item.targets[0], ast.Name)
    }
    match definitions.get(name):
        case ast.FunctionDef(args=arguments):
            return _parameters(arguments, aliases, skip_self=False)
        case ast.ClassDef() as definition:
            for item in definition.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return _parameters(item.args, aliases, skip_self=True)
            if any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list):
                bases = [
                    definitions[base.id]
                    for base in definition.bases
                    if isinstance(base, ast.Name) and base.id in definitions
                ]
                found = {
                    f.name: f for d in (*bases, definition) if isinstance(d, ast.ClassDef) for f in _fields(d, aliases)
                }
                return list(found.values())
            if not definition.bases:
                return []
    # Defined elsewhere and imported there, inherited, or not in Python: the object itself is asked.
    return _live_signature(resolve(target))


def _source(module: str) -> list[ast.stmt]:
    """The statements of a module, without running it (its parent packages are imported)."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return []
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body


def _fields(definition: ast.ClassDef, aliases: dict[str, ast.expr]) -> list[Parameter]:
    return [
        Parameter(item.target.id, _plain(item.annotation, aliases), required=item.value is None, positional=False)
        for item in definition.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and "ClassVar" not in ast.unparse(item.annotation)
    ]


def _plain(annotation: ast.expr | None, aliases: dict[str, ast.expr]) -> ast.expr | None:
    """An annotation with the module's own name for a type replaced by that type."""
    return aliases.get(annotation.id, annotation) if isinstance(annotation, ast.Name) else annotation


def _parameters(arguments: ast.arguments, aliases: dict[str, ast.expr], *, skip_self: bool) -> list[Parameter] | None:
    if arguments.kwarg is not None:
        return None
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found = [(a, i < required, True) for i, a in enumerate(positional)][1 if skip_self else 0 :]
    found += [(a, default is None, False) for a, default in keywords]
    return [Parameter(a.arg, _plain(a.annotation, aliases), needed, place) for a, needed, place in found]


def _live_signature(target: Any) -> list[Parameter] | None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [Parameter(p.name, None, p.default is p.empty, p.kind is not p.KEYWORD_ONLY) for p in parameters]


def resolve(target: str) -> Any:
    """The function or class of a full name, imported.

    Raises:
        ImportError: if there is none.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ImportError(f"there is no {target!r} ({error})") from error
