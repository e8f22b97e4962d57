"""Where the time of training steps goes: a record of some steps by torch's profiler, kept in the run.

RUN/profile/trace.json        every operation, when and how long: for chrome://tracing or https://ui.perfetto.dev
RUN/profile/operations.txt    the operations that took the most time over all of these steps
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import profiler

from ddpm_cli.io import durable, run_dir
from ddpm_cli.runtime.logs import log
from ddpm_cli.training.trainer_config import PROFILE_FROM

TRACE_FILE, TABLE_FILE = "trace.json", "operations.txt"
ROWS = 30  # of the table


@contextmanager
def profiled(directory: Path, *, steps: int, device: torch.device) -> Iterator[Callable[[], None]]:
    """Inside, `steps` steps of the run in `directory` are profiled, after its first ten.

    Args:
        device: on which they are computed.

    Yields:
        A function to call after every step.
    """
    on_cuda = device.type == "cuda"
    activities = [profiler.ProfilerActivity.CPU, *([profiler.ProfilerActivity.CUDA] if on_cuda else [])]
    if not on_cuda:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would complain that there is no GPU
    written = False

    def write(found: profiler.profile) -> None:
        nonlocal written
        place = directory / run_dir.PROFILE
        if not place.is_dir():
            durable.make_directory(place)
        found.export_chrome_trace(str(place / TRACE_FILE))
        order = f"self_{'cuda' if on_cuda else 'cpu'}_time_total"
        durable.replace(place / TABLE_FILE, found.key_averages().table(sort_by=order, row_limit=ROWS).encode())
        log.info(
            f"profile  {place / TRACE_FILE}, for chrome://tracing or https://ui.perfetto.dev; {TABLE_FILE} beside it"
        )
        written = True

    # The profiler's own warm-up is the step before: its first records take longer.
    seen = profiler.schedule(skip_first=PROFILE_FROM - 1, wait=0, warmup=1, active=steps, repeat=1)
    with profiler.profile(activities=activities, schedule=seen, on_trace_ready=write, record_shapes=True) as profile:
        yield profile.step
    if not written:
        log.warning(f"profile  nothing recorded: the run ended within its first {PROFILE_FROM} steps")
