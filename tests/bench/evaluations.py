"""What evaluating takes beside drawing, as a whole ddpm-eval says: of digits, by a network that has learnt nothing."""

import json
from dataclasses import replace
from pathlib import Path

from bench import processes
from bench.cases import CASES, Place
from bench.clock import spread

STEPS = 25  # calls of the network for an image, as ddpm-eval has it
DRAWING = "sampling"  # what a record calls it
DEFAULT_BATCH = 64  # likewise
FEW = 16  # images of the command that makes what all others find in the cache
LABELLED = "data=digits"


def entries(place: Place, count: int, rounds: int) -> list[dict]:
    """Shares of the time, in percent, of `count` images with features of a classifier.

    A command before them trains that and makes the features of the reference: once for a data set.
    """
    if LABELLED not in place.case.overrides:
        place = replace(place, case=CASES["digits"], directory=place.directory / "digits")
        place.directory.mkdir(parents=True)
    run = processes.untrained_run(place, "evaluated")
    steps = min(STEPS, place.config["schedule"]["timesteps"])
    _seconds(run, place, FEW, 1)
    seen = [_seconds(run, place, count, steps) for _ in range(rounds)]
    shares = [{what: 100 * spent / sum(seconds.values()) for what, spent in seconds.items()} for seconds in seen]
    rates = spread([count / seconds[DRAWING] for seconds in seen])
    own = [100 - share[DRAWING] for share in shares]
    return [
        _entry(f"all but {DRAWING}", own) | {"drawn": {"images": count, "calls": steps, "per_second": rates["median"]}},
        *(_entry(what, [share[what] for share in shares]) for what in shares[0] if what != DRAWING),
    ]


def _entry(who: str, shares: list[float]) -> dict:
    return {"row": "share of an evaluation", "who": who, "unit": "%", **spread(shares)}


def _seconds(run: Path, place: Place, count: int, steps: int) -> dict[str, float]:
    """By what they were spent on."""
    out = run / "eval" / str(len(list(run.glob("eval/*"))))
    at_a_time = max(DEFAULT_BATCH, place.case.sampled[place.device])
    processes.run(
        "ddpm_cli.eval", f"ckpt={run}", f"n={count}", f"batch_size={at_a_time}",
        *("sampler=dpmpp_2m_sde", f"sampler.steps={steps}", "features=classifier"),
        *(f"device={place.device}", "compile=false", f"out={out}"),
        cwd=place.directory, XDG_CACHE_HOME=str(place.directory / "cache"),
    )  # fmt: skip
    (record,) = out.glob("*.json")
    return json.loads(record.read_text(encoding="utf-8"))["seconds"]
