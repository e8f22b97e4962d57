"""What a reader may rely on: no function of the package is long, or takes more than can be kept apart by position."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "ddpm_cli"
MOST_LINES = 50  # beside the docstring
MOST_POSITIONAL = 6
# With the reason, which stands beside each of them too.
LONGER = {
    "models/unet.py UNet.__init__": "the network, top to bottom, as a figure of it would show it",
    "data/folder.py folder": "long by its options, which are those of its YAML file",
    "data/huggingface.py huggingface": "likewise",
    "data/webdataset.py webdataset": "likewise",
}
MORE_POSITIONAL = {
    "models/unet.py UNet.__init__": "the order of its arguments is promised to users",
}


def functions() -> dict[str, ast.FunctionDef]:
    found = {}
    for module in PACKAGE.rglob("*.py"):
        name = module.relative_to(PACKAGE).as_posix()
        tree = ast.parse(module.read_text(encoding="utf-8"))
        owners = {
            id(item): f"{node.name}." for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found[f"{name} {owners.get(id(node), '')}{node.name}"] = node
    return found


def lines(function: ast.FunctionDef) -> int:
    assert function.end_lineno is not None
    first = function.body[0]
    assert first.end_lineno is not None
    documented = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)


def positional(function: ast.FunctionDef) -> int:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_functions_are_short():
    assert {name for name, function in functions().items() if lines(function) > MOST_LINES} == set(LONGER)


def test_arguments_are_few_or_named():
    many = {name for name, function in functions().items() if positional(function) > MOST_POSITIONAL}
    assert many == set(MORE_POSITIONAL)
