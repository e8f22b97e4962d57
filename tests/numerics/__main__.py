"""Make the tables of docs/explanation/numerics.md, print them, and put them in their places there."""

import argparse
import importlib
import os
import time
from pathlib import Path

import tables_in_docs

# Tables, by the functions that make them. Imported late: workers import this module again.
TABLES = {
    "agreement": "numerics.agreement.table",
    "orders": "numerics.orders.table",
    "variants": "numerics.variants.table",
    "solvers": "numerics.solvers.table",
    "few_calls": "numerics.few_calls.table",
    "calls_picture": "numerics.calls_picture.table",
    "small_snr": "numerics.small_snr.table",
}
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "numerics.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/numerics", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="networks trained at a time (default: CPUs)")
    parser.add_argument("--steps", type=int, default=1000, help="of every training on digits (default 1000)")
    parser.add_argument("--print", action="store_true", dest="only_print", help="leave docs/ as it is")
    arguments = parser.parse_args()
    for name in arguments.only or TABLES:
        module, _, function = TABLES[name].rpartition(".")
        began = time.monotonic()
        lines = getattr(importlib.import_module(module), function)(jobs=arguments.jobs, steps=arguments.steps)
        print(f"\n{name} ({time.monotonic() - began:.0f} s)\n", *lines, sep="\n", flush=True)
        if not arguments.only_print:
            tables_in_docs.write(DOCUMENT, f"scripts/numerics --only {name}", name, lines)


if __name__ == "__main__":
    main()
