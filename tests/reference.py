"""Make docs/reference.md out of configs/: every option of every group, every key with its default and its comment."""

import re
from collections.abc import Iterator
from pathlib import Path

from ddpm_cli.config.comments import Commented, Option, read_comments
from ddpm_cli.config.shipped import configs_directory, groups

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
BEGINNING = """# Reference

Every option of `ddpm-train`, `ddpm-sample`, `ddpm-eval`, `ddpm-import` and `ddpm-export`. `scripts/reference` generates
this page from the YAML files in [configs/](../configs). `GROUP=OPTION` chooses an option of a group, `KEY=VALUE` sets a
value.
"""
COMMANDS = ("train", "sample", "eval", "import", "export")
# What a file has where the number of channels follows the background; at the background of the file.
_CHANNELS = "${channels:${.background}}"
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
    yield from ("| key | default | meaning |", "| --- | --- | --- |")
    for option in command.options:
        if option.key not in groups(name):
            yield f"| `{option.key}` | {_default(option)} | {option.meaning} |"


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
    rows = list(_rows(name, comments))
    if rows:
        yield from ("", "| key | of | default | meaning |", "| --- | --- | --- | --- |", *rows)


def _named(file: Path, group: str) -> Commented:
    """A file's comments, with the whole keys: most files hold their group's alone."""
    found = read_comments(file)
    if "# @package _global_" in file.read_text(encoding="utf-8"):
        return found
    package = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))  # one of several: logger.wandb
    place = group if package is None else package[1]
    options = [Option(f"{place}.{option.key}", option.value, option.meaning) for option in found.options]
    return Commented(found.meaning, found.defaults, options)


def _rows(group: str, comments: dict[str, Commented]) -> Iterator[str]:
    """A row for each key, value and meaning, with the options that agree on it."""
    rows: dict[Option, list[str]] = {}
    for name, file in comments.items():
        for option in file.options:
            if option.key.startswith(f"{group}."):
                rows.setdefault(option, []).append(f"`{name}`")
    order = list(dict.fromkeys(option.key for option in rows))
    for option in sorted(rows, key=lambda option: order.index(option.key)):
        of = "" if len(rows[option]) == len(comments) else ", ".join(rows[option])
        yield f"| `{option.key}` | {of} | {_default(option)} | {option.meaning} |"


def _default(option: Option) -> str:
    if option.value == _CHANNELS:
        return "`3`"
    follows = _FOLLOWS_THE_SIZE.fullmatch(option.value)
    value = option.value if follows is None else follows[1]
    return "must be given" if value == "???" else f"`{value}`"


if __name__ == "__main__":
    main()
