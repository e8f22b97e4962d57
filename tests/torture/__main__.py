"""`scripts/torture`: make every trial, print the table, and keep it in docs/explanation/reliability.md."""

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Modules of this package with the rows they make, in the table's order. Imported late: processes that decode images
# import this module again, and need none of it.
ROWS = {
    "kills": ["sigkill_at_random_moments", "sigterm_at_random_moments", "two_trainers"],
    "surroundings": ["sighup_at_random_moments", "console_lost_at_random_moments", "ends_disturbed"],
    "evaluations": ["evaluations_killed_at_random_moments"],
    "saves": ["sigkill_at_every_call", "power_loss", "errors_at_every_call", "no_room"],
    "places": ["lacking_disks"],
    "damage": ["damaged_files", "flips_elsewhere"],
    "hostile": ["hostile_checkpoints"],
    "foreign": ["foreign_records"],
    "numbers": ["not_finite"],
    "pictures": ["bad_images"],
    "exchanged": ["data_exchanged"],
    "lines": ["malformed_command_lines"],
    "together": ["a_rank_is_killed", "a_decoding_process_is_killed"],
    "confused": ["confused_runs"],
    "cost": ["cost_of_saving"],
}
ALONE = ("cost_of_saving",)  # measures time: nothing else may run
QUICK = 0.05  # of the trials
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "reliability.md"
HEAD = ("| fault | figure | row | seconds |", "| --- | --- | --- | --- |")
BEGIN, END = "<!-- scripts/torture writes from here -->", "<!-- to here -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:.0%}% of the trials, and no change to docs/")
    parser.add_argument("--only", metavar="NAME", action="append", help="this row alone (may be given again)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and bits (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="rows at a time (default: one per CPU)")
    arguments = parser.parse_args()
    modules = {row: module for module, rows in ROWS.items() for row in rows}
    unknown = set(arguments.only or []) - set(modules)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(modules)}")
    from torture.trials import Row, Setting, preload

    preload()
    began, place = time.monotonic(), Path(tempfile.mkdtemp(prefix="torture-"))
    settings = {
        name: Setting(place / name, arguments.seed, QUICK if arguments.quick else 1.0)
        for name in arguments.only or modules
    }
    made: dict[str, tuple[Row, float]] = {}
    for name, row, seconds in _made(settings, modules, max(1, arguments.jobs)):
        made[name] = row, seconds
        print(f"{'FAILED' if row.failures else 'held'}  {row.fault}: {row.figure}  ({seconds:.0f} s)")
        for failure in row.failures[:20]:
            print(f"    {failure}")
        sys.stdout.flush()
    failed = [name for name, (row, _) in made.items() if row.failures]
    for name in settings:
        if name not in failed:
            shutil.rmtree(place / name, ignore_errors=True)
    if failed:
        print(f"what is left of the failed trials: {place}")
    else:
        shutil.rmtree(place, ignore_errors=True)
    lines = {
        name: f"| {row.fault} | {row.figure} | `{name}` | {seconds:.0f} |" for name, (row, seconds) in made.items()
    }
    print("", *HEAD, *(lines[name] for name in settings), f"\n{time.monotonic() - began:.0f} s in all", sep="\n")
    if not arguments.quick:
        _keep({name: line for name, line in lines.items() if name not in failed}, list(modules))
    sys.exit(1 if failed else 0)


def _keep(lines: dict[str, str], names: list[str]) -> None:
    """Put these rows into the document's table, in place of what it has of them."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    old, _, after = rest.partition(END)
    for line in old.splitlines():
        for name in names:
            if f"| `{name}` |" in line:
                lines.setdefault(name, line)
    table = "\n".join([*HEAD, *(lines[name] for name in names if name in lines)])
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _made(settings: dict, modules: dict[str, str], jobs: int) -> Iterator[tuple]:
    """Each row's name, the row and how many seconds it took, as they are finished; each is made in its own process."""
    together = [name for name in settings if name not in ALONE]
    for names, at_once in ((together, jobs), ([name for name in settings if name in ALONE], 1)):
        waiting, under_way = list(names), {}
        while waiting or under_way:
            while waiting and len(under_way) < at_once:
                name = waiting.pop(0)
                ours, theirs = multiprocessing.Pipe(duplex=False)
                process = multiprocessing.get_context("fork").Process(
                    target=_make, args=(theirs, modules[name], name, settings[name])
                )
                process.start()
                theirs.close()
                under_way[ours] = process
            finished: list[Any] = wait(list(under_way))
            for ready in finished:
                yield ready.recv()
                under_way.pop(ready).join()


def _make(result: Connection, module: str, name: str, setting) -> None:
    from torture.trials import Row

    began = time.monotonic()
    try:
        setting.place.mkdir()
        row = getattr(importlib.import_module(f"torture.{module}"), name)(setting)
    except Exception:
        row = Row(name, "could not be made", traceback.format_exc().splitlines())
    result.send((name, row, time.monotonic() - began))


if __name__ == "__main__":
    main()
