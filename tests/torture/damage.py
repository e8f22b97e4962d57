"""Checkpoints whose bytes have changed since they were saved: every one is refused, and the file is named."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import DESCRIPTION_FILE, EMA_FILE, MANIFEST_FILE, TRAINING_FILE, CheckpointError, Metadata
from ddpm_cli.checkpoint.pretrained import load
from ddpm_cli.models.unet import UNet
from torture.trials import Clock, Row, Setting, fork

ALL_FILES = (EMA_FILE, TRAINING_FILE, DESCRIPTION_FILE, MANIFEST_FILE)
FLIPS = 400
LONGEST_BLOCK = 4096
STEPS = (1, 2)

UNET = {"image_size": 8, "in_channels": 1, "base_channels": 4, "channel_mults": [1], "num_res_blocks": 1}
UNET |= {"attention_resolutions": [], "dropout": 0.0, "norm_groups": 4}
CONFIG = {
    "schedule": {"_target_": "ddpm_cli.diffusion.schedule.linear", "timesteps": 10},
    "prediction": {"_target_": "ddpm_cli.diffusion.prediction.Epsilon"},
    "weighting": {"_target_": "ddpm_cli.diffusion.weighting.Uniform"},
    "variance": {"_target_": "ddpm_cli.diffusion.variance.FixedSmall"},
    "loss": {"_target_": "ddpm_cli.diffusion.loss.Simple"},
}


@dataclass(frozen=True)
class Saved:
    """A run with two checkpoints, as they were saved."""

    run: Path
    content: dict[Path, bytes]  # of every file

    def path(self, step: int, name: str = "") -> Path:
        return self.run / "checkpoints" / f"step_{step:08d}" / name

    def restore(self, files: list[Path]) -> None:
        for file in files:
            file.write_bytes(self.content[file])


class Damage(NamedTuple):
    """What becomes of some files; None: gone."""

    what: str
    files: dict[Path, bytes | None]

    def concerned(self) -> dict[Path, set[str]]:
        """The names of the files, by checkpoint."""
        found: dict[Path, set[str]] = {}
        for file in self.files:
            found.setdefault(file.parent, set()).add(file.name)
        return found


def damaged_files(setting: Setting) -> Row:
    """`verify` names the file, a run resumes from a checkpoint that is whole, and sampling names it too."""
    saved, random, failures = _save_two(setting.place / "run"), setting.random, []
    kinds: list[tuple[int, Callable[[Saved, Random], Damage]]] = [
        (300, _truncated),
        (FLIPS, _flipped),
        (100, _zeroed),
        (100, _swapped_or_missing),
        (100, _garbage),
    ]
    trials = refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for full, kind in kinds:
            for _ in range(setting.count(full)):
                damage = _real(lambda kind=kind: kind(saved, random), saved)
                wrong = _judge(saved, damage)
                failures += [f"{damage.what}: {what}" for what in wrong]
                trials += 1
                refused += not wrong
    return Row("truncated, flipped, zeroed, swapped, missing files", f"{refused}/{trials} refused by name", failures)


def flips_elsewhere(setting: Setting) -> Row:
    """What other ways of keeping the same tensors make of the same flips."""
    ours = _save_two(setting.place / "run", base_channels=32).path(2, EMA_FILE)
    tensors, random = load_file(ours), setting.random
    by_torch, by_safetensors = setting.place / "tensors.pt", setting.place / "tensors.safetensors"
    torch.save(tensors, by_torch)
    save_file(tensors, by_safetensors)
    flips = [(random.random(), random.randrange(8)) for _ in range(setting.count(FLIPS))]
    accepted = [
        _accepted(by_torch, flips, lambda: torch.load(by_torch, weights_only=True)),
        _accepted(by_safetensors, flips, lambda: load_file(by_safetensors)),
        _accepted(ours, flips, lambda: checkpoint.load_ema(checkpoint.verify(ours.parent, EMA_FILE))),
    ]
    failures = [f"ours accepts {accepted[-1]} of {len(flips)}"] if accepted[-1] else []
    figure = "torch.load accepts {}/{n}, safetensors {}/{n}, ours {}/{n}".format(*accepted, n=len(flips))
    return Row("bit flips in the same tensors, kept in three ways", figure, failures)


# What is done to them ------------------------------------------------------------------------------------------------


def _real(draw: Callable[[], Damage], saved: Saved) -> Damage:
    """The first that changes anything: zeroes among zeroes are no damage."""
    while True:
        damage = draw()
        if any(content != saved.content[file] for file, content in damage.files.items()):
            return damage


def _any_file(saved: Saved, random: Random) -> Path:
    """The small files as often as the large ones, and not by their size."""
    return saved.path(random.choice(STEPS), random.choice(ALL_FILES))


def _truncated(saved: Saved, random: Random) -> Damage:
    file = _any_file(saved, random)
    length = random.randrange(len(saved.content[file]))
    return Damage(f"{file} truncated to {length} bytes", {file: saved.content[file][:length]})


def _flipped(saved: Saved, random: Random) -> Damage:
    file = _any_file(saved, random)
    place, bit = random.random(), random.randrange(8)
    return Damage(f"{file} with bit {bit} flipped at {place:.4%}", {file: _flip(saved.content[file], place, bit)})


def _flip(content: bytes, place: float, bit: int) -> bytes:
    """A bit of the byte that lies at this fraction of the whole."""
    changed = bytearray(content)
    changed[int(place * len(content))] ^= 1 << bit
    return bytes(changed)


def _zeroed(saved: Saved, random: Random) -> Damage:
    file = _any_file(saved, random)
    content = bytearray(saved.content[file])
    start = random.randrange(len(content))
    stop = min(len(content), start + random.randint(1, LONGEST_BLOCK))
    content[start:stop] = bytes(stop - start)
    return Damage(f"{file} zeroed from {start} to {stop}", {file: bytes(content)})


def _swapped_or_missing(saved: Saved, random: Random) -> Damage:
    first = _any_file(saved, random)
    kind = random.randrange(3)
    if kind == 0:
        return Damage(f"{first} missing", {first: None})
    if kind == 1:
        other = saved.path(next(step for step in STEPS if saved.path(step, first.name) != first), first.name)
    else:
        other = first.with_name(random.choice([name for name in ALL_FILES if name != first.name]))
    return Damage(f"{first} and {other} swapped", {first: saved.content[other], other: saved.content[first]})


def _garbage(saved: Saved, random: Random) -> Damage:
    file = _any_file(saved, random)
    length = random.choice([len(saved.content[file]), random.randrange(2 * len(saved.content[file]))])
    return Damage(f"{file} of {length} random bytes", {file: random.randbytes(length)})


# What is made of them ------------------------------------------------------------------------------------------------


def _judge(saved: Saved, damage: Damage) -> list[str]:
    """What is wrong with the answers of everything that reads a checkpoint."""
    for file, content in damage.files.items():
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
    wrong = []
    for path, names in damage.concerned().items():
        wrong += _refused("verify", lambda path=path: checkpoint.verify(path, *checkpoint.FILES), damage, path)
        for weights, read in (("ema", {EMA_FILE}), ("model", {TRAINING_FILE, DESCRIPTION_FILE})):
            if names & (read | {MANIFEST_FILE}):
                wrong += _refused(weights, lambda path=path, weights=weights: load(path, weights=weights), damage, path)
    wrong += _gone_on_from(saved, damage)
    saved.restore(list(damage.files))
    return wrong


def _refused(what: str, call: Callable[[], object], damage: Damage, path: Path) -> list[str]:
    """What is wrong with the way `call` refuses the checkpoint `path`."""
    names = damage.concerned()[path]
    try:
        call()
    except CheckpointError as error:
        said = str(error)
        # A manifest of another checkpoint is in itself faultless: that it and a file disagree is all there is to say.
        disagrees = MANIFEST_FILE in names and len(damage.files) == 2 and said.endswith(f" {MANIFEST_FILE}")
        if disagrees or any(said.startswith(f"{path / name} is ") for name in names):
            return []
        return [f"{what} does not name what is damaged: {error}"]
    except Exception as error:
        return [f"{what} ends in {type(error).__name__}: {error}"]
    return [f"{what} accepts it"]


def _gone_on_from(saved: Saved, damage: Damage) -> list[str]:
    """What is wrong with the checkpoint that a run would resume from."""
    damaged = damage.concerned()
    whole = [path for path in map(saved.path, reversed(STEPS)) if path not in damaged]
    try:
        found, _ = checkpoint.newest_whole(saved.run)
    except CheckpointError as error:
        all_named = all(str(path) in str(error) for path in damaged)
        return [] if all_named and not whole else [f"nothing to go on from: {error}"]
    return [] if whole and found.path == whole[0] else [f"goes on from {found.path}"]


def _accepted(file: Path, flips: list[tuple[float, int]], read: Callable[[], object]) -> int:
    """How many of the flips (place, bit) in `file` make `read` complain of nothing: no error, no warning, no crash.

    In a forked process, and a new one where it has died: what reads damaged files unchecked may do anything.
    """
    content, tried, accepted = file.read_bytes(), Clock(), Clock()

    def job() -> None:
        warnings.simplefilter("error")
        for flip in flips[tried.get() :]:
            tried.set(tried.get() + 1)
            file.write_bytes(_flip(content, *flip))
            with contextlib.suppress(Exception):
                read()
                accepted.set(accepted.get() + 1)

    while tried.get() < len(flips):
        with contextlib.suppress(TimeoutError):
            fork(job, file.with_suffix(".reading")).wait(timeout=300)
    return accepted.get()


def _save_two(run: Path, **changes: int) -> Saved:
    """A run with two checkpoints of a small network."""
    network = UNET | changes
    config = CONFIG | {"model": {"_target_": "ddpm_cli.models.unet.UNet", **network}}
    for step in STEPS:
        torch.manual_seed(step)
        ema, model = (UNet(**network).state_dict() for _ in range(2))
        training = {f"model.{name}": value for name, value in model.items()} | {"counter.step": torch.tensor(step)}
        known = Metadata(step=step, image_shape=(1, 8, 8), images=9, config=config, versions={"torch": "2"})
        checkpoint.save(run / "checkpoints", ema=ema, training=training, description=known)
    for weights in ("ema", "model"):
        load(run, weights=weights)  # as it is, it can be used: without that a refusal would mean nothing
    return Saved(run, {file: file.read_bytes() for file in run.glob("checkpoints/*/*")})
