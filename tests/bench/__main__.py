"""Time ours and the peers in turn, print tables and keep those of a whole run in docs/explanation/performance.md."""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

# Imported late: what the device is decides what torch may see, and that must be said before it is imported.


def main() -> None:
    arguments = _arguments()
    if arguments.from_file is not None:
        from bench import tables

        figures = json.loads(Path(arguments.from_file).read_text(encoding="utf-8"))
        tables.keep(figures, tables.with_entries(figures))
        return
    _quiet(arguments.device)
    figures = measure(arguments)
    _print(figures)
    if figures["whole"] and not arguments.only_print:
        from bench import tables

        tables.keep(figures, figures["whole"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--config", action="append", choices=["digits", "cifar10", "folder_64", "tiny"], metavar="NAME",
        help="digits, cifar10 (both by default) or folder_64; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action="append", choices=["true", "false", "graphs"], help="ours, on CUDA; all three by default"
    )
    parser.add_argument(
        "--only", action="append", metavar="ROW", help="arithmetic, start-up, evaluation, training, ..."
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: minutes, and rougher figures")
    parser.add_argument("--minutes", type=float, help="begin no further row after so many")
    parser.add_argument("--out", metavar="FILE", help="write everything that was measured there, as JSON")
    parser.add_argument(
        "--from", metavar="FILE", dest="from_file", help="only put such a FILE into docs/explanation/performance.md"
    )
    parser.add_argument("--print", action="store_true", dest="only_print", help="leave docs/ as it is")
    return parser.parse_args()


def _quiet(device: str) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of peers
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # accelerate would take a GPU that is there
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def measure(arguments: argparse.Namespace) -> dict:
    """Everything that was asked for, as JSON has it."""
    import torch

    from bench import machine, peers
    from bench.cases import CASES, Place
    from bench.rows import FULL, OF_A_CASE, OF_EVALUATION, ON_CPU, ON_CUDA, ONCE, QUICK
    from ddpm_cli.runtime.device import choose_compute

    try:
        device = choose_compute(arguments.device).device.type
    except ValueError as error:
        raise SystemExit(f"scripts/bench: {error}") from error
    device = "cuda" if device == "cuda" else "cpu"
    precision = choose_compute(device).precision
    effort = (QUICK if arguments.quick else FULL)[device]
    names = arguments.config or (["cifar10", "digits"] if device == "cuda" else ["digits", "cifar10"])
    of_a_case = OF_A_CASE | (ON_CUDA if device == "cuda" else {})
    groups = {"once": ONCE, "configs": of_a_case, "evaluation": OF_EVALUATION}
    groups |= {"small": ON_CPU} if device == "cpu" else {}
    there = [name for group in groups.values() for name in group]
    unknown = set(arguments.only or ()).difference(there)
    if unknown:
        raise SystemExit(f"scripts/bench: no row {', '.join(unknown)}; there are {', '.join(there)}")
    if arguments.compile and device == "cpu":
        raise SystemExit("scripts/bench: --compile is for CUDA; on a CPU nothing is compiled")
    rows = Rows(arguments.only, arguments.minutes)
    for peer in peers.NEEDS:
        if peers.missing(peer):
            rows.left_out.append(f"{peer} ({', '.join(peers.missing(peer))} not installed)")
    figures: dict = {
        "command": _command(arguments),
        "device": device,
        "precision": precision,
        "machine": machine.describe(device),
        "once": [],
        "evaluation": [],
        "small": [],
        "configs": {},
        "left_out": rows.left_out,
        "cuda_memory": torch.cuda.mem_get_info()[1] if device == "cuda" else None,
    }
    with tempfile.TemporaryDirectory(prefix="bench_") as directory:
        for i, name in enumerate(names):
            place = Place(CASES[name], device, precision, Path(directory) / name, tuple(arguments.compile or ()))
            place.write_pictures()
            found: list[dict] = []
            figures["configs"][name] = {
                "batch_size": place.batch_size,
                "precision": precision,
                "sizes": dict(place.config["model"]),
                "entries": found,
            }
            for group, measured in groups.items():
                if i > 0 and group != "configs":
                    continue
                into = found if group == "configs" else figures[group]
                for entries in rows.measure(measured, place, effort):
                    into += entries
                    _write(figures, arguments.out)  # what there is, should a later row take the process along
    less = arguments.quick or arguments.compile or rows.too_late
    asked = there if arguments.only is None else arguments.only
    figures["whole"] = [] if less else [group for group, measured in groups.items() if set(measured) <= set(asked)]
    _write(figures, arguments.out)
    return figures


def _write(figures: dict, out: str | None) -> None:
    if out is not None:
        Path(out).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _command(arguments: argparse.Namespace) -> str:
    """What makes the same figures again, wherever they then go."""
    options = [word for name in arguments.config or () for word in ("--config", name)]
    options += [word for name in arguments.compile or () for word in ("--compile", name)]
    options += [word for name in arguments.only or () for word in ("--only", name)]
    options += ["--quick"] if arguments.quick else []
    return shlex.join(["scripts/bench", "--device", arguments.device, *options])


class Rows:
    """Measures one row after the other, as long as there is time; says which were left out."""

    def __init__(self, only: list[str] | None, minutes: float | None):
        self.only = only
        self.until = None if minutes is None else time.monotonic() + 60 * minutes
        self.too_late = False
        self.left_out: list[str] = []

    def measure(self, rows: dict, place, effort) -> Iterator[list[dict]]:
        """The entries of each row."""
        from bench.network import DifferentNetworksError

        for name, row in rows.items():
            if self.only is not None and name not in self.only:
                continue
            if self.until is not None and time.monotonic() > self.until:
                self.too_late = True
                self.left_out.append(f"{name} of {place.case.name} (no time left)")
                continue
            began = time.monotonic()
            try:
                entries = row(place, effort)
            except DifferentNetworksError:
                raise
            except Exception as error:  # a row that fails leaves the others their figures
                entries = [{"row": name, "who": "all", "failure": f"{type(error).__name__}: {error}"}]
            took = time.monotonic() - began
            print(f"{name} of {place.case.name}: {took:.0f} s", file=sys.stderr, flush=True)
            yield entries


def _print(figures: dict) -> None:
    from bench import tables

    said = tables.with_entries(figures)
    for group in tables.OF_MACHINE:
        if group in said:
            print("", *tables.machine_lines(figures, group), sep="\n")
    for name in figures["configs"] if "configs" in said else ():
        print(f"\n{name}", *tables.lines(figures, name), sep="\n")


if __name__ == "__main__":
    main()
