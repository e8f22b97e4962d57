"""Make the tables of docs/scaling.md, print them, and put them in their places there."""

import argparse
import re
from pathlib import Path

from scaling import tables

TABLES = {
    "assumptions": tables.assumptions,
    "networks": tables.counted,
    "communication": tables.communication,
    "weak": tables.weak,
    "strong": tables.strong,
    "sharded": tables.sharded,
    "data": tables.data,
    "extras": tables.extras,
}
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/scaling", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--print", action="store_true", dest="only_print", help="leave docs/ as it is")
    arguments = parser.parse_args()
    for name in arguments.only or TABLES:
        lines = TABLES[name]()
        print(f"\n{name}\n", *lines, sep="\n", flush=True)
        if not arguments.only_print:
            _keep(name, lines)


def _keep(name: str, lines: list[str]) -> None:
    """Replace the table between the two comments that bear its name."""
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = f"<!-- scripts/scaling --only {name} writes from here -->", f"<!-- to here: {name} -->"
    place = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise SystemExit(f"{DOCUMENT} has no place for {name}")
    table = "\n".join([begin, *lines, end])
    DOCUMENT.write_text(place.sub(lambda _: table, text), encoding="utf-8")


if __name__ == "__main__":
    main()
