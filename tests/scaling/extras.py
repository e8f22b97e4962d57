"""What this project adds to every step of several processes, measured between two of them here, over gloo."""

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing

from ddpm_cli.runtime.cgroup import cpus

CALLS, ROUNDS = 500, 9


def table() -> list[str]:
    """Rows of median, smallest and largest time of a call, in rank 0."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "times.pt")
        torch.multiprocessing.spawn(_measure, (str(Path(folder, "meeting")), str(found)), nprocs=2)
        times: dict[str, list[float]] = torch.load(found)
    return [
        f"Measured (torch {torch.__version__}, {cpus()} CPU cores, load average {load:.1f} before): {ROUNDS} rounds of "
        f"{CALLS} calls, between two processes over gloo.",
        "",
        "| every step | median | smallest to largest round |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {statistics.median(all_):.0f} us | {min(all_):.0f} to {max(all_):.0f} us |"
            for name, all_ in times.items()
        ),
    ]


def _measure(rank: int, meeting: str, found: str) -> None:
    import torch.distributed as dist

    from ddpm_cli.distributed.process_group import World

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    ranks, losses = World(rank, 2, rank), torch.zeros(64)
    calls = {
        "a flag: has any process had a signal? (`Ranks.any`)": lambda: ranks.any(False),
        "the losses of 128 images, 64 from each (`Ranks.gather`)": lambda: ranks.gather(losses),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append((time.perf_counter() - began) / CALLS * 1e6)
    if rank == 0:
        torch.save(times, found)
    dist.destroy_process_group()
