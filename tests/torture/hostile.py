"""Somebody else's checkpoint runs no code, reads no file outside it, follows no URL, takes no memory without bound."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torture import hostile_configs, hostile_files, hostile_places
from torture.hostile_run import ALL, EMA, STEP, Foreign, Kind
from torture.hostile_watch import MIB, Elsewhere, check_finite, misbehave, misbehave_in_c, watched
from torture.trials import RUN, Process, Row, Setting, command, fork, noting, run_directories

SECONDS = 30  # a trial takes half a second; one that takes so long hangs
NOISE = 32 * MIB  # the same command twice differs by a few of them
LONGEST_MESSAGE = 2000  # characters: one message, not a screenful
LONE = "lone.safetensors"
CONTROL = Kind("nothing at all", lambda _: None, "", ALL)

_SAMPLE = ["n=2", "batch_size=2", "sampler=ddim", "sampler.steps=2", "precision=fp32", "device=cpu"]


def _sample(run: Path) -> None:
    sys.argv = ["ddpm-sample", f"ckpt={run}", *_SAMPLE]
    from ddpm_cli.sample import main

    main()


def _resume(run: Path) -> None:
    sys.argv = ["ddpm-train", f"resume={run}", f"trainer.steps={STEP + 2}", "trainer.keep_last=1"]
    from ddpm_cli.train import main

    main()


def _load(run: Path) -> None:
    """Both sets of weights of the run, an average of another length, and those of a lone EMA file."""
    from ddpm_cli.checkpoint import CheckpointError
    from ddpm_cli.checkpoint.pretrained import load
    from ddpm_cli.config.errors import ConfigError

    refused = False
    lone = run.with_name(LONE)
    ways: list[tuple[Path, str, float | None]] = [(run, "ema", None), (run, "model", None), (run, "ema", 0.08)]
    for path, weights, length in (*ways, *([(lone, "ema", None)] if lone.exists() else [])):
        try:
            load(path, weights=weights, ema_length=length)
        except (CheckpointError, ConfigError) as error:
            print(f"load: {path.name}: {error}")
            refused = True
    sys.exit(2 if refused else 0)


WAYS: dict[str, Callable[[Path], None]] = {"sample": _sample, "resume": _resume, "load": _load}


@dataclass
class Tally:
    """What all trials together came to."""

    trials: int = 0
    refused: int = 0
    seen: dict[str, int] = field(default_factory=lambda: {"executed": 0, "connected": 0, "read": 0, "written": 0})
    most_taken: int = 0  # bytes, above what the same use of a good checkpoint takes
    most_times: float = 0.0  # the hostile files' size, where it was more than noise
    usual: dict[str, int] = field(default_factory=dict)  # bytes that a good one takes, by way


def hostile_checkpoints(setting: Setting) -> Row:
    """Every kind of hostile checkpoint, used in every way; a good one first, without which a refusal means nothing."""
    good = _good_run(setting.place / "good")
    check_finite()
    tally, failures = Tally(), _unseen(setting.place / "watch")
    every = [*hostile_configs.kinds(), *hostile_files.kinds(), *hostile_places.kinds()]
    kinds = sorted(setting.random.sample(range(len(every)), setting.count(len(every))))
    for kind in (CONTROL, *(every[i] for i in kinds)):
        for way in WAYS:
            place = setting.place / f"{tally.trials:04d}_{way}"
            failed = len(failures)
            with noting(failures, f"{kind.name}, {way}"):
                failures += [f"{kind.name}, {way}: {what}" for what in _try(kind, way, good, place, tally)]
            if len(failures) == failed:
                shutil.rmtree(place, ignore_errors=True)
            tally.trials += 1
    return Row("hostile checkpoints: sampled, resumed, loaded", _figure(len(kinds), tally), failures)


def _figure(kinds: int, tally: Tally) -> str:
    seen = tally.seen
    taken = f"{tally.most_taken / MIB:.0f} MiB more memory than a good one takes"
    if tally.most_times > 0:
        taken += f" ({tally.most_times:.1f} times the files, where that is more than {NOISE // MIB} MiB)"
    return (
        f"{kinds} x {len(WAYS)}: {seen['executed']} executed, {seen['read']} files read outside, {seen['written']} "
        f"written outside, {seen['connected']} connections; {tally.refused} refused with one message, the rest without "
        f"effect; at most {taken}"
    )


def _good_run(place: Path) -> Path:
    steps = [
        f"trainer.steps={STEP}",
        f"trainer.checkpoint_every={STEP}",
        "trainer.device=cpu",
        "name=good",
        "ema=posthoc",
    ]
    process = command("train", [*RUN, *steps], place)
    assert process.wait() == 0, process.said()
    return run_directories(place, "good")[0]


def _unseen(place: Path) -> list[str]:
    """What the watch does not see of processes that do what they must not: else seeing nothing would mean nothing."""
    unseen = []
    for act, expected in (
        (misbehave, ("os.system", "pickle", "compile", "connected", "read outside", "written outside")),
        (misbehave_in_c, ()),
    ):
        elsewhere, report = place / act.__name__ / "elsewhere", place / f"{act.__name__}.json"
        elsewhere.mkdir(parents=True)
        (elsewhere / "diary.txt").write_text("secret")
        kernel = Elsewhere(elsewhere)
        kernel.watch()
        fork(
            watched(lambda act=act, target=elsewhere: act(target), place / "here", report), place / act.__name__
        ).wait()
        found = json.loads(report.read_text())
        heard = " ".join(found["seen"])
        unseen += [f"{act.__name__}: the watch misses {what}" for what in expected if what not in heard]
        if not kernel.touched():
            unseen.append(f"{act.__name__}: the kernel tells of no file that was opened")
        if expected and (found["taken"] < 60 * MIB or kernel.changed() != ["new"]):
            unseen.append(f"{act.__name__}: {found['taken']} bytes were seen to be taken, or the new file was not seen")
    return unseen


def _try(kind: Kind, way: str, good: Path, place: Path, tally: Tally) -> list[str]:
    """Spoil a copy of the good run in `place`, use it, and say what was wrong with what happened."""
    foreign = _spoiled(kind, good, place)
    files = [path.lstat() for path in foreign.run.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(min(file.st_size, 512 * file.st_blocks) for file in files)  # holes do not count
    elsewhere = Elsewhere(foreign.elsewhere)
    elsewhere.watch()
    report = place / "report.json"
    process = fork(watched(lambda: WAYS[way](foreign.run), foreign.run.parent, report), foreign.run.parent)
    try:
        status = process.wait(SECONDS)
    except TimeoutError:
        status = None
    touched, changed = elsewhere.touched(), elsewhere.changed()
    tally.refused += status not in (0, None)
    wrong = _wrong_with_the_end(kind, way, status, process)
    if touched:
        wrong.append(f"touched elsewhere: {', '.join(touched[:5])}")
        tally.seen["read"] += 1
    if changed:
        wrong.append(f"changed elsewhere: {', '.join(changed)}")
        tally.seen["written"] += len(changed)
    if report.exists():
        wrong += _wrong_in_report(json.loads(report.read_text()), way, size, tally, control=kind is CONTROL)
    elif status is not None:
        wrong.append(f"died: {status}")
    return wrong


def _spoiled(kind: Kind, good: Path, place: Path) -> Foreign:
    foreign = Foreign(run=place / "here" / "run", elsewhere=place / "elsewhere")
    shutil.copytree(good, foreign.run)
    (foreign.elsewhere / "folder").mkdir(parents=True)
    (foreign.elsewhere / "diary.txt").write_text("secret")
    (foreign.elsewhere / "folder" / "letter.txt").write_text("secret, too")
    kind.spoil(foreign)
    file = foreign.checkpoint / EMA
    links = any(path.is_symlink() for path in (file, file.parent, file.parent.parent))
    if file.is_file() and not links and file.stat().st_size < 2**30:
        shutil.copy(file, foreign.run.with_name(LONE))  # as it may be handed on
    return foreign


def _wrong_with_the_end(kind: Kind, way: str, status: int | None, process: Process) -> list[str]:
    said = process.said()
    if status is None:
        return [f"did not end in {SECONDS} s"]
    wrong = []
    if status == 0 and way not in kind.harmless.split():
        wrong.append("was accepted")
    if status != 0:
        message = said[re.search(r"^(ddpm-train|ddpm-sample|load): |\Z", said, re.MULTILINE).start() :]
        if status not in kind.statuses or kind is CONTROL:
            wrong.append(f"ended with status {status}: {said[-300:]!r}")
        elif not message or not re.search(kind.says, message):
            wrong.append(f"was refused for another reason: {message[:300]!r}")
        elif len(message) > LONGEST_MESSAGE:
            wrong.append(f"a message of {len(message)} characters: {message[:100]!r}")
        if re.search("allocate|memory", message):
            wrong.append(f"tried to take memory: {message[:200]!r}")
    if "Traceback" in said:
        wrong.append("a traceback")
    strange = {character for character in said if ord(character) < 32 and character not in "\n\t"}
    if strange and way != "load":  # whose exceptions are the caller's to show
        wrong.append(f"sent to the terminal: {sorted(strange)}")
    return wrong


def _wrong_in_report(report: dict, way: str, size: int, tally: Tally, *, control: bool) -> list[str]:
    wrong = [f"was seen: {what}" for what in report["seen"]]
    for what in report["seen"]:
        tally.seen[what.split(":")[0].split()[0]] += 1
    if control:
        tally.usual[way] = report["taken"]
    more = report["taken"] - tally.usual.get(way, report["taken"])
    tally.most_taken = max(tally.most_taken, more)
    if more > NOISE:
        tally.most_times = max(tally.most_times, more / size)
    if more > max(NOISE, 2 * size):
        wrong.append(f"took {more / MIB:.0f} MiB more than a good one; its files have {size / MIB:.1f} MiB")
    return wrong
