"""A save that is cut short or refused at every one of its calls to the file system.

Steps 1 and 2 have been saved, and an earlier save of step 3 was killed and has left its hidden directory. Then step 3
is saved and step 1 removed, and something happens on the way.
"""

import errno
import itertools
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from torture import known
from torture.disk import Tree, intercepted, read_tree, write_tree
from torture.no_room import no_room
from torture.power import power_loss
from torture.trials import Clock, Row, Setting, fork, noting

__all__ = ["errors_at_every_call", "no_room", "power_loss", "sigkill_at_every_call"]


def sigkill_at_every_call(setting: Setting) -> Row:
    """Checkpoints are whole, the newest is the one that was announced, and what was left half-done is cleared away."""
    before, failures = known.two_saved(setting.place / "saved"), []
    trials = [
        (number, moment)
        for number, call in enumerate(_calls(setting.place / "counted", before))
        for moment in ("before", "half-way", "after")
        if moment != "half-way" or call == "write"
    ]
    trials = setting.random.sample(trials, setting.count(len(trials)))
    for number, moment in trials:
        what = f"killed {moment} call {number}"
        run = setting.place / what.replace(" ", "_")
        write_tree(before, run)
        announced = Clock()
        announced.set(2)
        status = fork(partial(_save_3, run, _Killer(number, moment), announced), run).wait()
        if status != -signal.SIGKILL:
            failures.append(f"{what}: was not killed, exit status {status}")
        with noting(failures, what):
            found = [*known.wrongs(run, announced.get()), *known.go_on(run, 4)]
            failures += [f"{what}: {wrong}" for wrong in found]
    figure = f"{len(trials) - _failed(failures)}/{len(trials)} whole, and went on"
    return Row("SIGKILL before and after every file-system call of a save and its clean-up", figure, failures)


def errors_at_every_call(setting: Setting) -> Row:
    """The error names file and reason, nothing saved earlier is touched, and the next try succeeds."""
    before, failures = known.two_saved(setting.place / "saved"), []
    calls = len(_calls(setting.place / "counted", before))
    faults = [
        _Fault(number, code, for_good)
        for number, code, for_good in itertools.product(range(calls), (errno.EIO, errno.ENOSPC), (False, True))
    ]
    faults = setting.random.sample(faults, setting.count(len(faults)))
    for index, fault in enumerate(faults):
        with noting(failures, str(fault)):
            run = setting.place / f"fault_{index}"
            write_tree(before, run)
            failures += [f"{fault}: {wrong}" for wrong in _after_fault(run, before, fault)]
    short = setting.count(50)
    right = _undisturbed(setting.place / "undisturbed", before)
    for index in range(short):
        run = setting.place / f"short_{index}"
        write_tree(before, run)
        with noting(failures, f"short writes {index}"), intercepted(_short_writes(setting.seed + index)):
            known.save(run, 3)
            known.remove_old(run)
        if read_tree(run) != right:
            failures.append(f"short writes {index}: other bytes were written")
    figure = (
        f"{len(faults) - _failed(failures, 'call')}/{len(faults)} named, nothing lost, saved at the next try; "
        f"short writes: {short - _failed(failures, 'short')}/{short} byte-equal"
    )
    return Row("EIO and ENOSPC at every n-th file-system call, once and from there on", figure, failures)


def _save_3(run: Path, handler: Callable[..., Any], announced: Clock) -> None:
    with intercepted(handler):
        known.save(run, 3)
        announced.set(3)
        known.remove_old(run)


def _failed(failures: list[str], kind: str = "") -> int:
    """How many trials failed, each perhaps in several ways."""
    return len({line.partition(":")[0] for line in failures if line.startswith(kind)})


def _calls(run: Path, before: Tree) -> list[str]:
    """The names of the calls that the save makes, in their order."""
    names: list[str] = []

    def note(name: str, really: Callable, *arguments: Any) -> Any:
        names.append(name)
        return really(*arguments)

    write_tree(before, run)
    with intercepted(note):
        known.save(run, 3)
        known.remove_old(run)
    return names


def _undisturbed(run: Path, before: Tree) -> Tree:
    _calls(run, before)
    return read_tree(run)


class _Killer:
    """Kills this process at the `number`-th call."""

    def __init__(self, number: int, moment: str):
        self.left = number
        self.moment = moment

    def __call__(self, name: str, really: Callable, *arguments: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            return really(*arguments)
        if self.moment == "half-way":
            descriptor, data = arguments
            really(descriptor, data[: len(data) // 2])
        elif self.moment == "after":
            really(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class _Fault(NamedTuple):
    """The `number`-th call fails with `code`, and, if `for_good`, so does every later one."""

    number: int
    code: int
    for_good: bool

    def __str__(self) -> str:
        return f"call {self.number}, {errno.errorcode[self.code]}{' and on' if self.for_good else ''}"


class _Failing:
    """A handler that lets calls fail as the system would: with the path, or, given a descriptor, without a name."""

    def __init__(self, fault: _Fault):
        self.fault = fault
        self.count = 0
        self.paths: dict[int, Path] = {}  # of open descriptors
        self.concerned: Path | None = None  # what the first call that failed was about

    def __call__(self, name: str, really: Callable, *arguments: Any) -> Any:
        number, self.count = self.count, self.count + 1
        if number == self.fault.number or (self.fault.for_good and number > self.fault.number):
            if name == "close":
                really(*arguments)  # closed it is, whatever it says
            about = arguments[0]
            path = self.paths[about] if isinstance(about, int) else Path(about)
            self.concerned = path if self.concerned is None else self.concerned
            named = () if isinstance(about, int) else (str(path),)
            raise OSError(self.fault.code, os.strerror(self.fault.code), *named)
        result = really(*arguments)
        if name == "open":
            self.paths[result] = Path(arguments[0])
        return result


def _after_fault(run: Path, before: Tree, fault: _Fault) -> list[str]:
    """What is wrong after a save with a fault, and after the same once more without."""
    handler, saved, found = _Failing(fault), False, []
    try:
        with intercepted(handler):
            known.save(run, 3)
            saved = True
            known.remove_old(run)
    except OSError as error:
        if str(handler.concerned) not in str(error) or os.strerror(fault.code) not in str(error):
            found.append(f"says {error} and not {handler.concerned}")
    else:
        found.append("the error was swallowed")
    found += known.wrongs(run, 3 if saved else 2)
    earlier, now = before["checkpoints"], read_tree(run / "checkpoints")
    assert isinstance(earlier, dict)
    for name in ("step_00000001", "step_00000002"):
        gone = name not in now and saved and name == "step_00000001"
        if not gone and now.get(name) != earlier[name]:
            found.append(f"{name} was changed")
    if not saved:
        # A disk that has failed for good cannot take back a rename; that step is whole, and needs no second save.
        if fault.for_good and (run / "checkpoints" / "step_00000003").exists():
            found += known.wrongs(run, 3)
        else:
            known.save(run, 3)
    return [*found, *known.go_on(run, 4)]


def _short_writes(seed: int) -> Callable[..., Any]:
    """A handler under which a write takes as few bytes as it likes, but one."""
    random = Random(seed)

    def handler(name: str, really: Callable, *arguments: Any) -> Any:
        if name == "write":
            descriptor, data = arguments
            return really(descriptor, data[: random.randint(1, len(data))])
        return really(*arguments)

    return handler
