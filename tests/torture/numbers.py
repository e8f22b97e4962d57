"""Numbers that are not finite, in a batch, a loss or a gradient: nothing of them is kept."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch

from ddpm_cli import checkpoint
from torture.reference import NAME, make_reference, tensors_of
from torture.trials import RUN, Row, Setting, command, noting, run_directories

NON_FINITE = 3
KINDS = ("batch", "loss", "gradient")


def not_finite(setting: Setting) -> Row:
    """The run stops with the state it had before the step, saved; resuming without the fault ends where it should."""
    tries, failures, random = setting.count(100), [], setting.random
    reference = make_reference(RUN, setting.place / "reference")
    states = _states_of_every_step(setting.place)
    untouched = resumed = finite = 0
    for attempt in range(tries):
        step, kind, value = random.randrange(40), random.choice(KINDS), random.choice(["nan", "inf", "-inf"])
        place, what = setting.place / f"attempt_{attempt}", f"{value} in the {kind} of step {step}"
        with noting(failures, what):
            process = command("train", [*RUN, f"name={NAME}"], place, prepare=_fault(step, kind, float(value)))
            status, said = process.wait(), process.said()
            named = re.search(rf"the (loss|gradient) at step {step} is not finite; timesteps t / images: \d+/\d+", said)
            if status != NON_FINITE or not named or "first parameter" not in said or "resume=" not in said:
                failures.append(f"{what}: exit status {status}: {said[-300:]}")
                continue
            (directory,) = run_directories(place, NAME)
            newest, _ = checkpoint.newest_whole(directory)
            untouched += newest.metadata.step == step and _fingerprint(tensors_of(newest.path)) == states[step]
            finite += all(
                torch.isfinite(tensor).all()
                for path in directory.glob("checkpoints/step_*")
                for tensor in tensors_of(path).values()
            )
            if attempt % 10 == 0:  # resuming takes as long as all the rest
                again = command("train", [f"resume={directory}"], place)
                again.wait()
                differences = reference.differences(directory)
                failures += [f"{what}, resumed: {difference}" for difference in differences]
                resumed += not differences
    if untouched < tries or finite < tries:
        failures.append(f"touched {tries - untouched}, not finite in a checkpoint {tries - finite}")
    figure = (
        f"untouched {untouched}/{tries}; no such value in any checkpoint {finite}/{tries}; "
        f"bit-equal finish without the fault {resumed}/{len(range(0, tries, 10))}"
    )
    return Row("NaN, Inf and -Inf in a batch, a loss, a gradient at random steps", figure, failures)


def _states_of_every_step(place: Path) -> list[str]:
    """Fingerprints of an undisturbed run's state before each of its steps."""
    kept = place / "states.json"

    def prepare() -> None:
        from ddpm_cli.training.train_state import capture
        from ddpm_cli.training.trainer import Trainer

        step, states = Trainer.train_step, []

        def train_step(self: Trainer, *arguments):
            ema = {f"ema/{name}": tensor for name, tensor in self.ema.model.state_dict().items()}
            states.append(_fingerprint(ema | capture(self)))
            kept.write_text(json.dumps(states))
            return step(self, *arguments)

        Trainer.train_step = train_step

    command("train", [*RUN, f"name={NAME}"], place / "states", prepare=prepare).wait()
    return json.loads(kept.read_text())


def _fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fault(at_step: int, kind: str, value: float) -> Callable[[], None]:
    """To be called in the run's process: puts `value` into what step `at_step` computes."""

    def prepare() -> None:
        from ddpm_cli.training import trainer

        step, augment = trainer.Trainer.train_step, trainer.augment

        def train_step(self: trainer.Trainer, *arguments):
            if self.step == at_step and kind == "batch":
                trainer.augment = lambda pixels, flips: augment(pixels, flips).index_fill(0, torch.tensor([3]), value)
            if self.step == at_step and kind == "loss":
                self.ddpm.weighting = lambda log_snr, _: torch.where(torch.arange(len(log_snr)) == 2, value, 1.0)
            if self.step == at_step and kind == "gradient":
                parameters = list(self.ddpm.parameters())
                parameters[at_step % len(parameters)].register_hook(lambda gradient: gradient * value)
            return step(self, *arguments)

        trainer.Trainer.train_step = train_step

    return prepare
