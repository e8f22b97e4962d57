"""One contestant's first training steps in a process of its own, so that its imports and its memory are its own.

Prints JSON. For scripts/bench, which starts it.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

MORE_STEPS = 2  # after the first: memory has then grown to what it stays at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--directory", required=True, help="where the pictures are")
    parser.add_argument("--who", required=True)
    parser.add_argument("--started", type=float, required=True, help="time.time() before this process was started")
    arguments = parser.parse_args()

    from bench.cases import CASES, Place

    place = Place(CASES[arguments.config], arguments.device, arguments.precision, Path(arguments.directory))
    turn = _prepare(arguments.who, place)
    turn(1)
    if arguments.device == "cuda":
        import torch

        torch.cuda.synchronize()
    first = time.time() - arguments.started
    turn(MORE_STEPS)
    print(json.dumps({"first_step_seconds": first, "resident_bytes": _peak_resident()}))


def _peak_resident() -> int:
    """Bytes. What getrusage says begins on Linux before exec, with the memory of the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _prepare(who: str, place):
    if who.startswith("ours"):  # nobody's start-up time but their own
        from bench import ours

        contestants = ours.training(place)
    else:
        from bench import peers

        contestants = peers.training(place)
    (prepare,) = (contestant.prepare for contestant in contestants if contestant.name == who)
    return prepare()


if __name__ == "__main__":
    main()
