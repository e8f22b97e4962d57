"""Make docs/reference/options.md out of configs/: every option of every group, its keys, defaults and comments."""

import re
from collections.abc import Iterator
from pathlib import Path

from option_types import Annotation, annotations, in_words, package
from ranges import split_range

from ddpm_cli.config.comments import Commented, Option, read_comments
from ddpm_cli.config.shipped import configs_directory, groups

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reference" / "options.md"
BEGINNING = """# Every option

Every option of `ddpm-train`, `ddpm-sample`, `ddpm-eval`, `ddpm-import` and `ddpm-export`. `scripts/reference` generates
this page from the YAML files in `configs/`. `GROUP=OPTION` chooses an option of a group, `KEY=VALUE` sets a
value. A range that is given with a list is that of each number in it.
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
    yield from ("| key | default | values | meaning |", "| --- | --- | --- | --- |")
    types = annotations(configs_directory() / f"{name}.yaml")
    for option in command.options:
        if option.key not in groups(name):
            yield f"| `{option.key}` | {_default(option)} | {_described(option, types)} |"


def _described(option: Option, types: dict[str, Annotation]) -> str:
    """Two cells: the values that a key takes, and its meaning."""
    meaning, limits = split_range(option.meaning)
    meaning = meaning.replace("|", r"\|")  # which would end the cell
    return f"{in_words(types.get(option.key), limits)} | {meaning}"


def _group(name: str, meaning: str) -> Iterator[str]:
    files = {file.stem: file for file in sorted((configs_directory() / name).glob("*.yaml"))}
    comments = {option: named(file) for option, file in files.items()}
    yield from (f"## {name}", "", meaning, "", "| option | |", "| --- | --- |")
    for option, found in comments.items():
        chooses = [f"`{other.key.removeprefix('override /')}={other.value}`" for other in found.defaults]
        sets = [f"`{o.key}={o.value}`" for o in found.options if not o.key.startswith(f"{name}.")]
        also = f" Chooses {', '.join(chooses)}." if chooses else ""
        also += f" Sets {', '.join(sets)}." if sets else ""
        yield f"| `{option}` | {found.meaning}{also} |"
    rows = list(_rows(name, comments, {option: annotations(file) for option, file in files.items()}))
    if rows:
        yield from ("", "| key | of | default | values | meaning |", "| --- | --- | --- | --- | --- |", *rows)


def named(file: Path) -> Commented:
    """A file's comments, with the whole keys."""
    found, place = read_comments(file), package(file)
    if place is None:
        return found
    options = [Option(f"{place}.{option.key}", option.value, option.meaning) for option in found.options]
    return Commented(found.meaning, found.defaults, options)


def _rows(group: str, comments: dict[str, Commented], types: dict[str, dict[str, Annotation]]) -> Iterator[str]:
    """A row for each key, default and description, with the options that agree on it."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, file in comments.items():
        for option in file.options:
            if option.key.startswith(f"{group}."):
                row = (option.key, _default(option), _described(option, types[name]))
                rows.setdefault(row, []).append(f"`{name}`")
    order = list(dict.fromkeys(key for key, _, _ in rows))
    for row in sorted(rows, key=lambda row: order.index(row[0])):
        key, default, described = row
        of = "" if len(rows[row]) == len(comments) else ", ".join(rows[row])
        yield f"| `{key}` | {of} | {default} | {described} |"


def _default(option: Option) -> str:
    if option.value == _CHANNELS:
        return "`3`"
    follows = _FOLLOWS_THE_SIZE.fullmatch(option.value)
    value = option.value if follows is None else follows[1]
    return "must be given" if value == "???" else f"`{value}`"


if __name__ == "__main__":
    main()
