"""Resolves names in a module from its source: nothing is run, and torch is not imported."""

import ast
import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

Definition = ast.FunctionDef | ast.ClassDef
_INSTALLED = {"site-packages", "dist-packages"}  # folders of packages that pip and the system install


@dataclass(frozen=True)
class Module:
    """The top-level definitions in a module's source."""

    name: str
    names: dict[str, Definition | ast.expr]  # what is defined there, and what is assigned
    imported: dict[str, tuple[str, str]]  # by `from MODULE import NAME`: (module, name)


def read(name: str) -> Module:
    """Read a module, importing only its parent packages; an empty one if it has no source."""
    module = Module(name, {}, {})
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return module
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return module
    for item in _parse(Path(spec.origin)):
        match item:
            case ast.FunctionDef() | ast.ClassDef():
                module.names[item.name] = item
            case ast.Assign(targets=[ast.Name(id=alias)], value=value):
                module.names[alias] = value
            case ast.ImportFrom(module=origin, level=level, names=names):
                path = importlib.util.resolve_name("." * level + (origin or ""), spec.parent)
                module.imported.update({alias.asname or alias.name: (path, alias.name) for alias in names})
    return module


@functools.cache
def _parse(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


def lookup(name: str, module: Module) -> tuple[Definition | ast.expr, Module] | None:
    """The definition of a name in a module, and the module that has it, as far as imports can be followed.

    They lead into the importer's own package, ours, and the user's modules. Of Python and of other installed packages
    nothing is read: to find a part of a package is to import it, and their sources are long.
    """
    seen = set()
    while name not in module.names:
        origin = module.imported.get(name)
        if origin is None or origin in seen or not _may_be_read(origin[0], module.name):
            return None
        seen.add(origin)
        module, name = read(origin[0]), origin[1]
    return module.names[name], module


def _may_be_read(name: str, importer: str) -> bool:
    package = name.partition(".")[0]
    if package in (importer.partition(".")[0], __name__.partition(".")[0]):
        return True
    if package in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        return False
    return spec is not None and spec.origin is not None and _INSTALLED.isdisjoint(Path(spec.origin).parts)
