"""Command lines that cannot be run: each is refused in one message, before anything is begun.

Sweeps (`-m`) are a case of their own. What is wrong with the command line itself is refused as ever, and that is tried
here. What is wrong with single runs of a sweep is said in its table, with exit status 1, when Hydra has already written
the sweep's multirun.yaml: see tests/test_sweeps.py.
"""

import gc
import itertools
import os
import random
import re
import shlex
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import hydra
import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.strategies import SearchStrategy

from ddpm_cli.config.shipped import configs_directory
from torture.malformed import Line, among_fine_options, mistakes
from torture.mistake import RUN, Mistake
from torture.options import FINE, PROGRAMS
from torture.trials import RUN as SMALL
from torture.trials import Process, Row, Setting, command

MOST_LINES = 4
SECONDS = 30  # more is a run that has begun
AT_A_TIME = 2
MOST_ROUNDS = 10  # of drawing again what has been drawn twice
SHARES = {"sample": 0.25, "eval": 0.15}  # of the lines are for these programs, the rest for ddpm-train


def malformed_command_lines(setting: Setting) -> Row:
    """2000 malformed command lines: exit status 2, one message on standard error, nothing begun, nothing written."""
    set_hypothesis_home_dir(setting.place / "hypothesis")
    _warm_up()
    run = _finished_run(setting.place / "fine")
    places = [setting.place / f"{number}" / "here" for number in range(AT_A_TIME)]
    for place in places:
        shutil.copytree(run, place / RUN)
    count = setting.count(2000)
    shares = {program: round(count * share) for program, share in SHARES.items()}
    shares = {"train": count - sum(shares.values())} | shares
    made = [line for program, share in shares.items() for line in _draw(program, share, setting.seed)]
    failures = [f"{_shell(line)}: {complaint}" for line, complaint in _tried(made, places) if complaint is not None]
    failures += [f"{place / RUN} was changed" for place in places if _files(place / RUN) != _files(run)]
    kinds = len({line.kind for line in made})
    figure = f"{len(made) - len(failures)}/{len(made)}, of {kinds} kinds"
    return Row("malformed command line: one message, nothing begun", figure, failures)


# Making them ---------------------------------------------------------------------------------------------------------


def _warm_up() -> None:
    """Do once, before any fork, what every forked process would do again: half of a trial's time."""
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        for name in PROGRAMS:
            hydra.compose(name)  # builds the tables of Hydra's parser
    gc.collect()
    gc.freeze()  # the garbage collector need not look at all of torch each time


def _finished_run(place: Path) -> Path:
    """A run for the lines that need one; it also shows that what is called fine there is."""
    steps = ["trainer.steps=2", "schedule.timesteps=30", "sampler.steps=3"]
    train = command("train", [*SMALL, *FINE["train"], *steps], place)
    assert train.wait() == 0, train.said()
    (run,) = (place / "elsewhere" / "fine").glob("*_*")
    for program in SHARES:
        process = command(program, [*FINE[program], f"ckpt='{run}'"], place)
        assert process.wait() == 0, process.said()
    return run


def _draw(program: str, count: int, seed: int) -> Iterator[Line]:
    """`count` lines, as many of each kind: the same for the same seed."""
    source = random.Random(f"{program} {seed}")
    kinds = mistakes(program)
    for number, (kind, strategy) in enumerate(kinds.items()):
        share = count * (number + 1) // len(kinds) - count * number // len(kinds)
        different = _examples(strategy, share, seed)
        for mistake in itertools.islice(itertools.cycle(different), share):
            yield among_fine_options(program, kind, mistake, source)


def _examples(strategy: SearchStrategy[Mistake], count: int, seed: int) -> list[Mistake]:
    """Different mistakes, `count` of them unless there are fewer."""
    made: dict[Mistake, None] = {}

    def collect(mistake: Mistake) -> None:
        made[mistake] = None

    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for again in range(MOST_ROUNDS):
        if len(made) < count:
            hypothesis.seed(f"{seed} {again}")(settings(hypothesis.given(strategy)(collect)))()
    return list(made)[:count]


# Trying them ---------------------------------------------------------------------------------------------------------


def _tried(made: Iterable[Line], somewhere: Iterable[Path]) -> Iterator[tuple[Line, str | None]]:
    """Every line with what is wrong with how it was refused, None where nothing is."""
    places = deque(somewhere)
    under_way: deque[tuple[Line, Process, Path]] = deque()
    for line in made:
        if len(under_way) == len(places):
            yield _judge(*under_way.popleft())
        places.rotate()
        under_way.append((line, _start(line, places[0]), places[0]))
    for trial in under_way:
        yield _judge(*trial)


def _start(line: Line, place: Path) -> Process:
    def separate_output() -> None:
        os.dup2(os.open(place.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)

    cache = str(place.with_suffix(".cache"))
    return command(line.program, line.arguments, place, prepare=separate_output, XDG_CACHE_HOME=cache)


def _judge(line: Line, process: Process, place: Path) -> tuple[Line, str | None]:
    try:
        complaint = _complaint(line, process.wait(SECONDS), process.said(), place)
    except TimeoutError:
        complaint = f"did not end in {SECONDS} s"
    if complaint is not None:
        for left in (place, place.with_suffix(".cache")):
            shutil.rmtree(left, ignore_errors=True)
        place.mkdir()
    process.log.unlink()
    return line, complaint


def _complaint(line: Line, status: int, said: str, place: Path) -> str | None:
    start = f"ddpm-{line.program}: "
    if status != 2:
        return f"exit status {status}: {said[-300:]}"
    if not said.startswith(start) or said.count(f"\n{start}") or "Traceback" in said:
        return f"not one message: {said[-300:]}"
    if len(said.splitlines()) > MOST_LINES or re.search("[\x00-\x09\x0b-\x1f\x7f]", said):
        return f"a message of many lines or with control characters: {said!r:.300}"
    if line.mentions not in said:
        return f"does not mention {line.mentions!r}: {said:.300}"
    output = place.with_suffix(".out").read_text(encoding="utf-8", errors="replace")
    if output:
        return f"something on standard output: {output:.300}"
    written = [*_files(place), *_files(place.with_suffix(".cache"))]
    return f"has written {', '.join(written[:5])}" if written else None


def _files(place: Path) -> list[str]:
    return sorted(f"{path.relative_to(place)} {path.lstat().st_size}" for path in place.rglob("*"))


def _shell(line: Line) -> str:
    text = f"{line.kind}: ddpm-{line.program} {shlex.join(line.arguments)}"
    return (text if len(text) < 500 else f"{text[:500]}...").encode("ascii", "backslashreplace").decode()
