"""A run that is killed, or asked to stop, at random moments, again and again until it is done; and two at once."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from torture.reference import INTERVAL, NAME, Reference, make_reference, newest_step
from torture.trials import RUN, Clock, Process, Row, Setting, command, counting, left_of, noting, run_directories

ARGUMENTS = [*RUN, f"name={NAME}"]
RESUME_LATER = 75


def sigkill_at_random_moments(setting: Setting) -> Row:
    """The newest checkpoint is whole and at most one interval old; the same command line ends where it would have."""
    kills, failures, random = setting.count(200), [], setting.random
    reference = make_reference(RUN, setting.place / "reference")
    lost, runs = [], 0
    for chain, place in chains(setting.place, lambda: len(lost) < kills):
        clock = Clock()
        runs += 1
        while True:
            clock.set(0)
            process = command("train", ARGUMENTS, place, prepare=counting(clock))
            if len(lost) >= kills or not signalled(process, signal.SIGKILL, random.uniform(0, 1.2)):
                check_finished(process, place, reference, failures, f"chain {chain}")
                break
            process.wait()
            with noting(failures, f"chain {chain}, kill {len(lost)}"):
                lost.append(max(0, clock.get() - newest_step(place)))
    too_many = sum(steps > INTERVAL for steps in lost)
    if too_many:
        failures.append(f"{too_many} kills lost more than {INTERVAL} steps: {max(lost)}")
    figure = (
        f"resumed {len(lost)}/{kills}; lost at most {max(lost)} steps of an interval of {INTERVAL}; "
        f"{runs} runs, each bit-equal in state, logs and previews"
    )
    return Row("SIGKILL at random moments, chained until the run completes", figure, failures)


def sigterm_at_random_moments(setting: Setting) -> Row:
    """Asked to stop, a run saves where it is: nothing is lost, and no process of it is left."""
    stops, failures, random = setting.count(100), [], setting.random
    folder = setting.place / "pictures"
    make_pictures(folder, 300)
    from_folder = ["data=folder", f"data.path={folder}", "data.image_size=16", "data.workers=2", "model=unet_16"]
    statuses, lost, left, runs = [], [], 0, 0
    for workers, data in ((0, []), (2, [*from_folder, "data.channels=1", "model.attention_resolutions=[8]"])):
        arguments = [*data, *ARGUMENTS]
        quota = len(statuses) + (stops + 1) // 2
        reference = make_reference([*data, *RUN], setting.place / f"reference_{workers}")
        for chain, place in chains(setting.place / f"workers_{workers}", lambda quota=quota: len(statuses) < quota):
            clock = Clock()
            runs += 1
            start = 0
            while True:
                start += 1
                # Decoded anew every time: the cache of a run that was stopped would leave nothing to interrupt.
                environment = {"XDG_CACHE_HOME": str(place.with_name(f"cache_{chain}_{start}"))}
                clock.set(0)
                process = command("train", arguments, place, prepare=counting(clock), **environment)
                moment = random.uniform(0.02, 2.5 if workers else 1.2)
                if len(statuses) >= quota or not signalled(process, signal.SIGTERM, moment):
                    check_finished(process, place, reference, failures, f"{workers} workers, chain {chain}")
                    break
                with noting(failures, f"{workers} workers, chain {chain}, start {start}"):
                    status = process.wait()
                    if status == 0:  # it was just done
                        check_finished(process, place, reference, failures, f"{workers} workers, chain {chain}")
                        break
                    statuses.append(status)
                    if status != RESUME_LATER:
                        failures.append(f"exit status {status}: {process.said()[-300:]}")
                    lost.append(clock.get() - newest_step(place) if clock.get() > 0 else 0)
                    left += len(left_of(process.pid))
    if any(lost):
        failures.append(f"steps lost: {[steps for steps in lost if steps]}")
    if left:
        failures.append(f"{left} processes outlived their run")
    figure = (
        f"exit {RESUME_LATER} {statuses.count(RESUME_LATER)}/{len(statuses)}; lost steps {max(lost)}; "
        f"processes left {left}; {runs} runs, each bit-equal"
    )
    return Row("SIGTERM to the process group at random moments, 0 and 2 decoding processes", figure, failures)


def two_trainers(setting: Setting) -> Row:
    """While one process trains in a run directory, another is refused and changes nothing."""
    tries, failures, refused = setting.count(50), [], 0
    place, clock = setting.place / "place", Clock()
    arguments = [*RUN, f"name={NAME}", "trainer.steps=1000000", "trainer.checkpoint_every=20"]
    first = command("train", arguments, place, prepare=counting(clock))
    while newest_step(place) == 0 and first.poll() is None:
        time.sleep(0.05)
    for attempt in range(tries):
        (directory,) = run_directories(place, NAME)
        second = arguments if attempt % 2 else [f"resume={directory}", "trainer.steps=2000000"]
        process = command("train", second, place)
        with noting(failures, f"attempt {attempt}"):
            status = process.wait()
            if status == 2 and "another process is training there" in process.said():
                refused += 1
            else:
                failures.append(f"attempt {attempt}: exit status {status}: {process.said()[-300:]}")
    first.kill(signal.SIGTERM)
    if first.wait() != RESUME_LATER or newest_step(place) != clock.get():
        failures.append(f"the first was disturbed: {first.said()[-300:]}")
    return Row("two trainers on one directory", f"{refused}/{tries} refused, the first undisturbed", failures)


def chains(place: Path, wanted: Callable[[], bool]) -> Iterator[tuple[int, Path]]:
    """Numbered places for runs, as long as more are wanted."""
    chain = 0
    while wanted():
        yield chain, place / f"chain_{chain}"
        chain += 1


def signalled(process: Process, number: int, seconds: float) -> bool:
    """Send the process group a signal after so many seconds; False if the process had ended by then.

    Counted from when it answers that signal, which it does first of all, but later on a machine that is busy.
    """
    while number != signal.SIGKILL and process.poll() is None and not _answers(process.pid, number):
        time.sleep(0.001)
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        time.sleep(min(0.002, max(0.0, until - time.monotonic())))
    if process.poll() is not None:
        return False
    process.kill(number)
    return True


def _answers(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE) or ["0"]
    return bool(int(caught, 16) >> (number - 1) & 1)


def check_finished(process: Process, place: Path, reference: Reference, failures: list[str], what: str) -> None:
    with noting(failures, what):
        if process.wait() != 0:
            failures.append(f"{what}: exit status {process.status}: {process.said()[-300:]}")
            return
        directories = run_directories(place, NAME)
        begun = [path for path in directories if list(path.glob("checkpoints/step_*"))]
        if len(begun) != 1:
            failures.append(f"{what}: {len(begun)} runs instead of one that was gone on with")
        failures += [f"{what}: {difference}" for difference in reference.differences(begun[-1])]


def make_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{i:04d}.png")
