"""Make docs/reference/options.md out of configs/: every option of every group, its keys, defaults and comments."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from ddpm_cli.config.comments import Commented, Option, read_comments
from ddpm_cli.config.common_options import common_options
from ddpm_cli.config.shipped import configs_directory, groups
from ddpm_cli.config.signatures import signature

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reference" / "options.md"
BEGINNING = """# Every option

Every option of `ddpm-train`, `ddpm-sample`, `ddpm-eval`, `ddpm-import` and `ddpm-export`. `scripts/reference` generates
this page from the YAML files in `configs/`. `GROUP=OPTION` chooses an option of a group, `KEY=VALUE` sets a
value.
"""
COMMANDS = ("train", "sample", "eval", "import", "export")
# What a file has where the number of channels follows the background; at the background of the file.
_CHANNELS = "${channels:${.background}}"
# How types are called; those that a YAML file has another name for.
_TYPES = {"int": "whole number", "float": "number", "bool": "`true`, `false`", "str": "text", "None": "`null`"}
# What a U-Net's file has where its levels follow the image size; the list is what they are at the size of the file.
_FOLLOWS_THE_SIZE = re.compile(r"\$\{\w+:\$\{\.image_size\},\d+,(\[.*\])\}")


def main() -> None:
    DOCUMENT.write_text(page(), encoding="utf-8")
    print(DOCUMENT)


def page() -> str:
    """The whole page, in Markdown."""
    lines = [BEGINNING]
    commands = {name: read_comments(configs_directory() / f"{name}.yaml") for name in COMMANDS}
    meanings: dict[str, list[str]] = {}
    for name, command in commands.items():
        lines += [f"## ddpm-{name}", "", *_chosen(command), "", *_values(command, name), ""]
        for group in command.defaults:
            meanings.setdefault(group.key, []).append(f"For `ddpm-{name}`: {group.meaning}.")
    for name in dict.fromkeys(group for command in COMMANDS for group in groups(command)):
        lines += [*_group(name, " ".join(meanings[name])), ""]
    return "\n".join(lines).rstrip() + "\n"


def _chosen(command: Commented) -> Iterator[str]:
    yield from ("| group | default | what it decides |", "| --- | --- | --- |")
    for group in command.defaults:
        if not group.key.startswith("override"):
            yield f"| [`{group.key}`](#{group.key}) | `{group.value}` | {group.meaning} |"


def _values(command: Commented, name: str) -> Iterator[str]:
    yield from ("| key | default | values | meaning |", "| --- | --- | --- | --- |")
    types = _types(f"ddpm_cli.config.{name}_options.{name.capitalize()}Options")
    for option in command.options:
        if option.key not in groups(name):
            group, _, key = option.key.rpartition(".")
            of_key = types.get(key, "") if not group else _types_of_part(name, group).get(key, "")
            yield f"| `{option.key}` | {_default(option)} | {of_key} | {option.meaning} |"


def _group(name: str, meaning: str) -> Iterator[str]:
    files = {file.stem: file for file in sorted((configs_directory() / name).glob("*.yaml"))}
    comments = {option: _named(file, name) for option, file in files.items()}
    yield from (f"## {name}", "", meaning, "", "| option | |", "| --- | --- |")
    for option, found in comments.items():
        chooses = [f"`{other.key.removeprefix('override /')}={other.value}`" for other in found.defaults]
        sets = [f"`{o.key}={o.value}`" for o in found.options if not o.key.startswith(f"{name}.")]
        also = f" Chooses {', '.join(chooses)}." if chooses else ""
        also += f" Sets {', '.join(sets)}." if sets else ""
        yield f"| `{option}` | {found.meaning}{also} |"
    rows = list(_rows(name, comments, _types_of_group(files.values())))
    if rows:
        yield from ("", "| key | of | default | values | meaning |", "| --- | --- | --- | --- | --- |", *rows)


def _named(file: Path, group: str) -> Commented:
    """A file's comments, with the whole keys: most files hold their group's alone."""
    found = read_comments(file)
    if "# @package _global_" in file.read_text(encoding="utf-8"):
        return found
    package = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))  # one of several: logger.wandb
    place = group if package is None else package[1]
    options = [Option(f"{place}.{option.key}", option.value, option.meaning) for option in found.options]
    return Commented(found.meaning, found.defaults, options)


def _rows(group: str, comments: dict[str, Commented], types: dict[str, str]) -> Iterator[str]:
    """A row for each key, value and meaning, with the options that agree on it."""
    rows: dict[Option, list[str]] = {}
    for name, file in comments.items():
        for option in file.options:
            if option.key.startswith(f"{group}."):
                rows.setdefault(option, []).append(f"`{name}`")
    order = list(dict.fromkeys(option.key for option in rows))
    for option in sorted(rows, key=lambda option: order.index(option.key)):
        of = "" if len(rows[option]) == len(comments) else ", ".join(rows[option])
        values = types.get(option.key.rpartition(".")[2], "")
        yield f"| `{option.key}` | {of} | {_default(option)} | {values} | {option.meaning} |"


def _types_of_group(files: Iterable[Path]) -> dict[str, str]:
    """What the keys of a group take, by the signatures of what its options build."""
    types: dict[str, str] = {}
    for file in files:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for node in (found, *found.values()):
            if isinstance(node, dict) and "_target_" in node:
                types |= _types(node["_target_"])
    return types


def _types_of_part(command: str, part: str) -> dict[str, str]:
    """What keys such as `init.path` take, that are of no group."""
    if part == "init":
        return _types("ddpm_cli.config.init_options.InitOptions")
    if command == "eval":
        return _types("ddpm_cli.config.eval_options.DataPlace")
    return {key: _type(parameter.annotation) for key, parameter in common_options(part).items()}


def _types(target: str) -> dict[str, str]:
    return {parameter.name: _type(parameter.annotation) for parameter in signature(target) or []}


def _type(annotation: ast.expr | None) -> str:
    """What a YAML file may hold there, in words."""
    match annotation:
        case None:
            return ""
        case ast.Constant(value=None):
            return _TYPES["None"]
        case ast.Name(id=name):
            return _TYPES.get(name, "a group" if name == "dict" else name)
        case ast.BinOp(left=left, right=right):
            return ", ".join(dict.fromkeys(filter(None, (_type(left), _type(right)))))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=values)):
            return ", ".join(f"`{value.value}`" for value in values if isinstance(value, ast.Constant))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=value)):
            return f"`{value}`"
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[item, ast.Constant(value=value)])) if (
            value is Ellipsis
        ):
            return _list_of(item)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=items)):
            return f"[{', '.join(_type(item) for item in items)}]"
        case ast.Subscript(value=ast.Name(id=name), slice=item) if name in ("list", "Sequence"):
            return _list_of(item)
        case ast.Subscript(value=ast.Name(id="dict")):
            return "a group"
    return f"`{ast.unparse(annotation)}`"


def _list_of(item: ast.expr) -> str:
    of = _type(item)
    return f"list of {of}s" if of in _TYPES.values() else f"list of: {of}"


def _default(option: Option) -> str:
    if option.value == _CHANNELS:
        return "`3`"
    follows = _FOLLOWS_THE_SIZE.fullmatch(option.value)
    value = option.value if follows is None else follows[1]
    return "must be given" if value == "???" else f"`{value}`"


if __name__ == "__main__":
    main()
