"""Training alone, and beside one process that computes: with what OpenMP is told of waiting, and without.

OpenMP reads it when torch is loaded, so each setting has a process of its own, this module run as a program. They train
in turn, a few seconds each; the other one sleeps meanwhile.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cases import CASES, Place
from bench.clock import spread
from ddpm_cli.runtime import openmp

WARM_UP = 10  # steps, before a process is first timed
_ENVIRONMENT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# What is tried, of which the first is what the commands set.
SETTINGS = {
    "ours": {"GOMP_SPINCOUNT": str(openmp.SPIN_COUNT)},
    "without the setting": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (1_000, 30_000, 100_000)},
}
COMPANY = {"alone": None, "next to a process": 0, "next to a niced process": 19}


def beside_another(place: Place, rounds: int, seconds: float, settings: int) -> list[dict]:
    """Images per second of the first `settings`, in every company; ratios are ours over it, of the same turns."""
    rates: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        tried = list(SETTINGS.items())[:settings]
        trainers = {name: stack.enter_context(_trainer(place, told)) for name, told in tried}
        for trainer in trainers.values():
            _trained(trainer, 0.0)  # warms up
        for _ in range(rounds):
            for company, niceness in COMPANY.items():
                with _computing(niceness):
                    for name, trainer in trainers.items():
                        rates.setdefault((name, company), []).append(_trained(trainer, seconds))
    entries = []
    for (name, company), seen in rates.items():
        entry = {"row": "busy", "who": f"{name}, {company}", "unit": "images/s", **spread(seen)}
        if name != "ours":
            entry["ratio"] = spread([own / other for own, other in zip(rates["ours", company], seen, strict=True)])
        if company != "alone":
            shares = [rate / alone for rate, alone in zip(seen, rates[name, "alone"], strict=True)]
            entry["share_of_alone"] = spread(shares)["median"]
        entries.append(entry)
    return entries


@contextlib.contextmanager
def _trainer(place: Place, told: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.busy", place.case.name, str(place.directory)],
        env=environment | told | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _trained(process: subprocess.Popen[str], seconds: float) -> float:
    """Let a process train for so long; images per second."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(seconds, file=process.stdin, flush=True)
    said = process.stdout.readline()
    if not said:
        raise RuntimeError(f"a process that trained ended with {process.wait()}")
    return float(said)


@contextlib.contextmanager
def _computing(niceness: int | None) -> Iterator[None]:
    """Inside, one process computes without end; None: none does."""
    if niceness is None:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", f"import os; os.nice({niceness})\nwhile True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Train for as many seconds as each line of standard input says, and print images per second."""
    from bench.ours import Training

    name, directory = sys.argv[1:]
    place = Place(CASES[name], "cpu", "fp32", Path(directory))
    sys.stdin.readline()  # nothing is done while it is not this process's turn
    train = Training(place, place.compiled[0])
    train(WARM_UP)
    print(0.0, flush=True)
    for line in sys.stdin:
        began, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - began < float(line):
            train(1)
            steps += 1
        print(place.batch_size * steps / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
