"""Runs on file systems that lack a flush, or locks: they are killed there and end as elsewhere, and say so once."""

import errno
import fcntl
import itertools
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from torture.reference import NAME, Reference, make_reference
from torture.trials import RUN, Row, Setting, command, noting, run_directories

ARGUMENTS = [*RUN, f"name={NAME}"]
CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
FAILS = (errno.EIO, errno.ENOSPC)
LONGEST = 1.2  # seconds until a run is killed
MOST_FLUSHES = 20  # of directories in a run, or fewer


class _Lack(NamedTuple):
    """What a file system answers to fsync and flock where it cannot do it."""

    code: int
    files: bool  # cannot be flushed either
    locks: bool  # are there

    def __str__(self) -> str:
        return f"{errno.errorcode[self.code]}{', files too' * self.files}{', no locks' * (not self.locks)}"

    def prepare(self) -> None:
        """To be called in a forked process."""
        really = os.fsync

        def fsync(descriptor: int) -> None:
            if self.files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
                self._fail()
            really(descriptor)

        os.fsync = fsync
        if not self.locks:
            fcntl.flock = lambda *_: self._fail()

    def _fail(self) -> NoReturn:
        raise OSError(self.code, os.strerror(self.code))

    @property
    def sentences(self) -> dict[str, int]:
        """What a run says of it, and how often."""
        return {
            "does not flush directories": 1,
            "does not flush files": int(self.files),
            "has no locks": int(not self.locks),
        }


def lacking_disks(setting: Setting) -> Row:
    """The run is killed at a random moment and given again; a disk that fails, and does not only lack, ends it."""
    tries, failures, random = setting.count(52), [], setting.random
    reference = make_reference(RUN, setting.place / "reference")
    lacks = [
        _Lack(code, files, locks) for code, files, locks in itertools.product(CANNOT, (False, True), (True, False))
    ]
    lacks.append(_Lack(errno.EBADF, False, True))
    for attempt, lack in zip(range(tries), itertools.cycle(lacks), strict=False):
        with noting(failures, f"trial {attempt}"):
            wrong = _lacking(setting.place / f"lacking_{attempt}", lack, random.uniform(0, LONGEST), reference)
            failures += [f"trial {attempt}: {lack}: {what}" for what in wrong]
    broken = setting.count(10)
    for attempt, code in zip(range(broken), itertools.cycle(FAILS), strict=False):
        with noting(failures, f"failing {attempt}"):
            wrong = _failing(setting.place / f"failing_{attempt}", code, random.randint(1, MOST_FLUSHES), reference)
            failures += [f"failing {attempt}: {os.strerror(code)}: {what}" for what in wrong]
    held = tries - _failed(failures, "trial")
    figure = (
        f"{held}/{tries} killed, resumed and bit-equal, each said once; "
        f"{broken - _failed(failures, 'failing')}/{broken} that fail: one message, then bit-equal"
    )
    return Row("directories and files that cannot be flushed, and no flock", figure, failures)


def _failed(failures: list[str], kind: str) -> int:
    return len({line.partition(":")[0] for line in failures if line.startswith(kind)})


def _lacking(place: Path, lack: _Lack, moment: float, reference: Reference) -> list[str]:
    process = command("train", ARGUMENTS, place, prepare=lack.prepare)
    time.sleep(moment)
    if process.poll() is None:
        process.kill(signal.SIGKILL)
        process.wait()
        process = command("train", ARGUMENTS, place, prepare=lack.prepare)
    if process.wait() != 0:
        return [f"exit status {process.status}: {process.said()[-300:]}"]
    directory = _begun(place)
    found = reference.differences(directory)
    log = (directory / "train.log").read_text(encoding="utf-8")
    for sentence, times in lack.sentences.items():
        if process.said().count(sentence) != times:
            found.append(f"says {process.said().count(sentence)} times that it {sentence}")
        if times and sentence not in log:
            found.append(f"train.log does not say that it {sentence}")
    return found


def _failing(place: Path, code: int, call: int, reference: Reference) -> list[str]:
    process = command("train", ARGUMENTS, place, prepare=_from(_Lack(code, False, True), call))
    status, said = process.wait(), process.said()
    found = []
    if status not in (1, 2) or said.count("ddpm-train: ") != 1 or os.strerror(code) not in said:
        found.append(f"exit status {status}, not one message: {said[-300:]}")
    if command("train", ARGUMENTS, place).wait() != 0:
        return [*found, "does not train once the disk is well again"]
    return found + reference.differences(_begun(place))


def _begun(place: Path) -> Path:
    (directory,) = (path for path in run_directories(place, NAME) if list(path.glob("checkpoints/step_*")))
    return directory


def _from(lack: _Lack, call: int) -> Callable[[], None]:
    """As `lack.prepare`, from the `call`-th flush of a directory on."""

    def prepare() -> None:
        really, count = os.fsync, itertools.count(1)
        lack.prepare()
        failing = os.fsync

        def fsync(descriptor: int) -> None:
            is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            (failing if is_directory and next(count) >= call else really)(descriptor)

        os.fsync = fsync

    return prepare
