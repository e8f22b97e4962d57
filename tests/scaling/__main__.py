"""Make the tables of docs/explanation/scaling.md, print them, and put them in their places there."""

import argparse
from pathlib import Path

import tables_in_docs

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
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "scaling.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/scaling", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--print", action="store_true", dest="only_print", help="leave docs/ as it is")
    arguments = parser.parse_args()
    for name in arguments.only or TABLES:
        lines = TABLES[name]()
        print(f"\n{name}\n", *lines, sep="\n", flush=True)
        if not arguments.only_print:
            tables_in_docs.write(DOCUMENT, f"scripts/scaling --only {name}", name, lines)


if __name__ == "__main__":
    main()
