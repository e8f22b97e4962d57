"""The run that was never disturbed, and how the others are compared with it: bit for bit."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from ddpm_cli import checkpoint
from torture.trials import command, run_directories

NAME = "run"
LAST = 40  # the last step of trials.RUN
INTERVAL = 5  # its trainer.checkpoint_every


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run has left."""

    directory: Path

    def differences(self, directory: Path) -> list[str]:
        """How a finished run differs from it: state, logged numbers, previews, the order of TensorBoard's steps."""
        found = []
        for name in (checkpoint.EMA_FILE, checkpoint.TRAINING_FILE):
            place = Path("checkpoints", f"step_{LAST:08d}", name)
            if (directory / place).read_bytes() != (self.directory / place).read_bytes():
                found.append(f"{name} differs")
        if logged(directory) != logged(self.directory):
            found.append(f"metrics.jsonl differs: {[line['step'] for line in logged(directory)]}")
        if previews(directory) != previews(self.directory):
            found.append("previews differ")
        if events(directory) != events(self.directory):
            found.append(f"TensorBoard differs: {events(directory)[:50]}")
        left = [path.name for path in (directory / "checkpoints").iterdir() if not path.name.startswith("step_")]
        if left:
            found.append(f"left over: {left}")
        return found


def make_reference(arguments: list[str], place: Path) -> Reference:
    """Run `ddpm-train name=run` with `arguments` to its end."""
    process = command("train", [*arguments, f"name={NAME}"], place)
    if process.wait() != 0:
        raise RuntimeError(f"the undisturbed run failed: {process.said()}")
    (directory,) = run_directories(place, NAME)
    return Reference(directory)


def logged(directory: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if not name.startswith("time/")} for line in lines]


def previews(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "previews").glob("*.png"))}


def events(directory: Path) -> list[tuple[int, str, float]]:
    """Step, tag and value of everything TensorBoard shows, in the order it reads it, without what a clock says."""
    found = []
    for file in sorted((directory / "tensorboard").iterdir()):
        for event in LegacyEventFileLoader(os.fspath(file)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("time/"):
                    found.append((event.step, value.tag, value.simple_value))
    return found


def newest_step(place: Path, name: str = NAME) -> int:
    """The step that a run would resume from; 0 if it has saved nothing."""
    directories = run_directories(place, name)
    if not directories or not list(directories[-1].glob("checkpoints/step_*")):
        return 0
    return checkpoint.newest_whole(directories[-1])[0].metadata.step


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint, by file and name."""
    found = checkpoint.verify(path, *checkpoint.FILES)
    ema, training = checkpoint.load_ema(found), checkpoint.load_training(found)
    return {f"ema/{name}": tensor for name, tensor in ema.items()} | training
