"""Carry out the recipes, and compare the bits of all they make with recorded.json."""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

JOBS = 2  # recipes at a time, each on one core


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/digests", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write what is computed now, to be compared with later")
    parser.add_argument("--only", metavar="NAME", action="append", help="this recipe alone (may be given again)")
    parser.add_argument("--list", action="store_true", help="the names of all recipes, and their commands")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its sums depend on it
    from digests import recipes, recorded

    if arguments.list:
        print("\n".join(recipes.listed()))
        return 0
    unknown = set(arguments.only or []) - set(recipes.names())
    if unknown:
        parser.error(f"no such recipe: {', '.join(sorted(unknown))}; --list shows them")
    kept = recorded.read()
    if not (arguments.record and arguments.only is None):
        other = recorded.difference(kept)
        if other:
            print(other)
            return 2
    began = time.monotonic()
    found, failed = _carried_out(arguments.only or recipes.names(), None if arguments.record else kept)
    print(f"{len(found)} recipes, {time.monotonic() - began:.0f} s")
    if arguments.record and not failed:
        recorded.write(found if arguments.only is None else kept["recipes"] | found)
    return int(failed)


def _carried_out(names: list[str], kept: dict | None) -> tuple[dict[str, dict[str, str]], bool]:
    """The digests of each recipe, and whether one failed or, where there is something kept, differs from it."""
    import pytest

    from digests import material, recipes, recorded, runs

    place = Path(tempfile.mkdtemp(prefix="digests-"))
    found, failed = {}, False
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            material.make(place / "material", monkeypatch)
            runs.preload()
            with ProcessPoolExecutor(JOBS, mp_context=multiprocessing.get_context("fork")) as pool:
                jobs = {pool.submit(recipes.carry_out, name, place / name): name for name in names}
                for job in as_completed(jobs):
                    name = jobs[job]
                    try:
                        found[name] = job.result()
                    except Exception as error:
                        failed = True
                        print(f"FAILED   {name}: {error}", flush=True)
                        continue
                    changed = [] if kept is None else recorded.changes(kept["recipes"].get(name, {}), found[name])
                    failed = failed or bool(changed)
                    said = "recorded" if kept is None else "differs " if changed else "same    "
                    print(f"{said} {name}{': ' if changed else ''}{', '.join(changed)}", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return found, failed


if __name__ == "__main__":
    sys.exit(main())
