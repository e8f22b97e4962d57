"""Evaluations of a run, as `ddpm-eval` records them: RUN/eval/NAME.json."""

from dataclasses import dataclass
from pathlib import Path

from ddpm_cli.comparison import record_files
from ddpm_cli.comparison.find import natural
from ddpm_cli.comparison.flat_config import flat
from ddpm_cli.io.text import printable

FOLDER = "eval"
FORMAT = 1
MOST_FILES = 500  # of one run
MOST_FIGURES = 500  # in one file
# Of a record, what two figures have to have in common, as far as a reader can see it.
_DECIDES = ("features", "reference")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One figure, and how it was made. Values that a record lacks, or has wrongly, are None."""

    file: Path
    name: str
    metric: str
    value: float
    standard_error: float | None
    n: int | None
    fingerprint: str
    of_class: str | None
    step: int | None
    weights: str | None
    ema_length: float | None  # of an average made afterwards, which is none of `weights` then
    sampler: str | None
    sampler_steps: int | None
    network_calls: int | None
    guidance: float | None
    seconds: float | None  # sampling
    images_per_second: float | None
    command: str | None
    decides: tuple[tuple[str, str], ...]  # key and value, for saying why figures cannot be compared

    @property
    def drawn_by(self) -> str:
        """The sampler and its settings, for a reader."""
        return self._sampling("" if self.sampler_steps is None else f"{self.sampler_steps} steps")

    @property
    def solver(self) -> str:
        """The same without the number of steps."""
        return self._sampling("")

    def _sampling(self, steps: str) -> str:
        guidance = "" if self.guidance in (None, 1.0) else f"guidance {self.guidance:g}"
        weights = "" if self.weights in (None, "ema") else str(self.weights)
        return " ".join(part for part in (self.sampler or "", steps, guidance, weights) if part)


def read_evaluations(run: Path) -> tuple[list[Evaluation], list[str]]:
    """The figures of a run in the order of their files, and lines on what is left out."""
    directory = run / FOLDER
    names = [name for name in record_files.names_in(directory, MOST_FILES + 1) if name.endswith(".json")]
    found: list[Evaluation] = []
    left_out: list[str] = []
    for name in sorted(names, key=natural)[:MOST_FILES]:
        if name.startswith("."):
            continue
        try:
            found += _figures(directory / name)
        except (OSError, ValueError) as error:
            left_out.append(printable(str(error)))
    if len(names) > MOST_FILES:
        left_out.append(f"{printable(str(directory))}: more than {MOST_FILES} files; the rest are left out")
    return found, left_out


def _figures(file: Path) -> list[Evaluation]:
    record = record_files.read_json(file)
    metrics = record.get("metrics")
    if record.get("format") != FORMAT or not isinstance(metrics, list):
        raise ValueError(f"{file} is not an evaluation of format {FORMAT}")
    model, samples, seconds = (_part(record, key) for key in ("model", "samples", "seconds"))
    shared = {
        "file": file,
        "step": record_files.whole(model.get("step")),
        "weights": record_files.text(model.get("weights")),
        "ema_length": record_files.number(model.get("ema_length")),
        "sampler": record_files.text(samples.get("sampler_name")),
        "sampler_steps": record_files.whole(samples.get("steps")),
        "network_calls": record_files.whole(samples.get("network_calls")),
        "guidance": record_files.number(_part(samples, "guidance").get("scale")),
        "seconds": record_files.number(seconds.get("sampling")),
        "images_per_second": record_files.number(record.get("images_per_second")),
        "command": record_files.text(record.get("command"), 10_000),
    }
    shown = flat({key: record.get(key) for key in _DECIDES})
    found = []
    for metric in metrics[:MOST_FIGURES]:
        figure = None if not isinstance(metric, dict) else _figure(metric, shared, shown)
        if figure is None:
            raise ValueError(f"{file} holds a figure without name, value or fingerprint")
        found.append(figure)
    return found


def _figure(metric: dict, shared: dict, shown: dict[str, str]) -> Evaluation | None:
    name, kind, fingerprint = (record_files.text(metric.get(key), 100) for key in ("name", "metric", "fingerprint"))
    value = record_files.number(metric.get("value"))
    if not name or value is None or not fingerprint:
        return None
    n, of_class = record_files.whole(metric.get("n")), metric.get("class")
    decides = {"n": str(n), **shown, "metric": kind or ""}
    return Evaluation(
        **shared,
        name=name,
        metric=kind or name,
        value=value,
        standard_error=record_files.number(metric.get("standard_error")),
        n=n,
        fingerprint=fingerprint,
        of_class=None if of_class is None else str(of_class)[:100],
        decides=tuple(decides.items()),
    )


def _part(record: dict, key: str) -> dict:
    found = record.get(key)
    return found if isinstance(found, dict) else {}
