"""The evaluations of a run: which are recorded, which is missing, and which checkpoint is the best by them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddpm_cli.io import run_dir
from ddpm_cli.io.metrics_file import lines_of
from ddpm_cli.runtime.interruptible import carried_out
from ddpm_cli.training.best import Best, best_on_record, write_best
from ddpm_cli.training.build import Training
from ddpm_cli.training.evaluator import Evaluator
from ddpm_cli.training.measured import Evaluation, figure, last_evaluation


class Evaluations:
    """The evaluations of a run; every rank has them.

    Attributes:
        last: the record of the last one; None: there was none.
        best: the best checkpoint, if `keep_best` keeps one; None: there is none yet.
    """

    def __init__(self, training: Training):
        self.trainer = training.trainer
        self.evaluator = Evaluator(training) if self.trainer.config.eval_every > 0 else None
        self.last: dict[str, Any] | None = None
        self.best: Best | None = None

    def recall(self, run_directory: Path) -> None:
        """Read the records, and bring best.json up to date."""
        found = None
        if self.trainer.world.main:
            metrics, name = run_directory / run_dir.METRICS_FILE, self.trainer.config.keep_best
            saved = run_dir.by_step(run_directory / run_dir.CHECKPOINTS)
            best = None if name is None else best_on_record(metrics, name, saved)
            write_best(run_directory, best)
            found = last_evaluation(lines_of(metrics)), best
        self.last, self.best = self.trainer.world.broadcast(found)

    @property
    def missing(self) -> bool:
        """Whether this step should be evaluated, and its evaluation is not recorded."""
        step, config = self.trainer.step, self.trainer.config
        recorded = self.last is not None and self.last["step"] == step
        return step > 0 and config.due(config.eval_every, step) and not recorded

    def measure(self, *, unless: Callable[[], bool]) -> Evaluation | None:
        """Evaluate the average as it is now; None if `unless` asks meanwhile to abandon it."""
        assert self.evaluator is not None
        self.trainer.check_finite()
        hidden = None if self.trainer.world.main else True
        bar = {"desc": "evaluating", "unit": "call", "disable": hidden, "leave": False, "dynamic_ncols": True}
        with tqdm(total=self.evaluator.calls(), **bar) as shown:
            found = carried_out(self.evaluator.evaluate(), unless=unless, advance=shown.update)
        if found is not None:
            self.last = {"step": found.step} | found.figures
        return found

    def better(self, found: Evaluation) -> Best | None:
        """The figure of this step's checkpoint, if it is better than all others and so must be kept."""
        name = self.trainer.config.keep_best
        value = math.nan if name is None else figure(found.figures, name)
        if name is None or math.isnan(value) or (self.best is not None and not self.best.beaten_by(value)):
            return None
        return Best(name, value, found.step)
