"""How far a sweep has come, as its runs say it when they begin and end: which of how many, what differs, time left."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ddpm_cli.cli.run_result import result_in
from ddpm_cli.cli.sweep_plan import PlannedRun
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.io.text import duration_text, printable


@dataclass
class SweepProgress:
    """What one process knows of it. It pickles, for the processes to which a launcher sends runs.

    Attributes:
        runs: all of the sweep, in order; none if a sweeper other than Hydra's decides them as it goes.
        seconds: what each run took that this process has done from its beginning to its end.
    """

    runs: Sequence[PlannedRun] = ()
    seconds: list[float] = field(default_factory=list)

    def header(self, number: int, overrides: Sequence[str]) -> str:
        """The line above what run `number` (0, 1, ...) prints."""
        if not self.runs:
            return printable(f"run {number + 1}: {' '.join(overrides)}")
        what = " ".join(varying([run.overrides for run in self.runs])[number])
        return printable(f"run {number + 1} of {len(self.runs)}: {what}{self._left(number)}")

    def so_far(self) -> str:
        """How many runs are done, in whichever process; nothing where it is not known how many there will be."""
        return f" ({self._done(self.runs)} of {len(self.runs)} runs done)" if self.runs else ""

    def _left(self, number: int) -> str:
        """Roughly, by those that are done: earlier ones may have been longer, and are all there is to go by."""
        if not self.seconds:
            return ""
        to_come = self.runs[number:]
        seconds = sum(self.seconds) / len(self.seconds) * (len(to_come) - self._done(to_come))
        return f"  ({self._done(self.runs)} done, about {duration_text(seconds)} left)"

    def _done(self, runs: Sequence[PlannedRun]) -> int:
        count = 0
        for run in runs:
            with suppress(ConfigError, OSError):  # for the report to say
                result = result_in(run.directory)
                count += result is not None and result.done
        return count


def varying(overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each run's overrides those in which the runs differ; all, where they are the same or not of the same keys."""
    runs = [list(run) for run in overrides]
    if len({len(run) for run in runs}) != 1:
        return runs
    places = [i for i, texts in enumerate(zip(*runs, strict=True)) if len(set(texts)) > 1]
    return [[run[i] for i in places] for run in runs] if places else runs


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells below each other; the last cell of a row is as long as it is."""
    most = max((len(row) for row in rows), default=0)
    widths = [max((len(row[i]) for row in rows if i < len(row) - 1), default=0) for i in range(most)]
    return ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]) for row in rows]
