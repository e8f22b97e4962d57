"""Make the tables of docs/explanation/quality.md, print them, and put them in their places there.

Each takes about an hour of two cores. What has been trained and evaluated stays in --directory: the same command goes
on there.
"""

import argparse
import os
import time
import warnings
from functools import partial
from pathlib import Path

import tables_in_docs

DOCS = Path(__file__).resolve().parents[2] / "docs" / "explanation"
DOCUMENT = DOCS / "quality.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench --quality", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--seconds", type=float, default=120, help="of training, where times are equal (default 120)")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--directory", type=Path, default=Path("outputs/quality"), help="default outputs/quality")
    parser.add_argument("--print", action="store_true", dest="only_print", help="leave docs/ as it is")
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # accelerate would take a GPU that is there
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of peers
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    arguments.directory = arguments.directory.resolve()
    for name in arguments.only or TABLES:
        began = time.monotonic()
        lines = TABLES[name](arguments)
        print(f"\n{name} ({time.monotonic() - began:.0f} s)\n", *lines, sep="\n", flush=True)
        if not arguments.only_print:
            tables_in_docs.write(DOCUMENT, f"scripts/bench --quality --only {name}", name, lines)


def _equal_time(name: str, arguments: argparse.Namespace) -> list[str]:
    from quality import equal_time

    (arguments.directory / name).mkdir(parents=True, exist_ok=True)
    picture = arguments.directory if arguments.only_print else DOCS
    return equal_time.lines(
        name,
        arguments.directory,
        seconds=arguments.seconds,
        seeds=arguments.seeds,
        picture=picture / f"quality_{name}.png",
    )


def _recipes(arguments: argparse.Namespace) -> list[str]:
    from quality import recipes

    return recipes.lines(arguments.directory, seeds=arguments.seeds)


def _autoguidance(arguments: argparse.Namespace) -> list[str]:
    from quality import autoguidance

    picture = (arguments.directory if arguments.only_print else DOCS) / "quality_autoguidance.png"
    return autoguidance.lines(arguments.directory, seeds=arguments.seeds, picture=picture)


TABLES = {
    "digits": partial(_equal_time, "digits"),
    "mnist": partial(_equal_time, "mnist"),
    "recipes": _recipes,
    "autoguidance": _autoguidance,
}


if __name__ == "__main__":
    main()
