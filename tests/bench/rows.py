"""The rows of the table: what is measured, and how much of it."""

from collections.abc import Callable
from dataclasses import dataclass

from bench import busy, distances, evaluations, machine, network, ours, peers, processes, small
from bench.cases import Place
from bench.clock import clean_up, entries, race, spread


@dataclass(frozen=True)
class Effort:
    """How often things are done."""

    rounds: int  # of a race
    processes: int  # of one kind, one after the other
    calls: int  # of the network, for a sample
    steps: int  # of which the shares are taken
    many: int  # images of one command
    evaluated: int  # images of another
    busy_seconds: float  # of a turn beside another process
    settings: int  # of OpenMP that are tried there


FULL = {
    "cpu": Effort(rounds=7, processes=3, calls=5, steps=20, many=256, evaluated=500, busy_seconds=6, settings=6),
    "cuda": Effort(rounds=7, processes=3, calls=50, steps=100, many=5000, evaluated=5000, busy_seconds=0, settings=0),
}
QUICK = {
    "cpu": Effort(rounds=2, processes=1, calls=2, steps=4, many=64, evaluated=64, busy_seconds=1, settings=2),
    "cuda": Effort(rounds=3, processes=1, calls=10, steps=20, many=1000, evaluated=1000, busy_seconds=0, settings=0),
}


def rates(place: Place, effort: Effort) -> list[dict]:
    repetitions = 4 if place.device == "cpu" else 20
    results = race(machine.products(place.device, place.precision), place.device, repetitions=repetitions, rounds=5)
    del effort
    return entries("arithmetic", "FLOP/s", results, repetitions)


def sizes(place: Place, effort: Effort) -> list[dict]:
    """Raises DifferentNetworksError if diffusers' network is not ours."""
    del effort
    counted = {name: network.sizes(place, name) for name in ("ours", *peers.there())}
    network.check_same(counted)
    return [{"row": "network", "who": name, **numbers} for name, numbers in counted.items()]


def training(place: Place, effort: Effort) -> list[dict]:
    steps = place.case.turns[place.device]
    everybody = [*ours.training(place), *peers.training(place)]
    results = race(everybody, place.device, repetitions=steps, rounds=effort.rounds)
    return entries("training", "images/s", results, steps)


def shares(place: Place, effort: Effort) -> list[dict]:
    found = ours.shares(place, effort.steps, warm_up=place.case.turns[place.device])
    clean_up()
    return [
        {"row": "share of a step", "who": f"ours, {what}", "unit": "%", **spread([100 * share for share in values])}
        for what, values in found.items()
    ]


def forward(place: Place, effort: Effort) -> list[dict]:
    passes = place.case.turns[place.device]
    everybody = [*ours.forward(place), *peers.forward(place)]
    results = race(everybody, place.device, repetitions=passes, rounds=effort.rounds)
    return entries("forward", "images/s", results, passes)


def sampling(place: Place, effort: Effort) -> list[dict]:
    everybody = [*ours.sampling(place, effort.calls), *peers.sampling(place, effort.calls)]
    results = race(everybody, place.device, repetitions=1, rounds=max(2, effort.rounds - 2))
    return entries("sampling", "images/s per call", results, 1)


def first_step(place: Place, effort: Effort) -> list[dict]:
    return processes.first_steps(place, effort.processes)


def start_up(place: Place, effort: Effort) -> list[dict]:
    return processes.start_up(place.device, place.directory, effort.processes)


def many(place: Place, effort: Effort) -> list[dict]:
    return processes.many_images(place, effort.many, effort.calls)


def beside_another(place: Place, effort: Effort) -> list[dict]:
    """Of the first configuration, on a CPU."""
    if place.device != "cpu":
        return []
    return busy.beside_another(place, effort.rounds, effort.busy_seconds, effort.settings)


def evaluation(place: Place, effort: Effort) -> list[dict]:
    """Of digits, whatever the first configuration is."""
    return evaluations.entries(place, effort.evaluated, effort.processes)


def frechet(place: Place, effort: Effort) -> list[dict]:
    """On the CPU, whatever the device is."""
    del place
    return distances.entries(effort.rounds)


def small_images(place: Place, effort: Effort) -> list[dict]:
    """Of the digits recipe's network, whatever the first configuration is."""
    return list(small.measured(place, 3 * effort.rounds))


Row = Callable[[Place, Effort], list[dict]]
# What is said of a machine, once.
ONCE: dict[str, Row] = {"arithmetic": rates, "start-up": start_up, "busy": beside_another}
# Likewise, in a table of its own.
OF_EVALUATION: dict[str, Row] = {"evaluation": evaluation, "frechet": frechet}
# In the order of what matters most where there is not time for all of them.
OF_A_CASE: dict[str, Row] = {
    "network": sizes,
    "training": training,
    "forward": forward,
    "shares": shares,
    "sampling": sampling,
    "first-step": first_step,
}
ON_CUDA: dict[str, Row] = {"many": many}
# In a table of its own.
ON_CPU: dict[str, Row] = {"small": small_images}
