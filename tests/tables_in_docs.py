"""Tables that scripts make, in their places in docs/."""

import re
from collections.abc import Sequence
from pathlib import Path


def write(document: Path, command: str, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between the two comments that name the command which makes it, and the table.

    Raises SystemExit if the document has not one place for it.
    """
    found = _place(document, command, name)
    before, after = found.string[: found.start(1)].rstrip("\n"), found.string[found.end(1) :]
    document.write_text("\n".join([before, *lines, after]), encoding="utf-8")


def read(document: Path, command: str, name: str) -> list[str]:
    """The lines that stand there. Raises SystemExit as `write` does."""
    return _place(document, command, name)[1].splitlines()


def _place(document: Path, command: str, name: str) -> re.Match[str]:
    begin, end = f"<!-- {command} writes from here -->\n", f"<!-- to here: {name} -->"
    found = list(
        re.finditer(f"{re.escape(begin)}(.*?){re.escape(end)}", document.read_text(encoding="utf-8"), re.DOTALL)
    )
    if len(found) != 1:
        raise SystemExit(f"{document.name} has no place for {name}")
    return found[0]
