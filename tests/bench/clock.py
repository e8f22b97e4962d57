"""Turns of several contestants, A B A B, so that a busy minute of the machine meets them all."""

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

Turn = Callable[[int], object]  # does its work that many times


@dataclass(frozen=True)
class Contestant:
    """Something to be timed.

    Args:
        amount: of what is counted per second, in one repetition.
        prepare: builds it; what it returns does the work.
        reference: whom the others are compared with.
        cudnn_benchmark: whether its authors let cuDNN look for the fastest algorithm.
    """

    name: str
    amount: float
    prepare: Callable[[], Turn]
    reference: bool = False
    cudnn_benchmark: bool = False


@dataclass
class Result:
    """What the clock said."""

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)  # of each turn
    first_seconds: float | None = None  # from building it to the end of its first repetition
    peak_bytes: int | None = None  # allocated on a GPU by it alone
    failure: str | None = None


def seconds(device: str, work: Callable[[], object]) -> float:
    """How long `work` takes, on a GPU until it has been computed."""
    if device == "cpu":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def race(contestants: Sequence[Contestant], device: str, *, repetitions: int, rounds: int) -> list[Result]:
    """Time every contestant in turn; who fails is left out and says why."""
    results = [Result(contestant) for contestant in contestants]
    turns: dict[str, Turn] = {}
    for result in results:
        with _Failing(result, turns):
            turns[result.contestant.name] = _warmed_up(result, device, repetitions)
    for _ in range(rounds):
        for result in results:
            turn = turns.get(result.contestant.name)
            if turn is not None:
                with _Failing(result, turns):
                    torch.backends.cudnn.benchmark = result.contestant.cudnn_benchmark
                    result.seconds.append(seconds(device, lambda turn=turn: turn(repetitions)))
    turns.clear()
    turn = None
    clean_up()
    return results


def _warmed_up(result: Result, device: str, repetitions: int) -> Turn:
    clean_up(compiled=False)  # others hold on to what they have compiled
    torch.backends.cudnn.benchmark = result.contestant.cudnn_benchmark
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    began = time.perf_counter()
    turn = result.contestant.prepare()
    seconds(device, lambda: turn(1))
    result.first_seconds = time.perf_counter() - began
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # without what compiling and looking for algorithms took
    seconds(device, lambda: turn(max(1, repetitions)))
    if device == "cuda":
        result.peak_bytes = torch.cuda.max_memory_allocated() - before
    return turn


class _Failing:
    """What goes wrong inside takes this contestant out of the race, and nobody else."""

    def __init__(self, result: Result, turns: dict[str, Turn]):
        self.result = result
        self.turns = turns

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        self.result.failure = traceback.format_exception_only(error)[-1].strip()
        self.turns.pop(self.result.contestant.name, None)
        return True


def clean_up(*, compiled: bool = True) -> None:
    """Give back the memory of those who are done."""
    if compiled and torch.cuda.is_available():
        torch.compiler.reset()  # every compiled network counts towards one limit
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def entries(row: str, unit: str, results: Sequence[Result], repetitions: int) -> list[dict]:
    """One entry of the JSON for each result; ratios are the reference's speed over its own, of the same round."""
    raced = [result for result in results if result.failure is None]
    references = [result for result in raced if result.contestant.reference]
    made = []
    for result in results:
        entry: dict = {"row": row, "who": result.contestant.name, "unit": unit}
        if result.failure is not None:
            made.append(entry | {"failure": result.failure})
            continue
        rates = [result.contestant.amount * repetitions / taken for taken in result.seconds]
        entry |= spread(rates)
        if references and references[0] is not result:
            pairs = zip(result.seconds, references[0].seconds, strict=True)
            scale = references[0].contestant.amount / result.contestant.amount
            entry["ratio"] = spread([scale * own / ours for own, ours in pairs])
        entry["first_seconds"] = result.first_seconds
        if result.peak_bytes is not None:
            entry["peak_bytes"] = result.peak_bytes
        made.append(entry)
    return made


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}
