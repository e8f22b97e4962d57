"""Tables that scripts make, in their places in docs/."""

import re
from collections.abc import Sequence
from pathlib import Path


def write(document: Path, command: str, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between the two comments that name the command which makes it, and the table.

    Raises SystemExit if the document has not one place for it.
    """
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- {command} writes from here -->", f"<!-- to here: {name} -->"
    place = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise SystemExit(f"{document.name} has no place for {name}")
    table = "\n".join([begin, *lines, end])
    document.write_text(place.sub(lambda _: table, text), encoding="utf-8")
