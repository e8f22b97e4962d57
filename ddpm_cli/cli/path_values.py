"""Quotes paths, as people type them, for Hydra's grammar, in which `~`, `=`, brackets and umlauts are not text."""

import os
import re

from ddpm_cli.config.paths import PATHS
from ddpm_cli.io.command_line import hydra_quoted

RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"
_READABLE = re.compile(r"([\w./+@%:*?|$-]|\$\{[^}]*\})+( +([\w./+@%:*?|$-]|\$\{[^}]*\})+)*", re.ASCII)
_FUNCTION = re.compile(
    r"(bool|choice|extend_list|float|glob|int|interval|json_str|range|shuffle|sort|str|tag)\(.*\)", re.DOTALL
)


def readable(override: str, *, sweep: bool) -> str:
    """An override; if it sets a path, quoted if Hydra cannot read it otherwise.

    Quotes, lists, escapes and functions of the user's own are left to Hydra, and so is a comma: with `-m`, it stands
    between two paths, otherwise it is refused.
    """
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if name not in (*PATHS, RUN_DIR, SWEEP_DIR) or re.match(r"['\"\[{]|$", value) or "\\" in value:
        return override
    if _FUNCTION.fullmatch(value) or ("," in value and (not sweep or re.search(r"['\"]|\$\{", value))):
        return override
    paths = value.split(",") if sweep else [value]
    if name == SWEEP_DIR:  # Hydra makes it
        paths = [os.path.expanduser(path) for path in paths]
    return f"{key}{equals}{','.join(path if _READABLE.fullmatch(path) else hydra_quoted(path) for path in paths)}"
