"""Sweeps (`-m`): what each run leaves behind, and the table at the end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

RESULT_FILE = "result.json"
SHEET_FILE = "contact_sheet.png"


def write_result(
    directory: Path,
    *,
    overrides: list[str],
    loss: float | None,
    error: str | None,
    details: str | None = None,
    picture: str | None = None,
) -> None:
    """Keep in a run of a sweep how it ended, where `SweepReport` finds it whichever launcher ran it.

    Args:
        picture: the file to show in the sweep's contact sheet.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if details is not None:
        (directory / "error.log").write_text(details, encoding="utf-8")
    result = {"overrides": overrides, "final_loss": loss, "error": error, "picture": picture}
    (directory / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def has_result(directory: Path) -> bool:
    """Whether a run of some sweep has ended in this directory."""
    return (directory / RESULT_FILE).exists()


class SweepReport(Callback):
    """Hydra callback: when a sweep is over, prints one line per run with its overrides and final loss or error.

    Where the runs have left pictures, they are put together on one sheet.
    """

    failed = 0  # runs of this process's sweep that failed: the exit status says so
    earlier: frozenset[Path] = frozenset()  # results of another sweep in the same directory, which is refused

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.earlier = frozenset(_results(Path(config.hydra.sweep.dir)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from ddpm_cli.contact_sheet import contact_sheet  # brings torch with it

        directory = Path(config.hydra.sweep.dir)
        if self.earlier:
            return
        results = sorted(_results(directory), key=lambda file: (len(file.parent.name), file.parent.name))
        print(f"\nsweep in {directory}")
        pictures = []
        for file in results:
            result = json.loads(file.read_text(encoding="utf-8"))
            print(f"  {file.parent.name}  {' '.join(result['overrides'])}  {_ended(result)}")
            SweepReport.failed += result["error"] is not None
            pictures.append((result["overrides"], None if result["picture"] is None else Path(result["picture"])))
        sheet = contact_sheet(pictures)
        if sheet is not None:
            sheet.save(directory / SHEET_FILE)
            print(f"  {directory / SHEET_FILE}")


def _results(directory: Path) -> Iterator[Path]:
    return directory.glob(f"*/{RESULT_FILE}")


def _ended(result: dict) -> str:
    if result["error"] is not None:
        return f"FAILED: {result['error']}"
    return "done" if result["final_loss"] is None else f"loss {result['final_loss']:.4f}"
