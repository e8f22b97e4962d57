"""Commands to copy and paste: KEY=VALUE in Hydra's grammar, and words quoted for bash and zsh."""

import re
import shlex
from pathlib import Path

from ddpm_cli.io.text import printable

_PLAIN = re.compile(r"[\w./+@%:-]+", re.ASCII)  # what Hydra reads as text, unless it looks like something else
_LOOKS_OTHERWISE = re.compile(r"[+-]?[\d._]*(e[+-]?\d+)?|[+-]?inf|[+-]?nan|true|false|null", re.IGNORECASE)


def command(program: str, *arguments: str) -> str:
    """A command line for a shell, with any arguments."""
    return " ".join([program, *map(word, arguments)])


def word(argument: str) -> str:
    """One argument quoted for bash and zsh, on one line, without characters that move the cursor."""
    if argument.startswith("="):  # zsh looks for a program of that name
        return f"'='{word(argument[1:])}"
    if printable(argument) == argument:
        return shlex.quote(argument)
    escaped = (c if c.isascii() and c.isprintable() and c not in "\\'" else _bytes(c) for c in argument)
    return f"$'{''.join(escaped)}'"


def override(key: str, value: str | Path) -> str:
    """KEY=VALUE that Hydra reads as exactly this text; not yet quoted for a shell."""
    return f"{key}={hydra_text(str(value))}"


def hydra_text(value: str) -> str:
    """A text quoted in Hydra's grammar, so that it is not read as a list, sweep, function, number or reference."""
    if _PLAIN.fullmatch(value) and not _LOOKS_OTHERWISE.fullmatch(value):
        return value
    return hydra_quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", value))  # for OmegaConf no reference


def hydra_quoted(value: str) -> str:
    """A text in quotes of Hydra's grammar; references in it, `${...}`, are still resolved."""
    quote = "'" if '"' in value else '"'  # double ones, if they do: the shell wants the others for itself
    # Backslashes before a quote, or at the end, Hydra would take for escapes.
    escaped = re.sub(rf"(\\*)({quote}|\Z)", lambda found: 2 * found[1] + (f"\\{quote}" if found[2] else ""), value)
    return f"{quote}{escaped}{quote}"


def _bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))
