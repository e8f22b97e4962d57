"""What surrounds a command goes away or does not wait: its terminal, its console, whoever is impatient at its end."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from torture.kills import ARGUMENTS, RESUME_LATER, chains, check_finished, signalled
from torture.reference import NAME, make_reference, newest_step
from torture.trials import RUN, Clock, Row, Setting, command, counting, noting, run_directories

SAMPLE = ["n=6", "batch_size=2", "sampler=ddim", "sampler.steps=2", "save=images", "save_trajectory=true", "out=out"]
CALLS = ("rename", "fsync", "mkdir", "unlink", "sync")  # of os, from when all images are there


def sighup_at_random_moments(setting: Setting) -> Row:
    """The terminal is gone: SIGHUP, twice as a shell and the kernel send it, and nothing can be said any more."""
    stops, failures, random = setting.count(60), [], setting.random
    reference = make_reference(RUN, setting.place / "reference")
    statuses, lost, runs = [], [], 0
    for chain, place in chains(setting.place / "chains", lambda: len(statuses) < stops):
        clock, runs = Clock(), runs + 1
        while True:
            clock.set(0)
            process = command("train", ARGUMENTS, place, prepare=counting(clock))
            if len(statuses) >= stops or not signalled(process, signal.SIGHUP, random.uniform(0.02, 1.2)):
                check_finished(process, place, reference, failures, f"chain {chain}")
                break
            process.kill(signal.SIGHUP)
            with noting(failures, f"chain {chain}"):
                status = process.wait()
                if status == 0:
                    check_finished(process, place, reference, failures, f"chain {chain}")
                    break
                statuses.append(status)
                lost.append(clock.get() - newest_step(place) if clock.get() > 0 else 0)
                if status != RESUME_LATER:
                    failures.append(f"chain {chain}: exit status {status}: {process.said()[-300:]}")
    if any(lost):
        failures.append(f"steps lost: {[steps for steps in lost if steps]}")
    figure = (
        f"exit {RESUME_LATER} {statuses.count(RESUME_LATER)}/{len(statuses)}; lost steps {max(lost, default=0)}; "
        f"{runs} runs, each bit-equal"
    )
    return Row("SIGHUP twice at random moments", figure, failures)


def console_lost_at_random_moments(setting: Setting) -> Row:
    """Standard output and error: closed from the beginning, full, or a reader that goes away at a random moment."""
    tries, failures, random = setting.count(60), [], setting.random
    reference = make_reference(RUN, setting.place / "reference")
    for attempt in range(tries):
        place, how = setting.place / f"attempt_{attempt}", ("closed", "full", "dead")[attempt % 3]
        what = f"attempt {attempt}, {how}"
        reading, writing = os.pipe()

        def prepare(how: str = how, writing: int = writing, reading: int = reading) -> None:
            os.close(reading)
            target = os.open("/dev/full", os.O_WRONLY) if how == "full" else writing
            for number in (1, 2):
                os.close(number) if how == "closed" else os.dup2(target, number)

        process = command("train", ARGUMENTS, place, prepare=prepare)
        os.close(writing)
        threading.Timer(random.uniform(0, 1.0), os.close, [reading]).start()
        with noting(failures, what):
            process.wait()
        check_finished(process, place, reference, failures, what)
        (directory,) = run_directories(place, NAME)
        log = (directory / "train.log").read_text(encoding="utf-8")
        told = log.count("standard output cannot be written")
        if told > 1 or (how != "dead" and told == 0):
            failures.append(f"{what}: train.log does not say once that the console is gone")
    held = tries - len({line.partition(":")[0] for line in failures})
    return Row("console closed, full, dead at random moments", f"{held}/{tries} ran to their end, bit-equal", failures)


def ends_disturbed(setting: Setting) -> Row:
    """A signal, or SIGKILL, at a random call or moment of a command's end; then the same command again."""
    tries, failures, random = setting.count(60), [], setting.random
    run = setting.place / "run"
    if command("train", [*RUN, f"name={NAME}", f"output_dir={run}"], setting.place / "train").wait() != 0:
        return Row("a finished command disturbed", "the run failed", ["see its log"])
    arguments = [f"ckpt={next((run / NAME).glob('2*'))}", *SAMPLE]
    whole = setting.place / "whole"
    command("sample", arguments, whole).wait()
    for attempt in range(tries):
        place, number = setting.place / f"attempt_{attempt}", random.choice(["TERM", "INT", "HUP", "XCPU", "KILL"])
        what, sent = f"attempt {attempt}, SIG{number}", getattr(signal, f"SIG{number}")
        with noting(failures, what):
            if attempt % 3 == 2 and number != "KILL":
                prepare = _after_the_last_save(sent, random.uniform(0, 0.02))
                process = command("train", ARGUMENTS, place, prepare=prepare)
            else:
                process = command("sample", arguments, place, prepare=_at_a_call(sent, random.randrange(24)))
            status, again = process.wait(), None
            if attempt % 3 != 2 or number == "KILL":
                again = command("sample", arguments, place)
                if again.wait() != 0 or _contents(place) != _contents(whole):
                    failures.append(f"{what}: given again {again.status}: {again.said()[-300:]}")
            if status not in ((0, -signal.SIGKILL) if number == "KILL" else (0,)):
                failures.append(f"{what}: exit status {status}: {process.said()[-300:]}")
    held = tries - len({line.partition(":")[0] for line in failures})
    figure = f"{held}/{tries}: exit 0, or killed finished by the same command, byte-equal"
    return Row("signals and SIGKILL at the end of a finished command, given again", figure, failures)


def _at_a_call(number: int, call: int) -> Callable[[], None]:
    """In a forked process: sends it a signal before its `call`-th system call once all images are there."""

    def prepare() -> None:
        from ddpm_cli.sampling import outputs

        write, left = outputs.write, [call]

        def watched(name: str) -> Callable:
            original = getattr(os, name)

            def instead(*arguments, **options):
                left[0] -= 1
                if left[0] == -1:
                    os.kill(os.getpid(), number)
                return original(*arguments, **options)

            return instead

        def watching(*arguments, **options):
            for name in CALLS:
                setattr(os, name, watched(name))
            return write(*arguments, **options)

        outputs.write = watching

    return prepare


def _after_the_last_save(number: int, seconds: float) -> Callable[[], None]:
    """In a forked process: sends it a signal so long after it has saved its last step."""

    def prepare() -> None:
        from ddpm_cli.training.run import TrainingRun

        finish = TrainingRun._finish

        def finishing(self: TrainingRun) -> None:
            if not self.done:
                timer = threading.Timer(seconds, os.kill, [os.getpid(), number])
                timer.daemon = True
                timer.start()
            finish(self)

        TrainingRun._finish = finishing

    return prepare


def _contents(place: Path) -> dict[str, bytes]:
    out = place / "out"
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
