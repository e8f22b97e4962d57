"""The command line that trains a run again: as it was typed, if that is recorded, else made from its configuration."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ddpm_cli.comparison.flat_config import DECIDE_NOTHING
from ddpm_cli.comparison.run import Run
from ddpm_cli.config.shipped import configs_directory, groups, options_by_target
from ddpm_cli.io.command_line import command, hydra_text, word

COMMAND = "ddpm-train"
LONGEST = 20_000  # characters
# With them the run that is there would be resumed, or its place taken.
_OF_THE_RUN = ("name", "output_dir", "resume", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,null)?\}")
_ABSENT = object()


def command_again(run: Run) -> str | None:
    """A shell command that trains a new run with the same configuration; None if the records do not suffice."""
    if run.overrides is not None:
        overrides = [text for text in run.overrides if text.lstrip("+~").partition("=")[0] not in _OF_THE_RUN]
    else:
        found = _overrides(run.nodes or {})
        if found is None:
            return None
        overrides = found
    line = command(COMMAND, *overrides)
    if run.identity is not None and run.identity.begun_in is not None:
        line = f"cd {word(run.identity.begun_in)} && {line}"
    return line if len(line) <= LONGEST else None


def _overrides(nodes: Mapping[str, Any]) -> list[str] | None:
    """Overrides that turn our own YAML files into this configuration; None if there are none.

    Hydra lays `data`, which is a recipe for other groups too, over these, and the command line over all.
    """
    forked = nodes.get("fork") is not None  # then what is not said is as the other run has it
    recipes = _candidates(nodes, "data")
    best: list[str] | None = None
    for recipe in recipes:
        found = _with_recipe(nodes, recipe, forked)
        if found is not None and (best is None or len(found) < len(best)):
            best = found
    return best


def _candidates(nodes: Mapping[str, Any], group: str) -> list[str]:
    node = nodes.get(group)
    target = node.get("_target_") if isinstance(node, dict) else None
    return options_by_target(group).get(target, []) if isinstance(target, str) else []


def _with_recipe(nodes: Mapping[str, Any], recipe: str, forked: bool) -> list[str] | None:
    content = _yaml("data", recipe)
    implied = _implied(content)
    chosen, values = [], []
    for group in groups("train"):
        node = nodes.get(group)
        if group == "data":
            chosen += [f"data={recipe}"] if recipe != groups("train")["data"] or forked else []
            base, laid_over = {**_first().get("data", {}), **content.get("data", {})}, {}
        elif node is None or group in DECIDE_NOTHING:  # an older version had no such group, or nothing is chosen
            continue
        else:
            option = _nearest(nodes, group, implied.get(group), content)
            if option is None:
                return None
            chosen += [f"{group}={option}"] if option != implied.get(group) or forked else []
            base, laid_over = _yaml(group, option), content.get(group, {})
        found = list(_changes(group, node, base, laid_over, nodes))
        if None in found:
            return None
        values += [text for text in found if text is not None]
    return [*chosen, *_top_level(nodes, forked), *values]


def _implied(recipe: Mapping[str, Any]) -> dict[str, str | None]:
    """The option of each group that the defaults and a data recipe choose."""
    entries = [entry for entry in recipe.get("defaults", []) if isinstance(entry, dict)]
    chosen = {key.removeprefix("override /"): option for entry in entries for key, option in entry.items()}
    return {**groups("train"), **chosen}


def _nearest(nodes: Mapping[str, Any], group: str, implied: str | None, recipe: Mapping[str, Any]) -> str | None:
    """The option of a group that needs the fewest changes; None if none of ours has this class."""

    def changes(option: str) -> tuple[int, bool]:
        found = list(_changes(group, nodes[group], _yaml(group, option), recipe.get(group, {}), nodes))
        return len(found), option != implied

    return min(_candidates(nodes, group), key=changes, default=None)


def _top_level(nodes: Mapping[str, Any], forked: bool) -> Iterator[str]:
    ours = _first()
    of_none = ("hydra", "defaults", "init", *groups("train"), *_OF_THE_RUN)
    for key, value in nodes.items():
        if key in ours and key not in of_none and (value != ours[key] or forked):
            text = _text(value)
            if text is not None and not (forked and value is None):
                yield f"{key}={text}"
    init = nodes.get("init")
    if isinstance(init, dict) and init.get("path") is not None and not forked:
        said = {name: _text(value) for name, value in init.items() if value != ours["init"].get(name)}
        yield from (f"init.{name}={text}" for name, text in said.items() if text is not None)


def _changes(key: str, value: Any, base: Any, laid_over: Any, nodes: Mapping[str, Any]) -> Iterator[str | None]:
    """Overrides for what of a configuration is not as two YAML files have it, the second over the first; None: none can
    say it."""
    if isinstance(value, dict) and isinstance(base, dict):
        over = laid_over if isinstance(laid_over, dict) else {}
        for name, inner in value.items():
            if name in ("_target_", "_partial_"):
                if inner != base.get(name, inner):
                    yield None
                continue
            yield from _changes(f"{key}.{name}", inner, base.get(name, _ABSENT), over.get(name, _ABSENT), nodes)
        return
    expected = base if laid_over is _ABSENT or laid_over == {} else laid_over
    if _followed(expected, nodes) == value:
        return
    text = _text(value) if _KEY.fullmatch(key) and expected is not _ABSENT else None
    yield None if text is None else f"{key}={text}"


def _followed(value: Any, nodes: Mapping[str, Any]) -> Any:
    """What a plain reference leads to, `${data.channels}`, or one to what may be missing; anything else as it is."""
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    node: Any = nodes
    for part in found[1].split("."):
        node = node.get(part, _ABSENT) if isinstance(node, dict) else _ABSENT
    return node


def _text(value: Any) -> str | None:
    """A value in Hydra's grammar; None if it cannot be written there."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return hydra_text(value)
    if isinstance(value, list) and len(value) <= 2000:
        inner = [_text(item) for item in value]
        return None if None in inner else f"[{','.join(text for text in inner if text is not None)}]"
    return None


@functools.cache
def _first() -> dict[str, Any]:
    """The values in train.yaml itself, which the chosen option of each group overrides."""
    return yaml.safe_load((configs_directory() / "train.yaml").read_text(encoding="utf-8"))


@functools.cache
def _yaml(group: str, option: str) -> dict[str, Any]:
    return yaml.safe_load((configs_directory() / group / f"{option}.yaml").read_text(encoding="utf-8"))
