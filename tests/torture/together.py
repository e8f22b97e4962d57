"""Processes that belong to one run, of which one is killed: a rank of two, a process that decodes images."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from torture.kills import make_pictures
from torture.reference import NAME, make_reference, newest_step
from torture.trials import RUN, Row, Setting, command, left_of, noting, run_directories

TIMEOUT = 60  # seconds until every process must be gone
MISTAKE = 2


def a_rank_is_killed(setting: Setting) -> Row:
    """torchrun starts two ranks (gloo); one is killed at a random moment. The run is then gone on with."""
    tries, failures, random = setting.count(20), [], setting.random
    gone = resumable = killed = 0
    reference, began = setting.place / "reference", time.monotonic()
    if _torchrun(reference).wait(timeout=300) != 0:
        return Row("one of two ranks killed", "the undisturbed run failed", ["see its log"])
    seconds = time.monotonic() - began
    for attempt in range(4 * tries):
        if killed == tries:
            break
        place = setting.place / f"attempt_{attempt}"
        with noting(failures, f"attempt {attempt}"):
            process = _torchrun(place)
            time.sleep(random.uniform(0.3, 1) * seconds)  # before, there are no ranks yet
            ranks = _children(process.pid)
            if len(ranks) < 2:  # the run was just done
                process.wait(timeout=TIMEOUT)
                continue
            killed += 1
            os.kill(random.choice(ranks), signal.SIGKILL)
            status = process.wait(timeout=TIMEOUT)
            left = left_of(process.pid)
            gone += status != 0 and not left
            if status == 0 or left:
                failures.append(f"attempt {attempt}: torchrun's exit status {status}, {len(left)} processes left")
                os.killpg(process.pid, signal.SIGKILL)
            if _torchrun(place).wait(timeout=300) == 0 and _final(place) == _final(reference):
                resumable += 1
            else:
                failures.append(f"attempt {attempt}: did not go on to the same end from step {newest_step(place)}")
    if killed < tries:
        failures.append(f"only {killed} of {tries} ranks were there to be killed")
    figure = f"every process gone within {TIMEOUT} s {gone}/{killed}; resumed, bit-equal {resumable}/{killed}"
    return Row("one of two ranks (torchrun, gloo) killed", figure, failures)


def a_decoding_process_is_killed(setting: Setting) -> Row:
    """The command ends with one message and leaves no process; the same command line then works."""
    tries, failures, random = setting.count(20), [], setting.random
    folder = setting.place / "pictures"
    make_pictures(folder, 400)
    data = ["data=folder", f"data.path={folder}", "data.image_size=16", "data.channels=1", "data.workers=2"]
    arguments = [*data, "model=unet_16", "model.attention_resolutions=[8]", *RUN]
    reference = make_reference(arguments, setting.place / "reference")
    named = resumed = made = 0
    while made < tries:
        place = setting.place / f"attempt_{made}"
        environment = {"XDG_CACHE_HOME": str(setting.place / f"cache_{made}")}
        with noting(failures, f"attempt {made}"):
            process = command("train", [*arguments, f"name={NAME}"], place, **environment)
            workers = _wait_for_workers(process.pid)
            time.sleep(random.uniform(0, 0.5))
            for worker in workers[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            status, said = process.wait(), process.said()
            made += 1
            left = left_of(process.pid)
            if left:
                failures.append(f"attempt {made}: {len(left)} processes left")
            if status == 0:  # it had decoded everything
                named += 1
            elif status == MISTAKE and "ddpm-train: data: " in said and "Traceback" not in said:
                named += 1
                status = command("train", [*arguments, f"name={NAME}"], place, **environment).wait()
            else:
                failures.append(f"attempt {made}: exit status {status}: {said[-300:]}")
            (directory,) = run_directories(place, NAME)
            resumed += status == 0 and not reference.differences(directory)
    figure = f"one message, every process gone {named}/{tries}; then trains, bit-equal {resumed}/{tries}"
    if resumed < tries:
        failures.append(f"{tries - resumed} did not train afterwards")
    return Row("a process that decodes images killed", figure, failures)


def _torchrun(place: Path) -> subprocess.Popen:
    place.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    with (place / "log").open("a") as log:
        return subprocess.Popen(
            [*torchrun, "-m", "ddpm_cli.train", *RUN, "trainer.steps=80", f"name={NAME}"],
            cwd=place,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _wait_for_workers(pid: int) -> list[int]:
    """The two processes that decode; the first child of the command only keeps the books of multiprocessing."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = [child for child in _children(pid) if b"spawn_main" in _command_line(child)]
        if len(found) == 2:
            return found
        time.sleep(0.005)
    raise TimeoutError("no decoding process was started")


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _final(place: Path) -> tuple[bytes, ...]:
    (directory,) = run_directories(place, NAME)
    final = directory / "checkpoints" / "step_00000080"
    return tuple((final / name).read_bytes() for name in ("ema.safetensors", "training.safetensors"))
