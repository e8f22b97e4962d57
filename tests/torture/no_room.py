"""Training where files may not grow, or on a disk that is full: real runs, at many sizes of the room there is."""

import ctypes
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import CheckpointError
from torture.trials import RUN, Row, Setting, command, fork, noting, run_directories

NAME = "run"
STEPS = 20
# Two checkpoints, and between them logs of several kilobytes.
ARGUMENTS = [*RUN, f"trainer.steps={STEPS}", "trainer.checkpoint_every=10", "trainer.log_every=1", f"name={NAME}"]
LIMITS, DISKS = 50, 12
SMALLEST = 16  # bytes, beside none at all
DISK = 2**22  # bytes of a disk that is small enough to be filled
MOST_PAGES = 256  # of 4096 bytes that are left of it: room for the first checkpoint, not for the second
CLONE_NEWNS = 0x20000  # linux/sched.h


def no_room(setting: Setting) -> Row:
    """A run without room says so in one message, and ends where an undisturbed one does once there is room."""
    reference, failures = _last_checkpoint(setting.place / "reference"), []
    largest = max(len(content) for content in reference.values())
    # By equal ratios, to a byte too few: the configuration's file is small, a checkpoint's is not.
    sizes = [0, *_by_ratios(SMALLEST, largest - 1, LIMITS - 1)]
    sizes = setting.random.sample(sizes, setting.count(LIMITS))
    for size in sizes:
        place = setting.place / f"limit_{size}"
        with noting(failures, f"files of at most {size} bytes"):
            wrong = _without_room(place, lambda size=size: _limit_files(size)) + _with_room(place, reference)
            failures += [f"files of at most {size} bytes: {what}" for what in wrong]
    held = len(sizes) - _failed(failures)
    figure = f"{held}/{len(sizes)} sizes (0 to {largest:,} bytes): one clear error, nothing damaged, then bit-equal"
    left = [4096 * pages for pages in _by_ratios(1, MOST_PAGES, DISKS)]
    left = setting.random.sample(left, setting.count(DISKS))
    said = setting.place / "full_disks.txt"
    process = fork(lambda: _full_disks(setting.place / "disk", left, reference, said), setting.place / "disk")
    if process.wait(600) != 0:
        failures.append(f"full disks were not tried: {process.said()[-300:]}")
    elif said.exists():
        wrong = said.read_text(encoding="utf-8").splitlines()
        failures += wrong
        figure += f"; full disk (tmpfs): {len(left) - _failed(wrong)}/{len(left)}"
    return Row("a limit on the size of files at 50 sizes; a full disk", figure, failures)


def _by_ratios(first: int, last: int, count: int) -> list[int]:
    return [round(first * (last / first) ** (i / (count - 1))) for i in range(count)]


def _failed(failures: list[str]) -> int:
    """How many trials failed, each perhaps in several ways."""
    return len({line.partition(":")[0] for line in failures})


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _last_checkpoint(place: Path) -> dict[str, bytes]:
    """The final tensors of an undisturbed run, by file."""
    process = command("train", ARGUMENTS, place)
    if process.wait() != 0:
        raise RuntimeError(f"the undisturbed run failed: {process.said()}")
    return _tensors(place)


def _tensors(place: Path) -> dict[str, bytes]:
    path = run_directories(place, NAME)[-1] / "checkpoints" / f"step_{STEPS:08d}"
    return {name: (path / name).read_bytes() for name in (checkpoint.EMA_FILE, checkpoint.TRAINING_FILE)}


def _without_room(place: Path, prepare: Callable[[], object]) -> list[str]:
    """What is wrong with how a run ends after `prepare` has taken its room away."""
    status, said = _told(place, prepare)
    wrong = []
    message = " ".join(said[said.find("ddpm-train: ") :].splitlines()) if "ddpm-train: " in said else ""
    about = message.partition("; earlier checkpoints")[0]  # what follows says how to resume
    if status not in (1, 2):
        wrong.append(f"exit status {status}")
    if "Traceback" in said or said.count("ddpm-train: ") != 1:
        wrong.append(f"not one message: {' / '.join(said.splitlines()[-6:])[-500:]}")
    if not any(reason in message for reason in ("File too large", "No space left", " free")):
        wrong.append(f"no reason in: {message[-300:]}")
    if not re.search(r"outputs\b", about):
        wrong.append(f"names no file: {message[-300:]}")
    for path in place.glob("outputs/*/*/checkpoints/step_*"):
        try:
            checkpoint.verify(path, *checkpoint.FILES)
        except CheckpointError as error:
            wrong.append(f"damaged: {error}")
    return wrong


def _told(place: Path, prepare: Callable[[], object]) -> tuple[int, str]:
    """Exit status and words of a run. They come through a pipe: a file might have no room for them."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # a run that says more than a pipe takes does not wait for us for ever

    def into_pipe() -> None:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        prepare()

    try:
        status = command("train", ARGUMENTS, place, prepare=into_pipe).wait()
    finally:
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8", errors="replace") as pipe:
            said = pipe.read()
    return status, said


def _with_room(place: Path, reference: dict[str, bytes]) -> list[str]:
    """What is wrong with the same command line once there is room again."""
    process = command("train", ARGUMENTS, place)
    if process.wait() != 0:
        return [f"with room again exit status {process.status}: {process.said()[-300:]}"]
    found = _tensors(place)
    return [f"with room again {name} differs" for name, content in reference.items() if found[name] != content]


# A disk of our own ---------------------------------------------------------------------------------------------------


def _full_disks(mount_point: Path, sizes: list[int], reference: dict[str, bytes], said: Path) -> None:
    """In a process of its own: runs on a small disk that is filled beforehand but for some bytes.

    The disk is mounted in a namespace of this process and its children, and is gone with them, however they end. Where
    that is not permitted nothing is done, and nothing written to `said`.
    """
    unshare = getattr(ctypes.CDLL(None), "unshare", None)  # in `os` only since Python 3.12
    if unshare is None or shutil.which("mount") is None or unshare(CLONE_NEWNS) != 0:
        return
    for arguments in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(mount_point)]):
        if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode != 0:
            return
    failures: list[str] = []
    place = mount_point / "place"
    for left in sizes:
        with noting(failures, f"full disk with {left} bytes left"):
            place.mkdir()
            filler = mount_point / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(mount_point).free - left))
            wrong = _without_room(place, _hide_free_space)
            filler.unlink()
            wrong += _with_room(place, reference)
            failures += [f"full disk with {left} bytes left: {what}" for what in wrong]
        shutil.rmtree(place, ignore_errors=True)
    said.write_text("".join(f"{line}\n" for line in failures), encoding="utf-8")


def _hide_free_space() -> None:
    """As under a quota, of which the system does not tell: there seems to be room enough."""
    really = shutil.disk_usage
    shutil.disk_usage = lambda path: really(path)._replace(free=2**40)
