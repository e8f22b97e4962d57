"""Reads the comments of YAML files, which are the one place where the meaning of options is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

_OF_HYDRA = ("_target_", "_partial_", "hydra")  # keys that are no options


@dataclass(frozen=True)
class Option:
    """A key with the value and the comment that a YAML file gives it."""

    key: str  # dotted
    value: str  # as it is spelt there
    meaning: str  # the comment as one line of text, empty if there is none


@dataclass(frozen=True)
class Commented:
    """A YAML file with its comments."""

    meaning: str  # what stands at its top
    defaults: list[Option]  # the entries GROUP: OPTION of its defaults list
    options: list[Option]


def read_comments(file: Path) -> Commented:
    """A YAML file's options, and what its comments say of them.

    A comment is about the key before which it stands in its line, or, in lines of its own, about the key below it. It
    goes on in the lines that follow, where `#` is further to the right than the key.
    """
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    top = 0
    while top < len(lines) and lines[top].startswith("#"):
        top += 1
    meaning = _text(line for line in lines[:top] if not line.startswith("# @package"))
    options = list(_options(yaml.compose(text), text, [""] * top + lines[top:], ""))
    defaults = [
        Option(option.key.removeprefix("defaults."), option.value, option.meaning)
        for option in options
        if option.key.startswith("defaults.")
    ]
    return Commented(meaning, defaults, [option for option in options if not option.key.startswith("defaults")])


def _options(node: yaml.Node | None, text: str, lines: list[str], path: str) -> Iterator[Option]:
    if isinstance(node, yaml.SequenceNode):  # a defaults list
        for item in node.value:
            yield from _options(item, text, lines, path)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{path}{key.value}"
        if key.value in _OF_HYDRA:
            continue
        if isinstance(value, yaml.MappingNode) or name == "defaults":
            yield from _options(value, text, lines, f"{name}.")
        else:
            spelt = text[value.start_mark.index : value.end_mark.index]
            yield Option(name, spelt, _comment(key.start_mark, value.end_mark, lines))


def _comment(begin: yaml.Mark, end: yaml.Mark, lines: list[str]) -> str:
    first, after = begin.line, end.line + 1
    while first > 0 and lines[first - 1].startswith(f"{' ' * begin.column}#"):
        first -= 1
    while after < len(lines) and lines[after].lstrip().startswith("#") and _indent(lines[after]) > begin.column:
        after += 1
    beside = [line[end.column :] for line in lines[end.line : end.line + 1] if "#" in line[end.column :]]
    return _text([*lines[first : begin.line], *beside, *lines[end.line + 1 : after]])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _text(comments: Iterator[str] | list[str]) -> str:
    return " ".join(comment.strip().removeprefix("#").strip() for comment in comments).strip()
