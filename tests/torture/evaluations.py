"""Evaluations, by `ddpm-eval` and while training, that are killed at random moments until they are done."""

import json
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from ddpm_cli import checkpoint
from torture.kills import RESUME_LATER, chains, check_finished, signalled
from torture.reference import NAME, Reference, events, make_reference
from torture.trials import RUN, Process, Row, Setting, command, noting, run_directories

KILLED = 0.75  # of the signals are SIGKILL, the others SIGTERM
WITH_FIGURES = [
    *(*RUN, "data.holdout=16", "trainer.eval_every=8", "trainer.eval_images=6", "trainer.keep_best=fd"),
    "optimizer.lr=0.1",  # the best step is the 16th of 40: later ones have to be compared with what is on record
]
EVALUATE = [
    *("n=600", "batch_size=15", "sampler.steps=6", "features=pixels", "metrics=[fd,kd,precision_recall,bpd,heldout]"),
    *("likelihood_images=16", "keep=true", "out=out"),
]
FLUSH_SECONDS = 0.02  # instead of 1.0: the whole evaluation takes about as long


@dataclass
class Signals:
    """What has been sent, and what came of it."""

    random: random.Random
    wanted: int
    seconds: float  # within which a signal is sent: as long as a process takes that nobody disturbs
    failures: list[str] = field(default_factory=list)
    killed: int = 0
    stopped: int = 0

    @property
    def sent(self) -> int:
        return self.killed + self.stopped

    def disturb(self, process: Process, what: str) -> bool:
        """Send it one, and wait for its end; False: it has ended by itself, or is to."""
        number = signal.SIGKILL if self.random.random() < KILLED else signal.SIGTERM
        if self.sent >= self.wanted or not signalled(process, number, self.random.uniform(0, self.seconds)):
            return False
        status = process.wait()
        if status == 0:  # it was just done
            return False
        if number == signal.SIGKILL:
            self.killed += 1
        else:
            self.stopped += 1
            if status != RESUME_LATER:
                self.failures.append(f"{what}: exit status {status}: {process.said()[-300:]}")
        return True


def evaluations_killed_at_random_moments(setting: Setting) -> Row:
    """The same command again and again ends with the figures, to the last bit, of one that was left alone."""
    failures: list[str] = []
    began = time.monotonic()
    trained = make_reference(WITH_FIGURES, setting.place / "training" / "reference")
    training = Signals(setting.random, setting.count(50), time.monotonic() - began, failures)
    runs = _trainings(setting.place / "training", trained, training)
    began = time.monotonic()
    whole = _evaluation(trained.directory, setting.place / "evaluating" / "whole")
    if whole.wait() != 0:
        return Row("evaluations", "could not be made", [whole.said()[-300:]])
    evaluating = Signals(setting.random, setting.count(50), time.monotonic() - began, failures)
    evaluations, resumed = _evaluations(setting.place / "evaluating", trained.directory, evaluating)
    sent = evaluating.sent + training.sent
    figure = (
        f"{sent}/{evaluating.wanted + training.wanted}, {evaluating.stopped + training.stopped} of them SIGTERM (exit "
        f"{RESUME_LATER}); ddpm-eval resumed with images {resumed} times; {evaluations} evaluations and {runs} "
        "runs that evaluate, each bit-equal in figures, samples, best.json, state"
    )
    return Row("SIGKILL and SIGTERM while evaluating, chained until it completes", figure, failures)


def _trainings(place: Path, reference: Reference, signals: Signals) -> int:
    """How many runs it took; each is compared with the one that was left alone."""
    runs = 0
    for chain, where in chains(place, lambda: signals.sent < signals.wanted):
        what, runs = f"training, chain {chain}", runs + 1
        while True:
            process = command("train", [*WITH_FIGURES, f"name={NAME}"], where)
            with noting(signals.failures, what):
                if signals.disturb(process, what):
                    continue
            check_finished(process, where, reference, signals.failures, what)
            with noting(signals.failures, what):
                if _best(run_directories(where, NAME)[-1]) != _best(reference.directory):
                    signals.failures.append(f"{what}: another best.json, or another checkpoint")
            break
    return runs


def _best(directory: Path) -> tuple[dict, bytes]:
    """What best.json says, and the EMA in the checkpoint that it names. (SIGTERM saves steps that others do not.)"""
    said = json.loads((directory / "best.json").read_text())
    return said, (directory / "checkpoints" / said["checkpoint"] / checkpoint.EMA_FILE).read_bytes()


def _evaluation(run: Path, place: Path) -> Process:
    def flush_often() -> None:
        from ddpm_cli.sampling import batch_store

        batch_store.FLUSH_SECONDS = FLUSH_SECONDS

    cache = str(place.with_suffix(".cache"))  # the reference's features are made, and may be cut short, in each chain
    return command("eval", [f"ckpt={run}", *EVALUATE], place, prepare=flush_often, XDG_CACHE_HOME=cache)


def _evaluations(place: Path, run: Path, signals: Signals) -> tuple[int, int]:
    """How many evaluations it took, and how often one went on with images that were there."""
    evaluations, resumed = 0, 0
    for chain, where in chains(place, lambda: signals.sent < signals.wanted):
        what, evaluations = f"evaluating, chain {chain}", evaluations + 1
        while True:
            resumed += any(any(done.read_bytes()) for done in where.glob("out/.*/done"))
            process = _evaluation(run, where)
            with noting(signals.failures, what):
                if signals.disturb(process, what):
                    continue
                if process.wait() != 0:
                    signals.failures.append(f"{what}: exit status {process.status}: {process.said()[-300:]}")
                elif _figures(where / "out") != _figures(place / "whole" / "out"):
                    signals.failures.append(f"{what}: other figures, or something is left: {_left(where / 'out')}")
            break
    return evaluations, resumed


def _figures(out: Path) -> tuple:
    """The one record's figures, and what has been found beside them; the samples; TensorBoard's values; all names."""
    (path,) = out.glob("*.json")
    record = json.loads(path.read_text())
    figures = {key: record[key] for key in ("metrics", "details", "samples", "reference", "model", "remarks", "files")}
    files = {file.name: file.read_bytes() for file in (*out.glob("*.npz"), *out.glob("*.png"))}
    # A kill between TensorBoard and the record leaves its values there twice, of the same step.
    return figures, files, set(events(out)), _left(out)


def _left(out: Path) -> list[str]:
    return sorted(file.name for file in out.iterdir())
