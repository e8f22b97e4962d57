"""Small checkpoints whose content follows from their step, so that a wrong or damaged one is known from a whole one."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import CheckpointError, Metadata
from ddpm_cli.io.run_dir import step_of
from torture.disk import Tree, read_tree

KEEP_LAST = 2


def save(run: Path, step: int) -> None:
    """Save `step` in `run`, as the trainer does."""
    ema, training = _tensors(step)
    checkpoint.save(run / "checkpoints", ema=ema, training=training, description=_description(step))


def remove_old(run: Path) -> None:
    checkpoint.remove_old(run / "checkpoints", keep_last=KEEP_LAST)


def two_saved(run: Path) -> Tree:
    """Make `run` with steps 1 and 2, and what a save of step 3 that was killed has left; returns all of it."""
    run.mkdir(parents=True)
    for step in (1, 2):
        save(run, step)
    left_over = run / "checkpoints" / ".step_00000003.tmp"
    left_over.mkdir()
    (left_over / checkpoint.EMA_FILE).write_bytes(b"half")
    return read_tree(run)


def wrongs(run: Path, announced: int) -> Iterator[str]:
    """What is wrong with `run`, of which a program has said that step `announced` is safe (0: that none is)."""
    present = sorted((run / "checkpoints").glob("step_*"))
    for path in present:
        try:
            checkpoint.verify(path, *checkpoint.FILES)
        except CheckpointError as error:
            yield f"not whole under its final name: {error}"
    if not present and announced == 0:
        return
    try:
        newest, _ = checkpoint.newest_whole(run)
    except CheckpointError as error:
        yield f"step {announced} is lost: {error}"
        return
    step = step_of(newest.path)
    assert step is not None
    if step < announced:
        yield f"step {announced} is lost, goes on from {step}"
    ema, training = checkpoint.load_ema(newest), checkpoint.load_training(newest)
    again = checkpoint.verify(newest.path, checkpoint.EMA_FILE).metadata
    right_ema, right_training = _tensors(step)
    if not newest.metadata == again == _description(step):
        yield f"{newest.path} is taken for whole, its description is another"
    if not (_equal(ema, right_ema) and _equal(training, right_training)):
        yield f"{newest.path} is taken for whole, its tensors are others"


def go_on(run: Path, step: int) -> Iterator[str]:
    """Save `step`, remove old ones, and say what is wrong with the outcome."""
    save(run, step)
    remove_old(run)
    yield from wrongs(run, step)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    if len(names) != KEEP_LAST or not all(name.startswith("step_") for name in names):
        yield f"after a further save there are {names}"


def _tensors(step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    random = torch.Generator().manual_seed(step)
    ema = {"weight": torch.randn(5, 3, generator=random), "bias": torch.randn(7, generator=random)}
    training = {f"model.{name}": value + 1 for name, value in ema.items()} | {"counter.step": torch.tensor(step)}
    return ema, training


def _description(step: int) -> Metadata:
    return Metadata(step=step, image_shape=(1, 8, 8), images=9, config={"seed": 0}, versions={"torch": "2"})


def _equal(found: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return found.keys() == right.keys() and all(torch.equal(found[name], right[name]) for name in right)
