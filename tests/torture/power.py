"""A power cut at every moment of a save: what a disk may hold then, by the model of it, and what is read there."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ddpm_cli.io import durable, run_identity
from ddpm_cli.io import run_dir as run_directory
from torture import known
from torture.disk import (
    ALL_KEPT,
    ALL_LOST,
    DATA_KEPT,
    NAMES_KEPT,
    Cut,
    Disk,
    Operation,
    Recorder,
    Tree,
    at_random,
    intercepted,
    read_tree,
    write_tree,
)
from torture.trials import Row, Setting

MEMORY = "/dev/shm"  # tens of thousands of directories are made and removed, by a disk in minutes
RANDOM_CUTS = 12  # at every moment, beside the four plain ones
OLD, NEW = b"old\n" * 40, b"new\n" * 50
Announce = Callable[[int], None]  # of a step: it is safe from now on
Job = Callable[[Path, Announce], None]  # in a directory
Check = Callable[[Path, int], Iterator[str]]  # of a directory after the cut, and of what had been announced


@dataclass(frozen=True)
class Scenario:
    """What was done to a disk, all of whose content was safe at first."""

    name: str
    before: Tree
    operations: list[Operation]
    check: Check


def power_loss(setting: Setting) -> Row:
    """Whatever was not flushed may be lost: what was announced is there, and nothing damaged is taken for whole."""
    saving, new = _saving(setting.place), _first_checkpoints(setting.place)
    scenarios = [saving, new, _first_save(setting.place), _replacing(setting.place)]
    scenarios += [*_killed_before(setting, saving), *_killed_before(setting, new)]
    scenarios += _failed_before(setting, saving)
    failures: list[str] = []
    prefixes = trials = held = 0
    for scenario in scenarios:
        outcomes = list(_outcomes(scenario, setting))
        wrong = [f"{scenario.name}, {moment}: {found[0]}" for moment, found in outcomes if found]
        failures += wrong
        prefixes += len(scenario.operations) + 1
        trials += len(outcomes)
        held += len(outcomes) - len(wrong)
    figure = (
        f"{prefixes} prefixes x {_variants(setting)} variants: {held:,}/{trials:,} load the newest announced checkpoint"
    )
    return Row(
        "power loss: unsynced writes and renames dropped at every prefix of the recorded operations",
        f"{figure}; {_teeth(saving, setting, failures)}",
        failures,
    )


def _variants(setting: Setting) -> int:
    return 4 + setting.count(RANDOM_CUTS)


def _outcomes(scenario: Scenario, setting: Setting) -> Iterator[tuple[str, list[str]]]:
    """For every moment and every cut: which it is, and what is wrong with what is left."""
    random = setting.random
    seen: dict[str, list[str]] = {}
    disk, announced = Disk(scenario.before), 0
    for moment, operation in enumerate([Operation("announce", step=0), *scenario.operations]):
        disk.apply(operation)
        announced = max(announced, operation.step)
        for variant, cut in enumerate(_cuts(random, setting.count(RANDOM_CUTS))):
            tree = disk.after(cut)
            key = repr((announced, tree))
            if key not in seen:
                with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else setting.place) as place:
                    write_tree(tree, Path(place, "left"))
                    seen[key] = list(scenario.check(Path(place, "left"), announced))
            yield f"cut {variant} after {moment} operations, the last {operation.name} {operation.path}", seen[key]


def _cuts(random: Random, count: int) -> list[Cut]:
    return [ALL_LOST, NAMES_KEPT, DATA_KEPT, ALL_KEPT, *(at_random(random) for _ in range(count))]


def _teeth(scenario: Scenario, setting: Setting, failures: list[str]) -> str:
    """How many cuts are harmful to a save that does not flush: a model that lets that pass would show nothing."""
    directories = {operation.path for operation in scenario.operations if operation.name == "mkdir"}
    directories |= {Path("checkpoints")}
    said = []
    for what, dropped in (
        ("flushing nothing", lambda _: True),
        ("no files", lambda path: path not in directories),
        ("no directories", lambda path: path in directories),
    ):
        kept = [o for o in scenario.operations if not (o.name == "fsync" and dropped(o.path))]
        outcomes = list(_outcomes(Scenario(what, scenario.before, kept, scenario.check), setting))
        caught = sum(bool(found) for _, found in outcomes)
        said.append(f"{what}, {caught:,}/{len(outcomes):,}")
        if caught == 0:
            failures.append(f"a save {what} passes for a good one: the trial shows nothing")
    return f"the same cuts harm a save {'; '.join(said)}"


# What is done -------------------------------------------------------------------------------------------------------


def _record(place: Path, before: Tree, job: Job, *, fails_at: int | None = None) -> list[Operation]:
    """What `job` does to a disk that holds `before`; its `fails_at`-th flush, if given, is refused."""
    write_tree(before, place)
    recorder, flushes = Recorder(place), 0

    def handler(name: str, really: Callable, *arguments: Any) -> Any:
        nonlocal flushes
        flushes += name == "fsync"
        if name == "fsync" and flushes - 1 == fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return recorder(name, really, *arguments)

    with intercepted(handler):
        job(place, recorder.announce)
    assert read_tree(place) == _all_of(before, recorder.operations), "the recording does not tell all that was done"
    return recorder.operations


def _all_of(before: Tree, operations: list[Operation]) -> Tree:
    """What a disk holds after all of these, without any power cut."""
    disk = Disk(before)
    for operation in operations:
        disk.apply(operation)
    return disk.after(ALL_KEPT)


def _save_3(run: Path, announce: Announce) -> None:
    announce(2)
    known.save(run, 3)
    announce(3)
    known.remove_old(run)


def _save_4(run: Path, announce: Announce) -> None:
    known.save(run, 4)
    announce(4)
    known.remove_old(run)


def _saving(place: Path) -> Scenario:
    before = known.two_saved(place / "saved")
    return Scenario("saving step 3", before, _record(place / "recorded", before, _save_3), known.wrongs)


def _killed_before(setting: Setting, scenario: Scenario) -> Iterator[Scenario]:
    """The process was killed on the way, and another one went on, before the power was cut."""
    moments = range(len(scenario.operations))
    for moment in sorted(setting.random.sample(moments, setting.count(len(moments)))):
        first = scenario.operations[:moment]
        name = f"{scenario.name}, killed after {moment} operations, then saving step 4"
        second = _record(setting.place / run_directory.plain_name(name), _all_of(scenario.before, first), _save_4)
        yield Scenario(name, scenario.before, first + second, scenario.check)


def _failed_before(setting: Setting, scenario: Scenario) -> Iterator[Scenario]:
    """A flush was refused on the way, and the next step saved, before the power was cut."""

    def job(run: Path, announce: Announce) -> None:
        try:
            _save_3(run, announce)
        except OSError:
            _save_4(run, announce)

    for flush in range(sum(operation.name == "fsync" for operation in scenario.operations)):
        name = f"{scenario.name}, flush {flush} refused, then saving step 4"
        operations = _record(setting.place / run_directory.plain_name(name), scenario.before, job, fails_at=flush)
        yield Scenario(name, scenario.before, operations, scenario.check)


def _first_save(place: Path) -> Scenario:
    """The run's directory is new, and so are those above it."""

    def job(place: Path, announce: Announce) -> None:
        run, identity = run_directory.create(place / "outputs", "run"), run_identity.Identity(name="run")
        identity.write(run)
        run_identity.remember(place / "outputs", "run", run, identity)
        durable.replace(run / run_directory.CONFIG_FILE, b"seed: 0\n")
        known.save(run, 1)
        announce(1)

    def check(place: Path, announced: int) -> Iterator[str]:
        run = run_identity.find(place / "outputs", "run").directory
        if run is not None:
            yield from known.wrongs(run, announced)
        elif announced > 0:
            yield f"step {announced} is lost with its run directory"

    return Scenario("a run's first save", {}, _record(place / "first", {}, job), check)


def _first_checkpoints(place: Path) -> Scenario:
    """The run's directory is there, `checkpoints/` is new."""

    def job(run: Path, announce: Announce) -> None:
        known.save(run, 1)
        announce(1)

    return Scenario("making checkpoints/", {}, _record(place / "new", {}, job), known.wrongs)


def _replacing(place: Path) -> Scenario:
    """`durable.replace`: old or new, and new once it has returned."""

    def job(place: Path, announce: Announce) -> None:
        durable.replace(place / "file", NEW)
        announce(1)

    def check(place: Path, announced: int) -> Iterator[str]:
        content = (place / "file").read_bytes()
        if content not in (OLD, NEW)[announced:]:
            yield f"the file holds {content[:20]!r}... ({len(content)} bytes)"

    before: Tree = {"file": OLD}
    return Scenario("replacing a file", before, _record(place / "replaced", before, job), check)
