"""Runs of one name among copies, archives and clocks that were put back: the right one is trained, or none."""

import random
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from commands import TINY

from ddpm_cli.io import run_dir
from torture.trials import Row, Setting, command, noting

NAME = "x"
ARGUMENTS = [*TINY, f"name={NAME}", "trainer.preview_every=0"]
MISTAKE = 2


class _House:
    """The runs of one name, and which of them is meant: known from what was done to them."""

    def __init__(self, place: Path, source: random.Random):
        self.place, self.random = place, source
        self.runs = place / "outputs" / NAME
        self.meant: Path | None = None  # None: it has been taken away
        self.steps = 2

    def train(self, *more: str) -> tuple[int, str]:
        """The command that is given again and again; its clock says anything."""
        now = datetime(2026, 10, 25, 3) + timedelta(minutes=self.random.randrange(-10_000, 10_000))

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return now

        def set_clock() -> None:
            run_dir.datetime = Clock

        process = command("train", [*ARGUMENTS, f"trainer.steps={self.steps}", *more], self.place, prepare=set_clock)
        return process.wait(), process.said()

    def begin(self) -> None:
        before = self._directories()
        self.steps = 2
        status, said = self.train("resume=null")
        (self.meant,) = self._directories() - before
        assert status == 0, said

    def copy(self) -> None:
        name = self.random.choice(("backup", "2099-01-01_00-00-00", "1999-01-01_00-00-00", "a_copy"))
        if self.meant is not None and not (self.runs / name).exists():
            shutil.copytree(self.meant, self.runs / name, symlinks=True)

    def rename(self) -> None:
        copies = [path for path in self._directories() if _id(path) == _id(self.meant)]
        if self.meant is not None and len(copies) == 1:
            self.meant = self.meant.rename(self.meant.with_name(f"renamed_{self.random.randrange(10**6)}"))

    def archive(self) -> None:
        copies = [path for path in self._directories() if _id(path) == _id(self.meant)]
        if self.meant is not None and len(copies) == 1:
            shutil.move(self.meant, self.place / f"archive_{self.random.randrange(10**6)}")
            self.meant = None

    def go_on(self) -> str | None:
        """What was wrong with training two steps more, if anything was."""
        self.steps += 2
        before = {path: _newest(path) for path in self._directories()}
        status, said = self.train()
        after = {path: _newest(path) for path in self._directories()}
        if self.meant is None:
            self.steps -= 2
            refused = status == MISTAKE and "no longer exists" in said
            return None if refused and after == before else f"nothing was to be trained: status {status}: {said[-300:]}"
        expected = before | {self.meant: self.steps}
        others = len(before) > 1
        if status != 0 or after != expected or (others and "started last; there are also" not in said):
            return f"expected {self.meant.name} at {self.steps}, got status {status}, {after}: {said[-300:]}"
        return None

    def _directories(self) -> set[Path]:
        return {path for path in self.runs.glob("*") if path.is_dir()}


def confused_runs(setting: Setting) -> Row:
    """`name=x` again and again, among random copies, renamings, archives, and runs begun with the clock put back."""
    tries, failures, source = setting.count(150), [], setting.random
    right = refused = house = 0
    while right + refused + len(failures) < tries:
        house += 1
        place = _House(setting.place / f"house_{house}", source)
        with noting(failures, f"house {house}"):
            place.begin()
            for _ in range(8):
                source.choice((place.begin, place.copy, place.copy, place.rename, place.archive))()
                wrong = place.go_on()
                if wrong is not None:
                    raise AssertionError(wrong)
                right += place.meant is not None
                refused += place.meant is None
                if place.meant is None:
                    place.begin()
    figure = f"{right + refused}/{right + refused + len(failures)}: {right} trained the one that was begun last, "
    figure += f"{refused} refused, as it had been taken away"
    return Row("one name among copies, renamed and archived runs, and clocks put back", figure, failures)


def _id(directory: Path | None) -> str | None:
    return None if directory is None else (directory / "run.json").read_text()


def _newest(directory: Path) -> int:
    return max(int(path.name.removeprefix("step_")) for path in directory.glob("checkpoints/step_*"))
