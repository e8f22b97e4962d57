"""What a recipe is, and the network that most of them train: a second from beginning to end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TINY = {
    "prediction": "eps",
    "weighting": "uniform",
    "model.base_channels": "8",
    "model.norm_groups": "4",
    "model.channel_mults": "[1,2]",
    "schedule.timesteps": "20",
    "sampler": "ddim",
    "sampler.steps": "3",
    "trainer.steps": "5",
    "trainer.batch_size": "8",
    "trainer.warmup_steps": "0",
    "trainer.lr_decay": "constant",
    "trainer.log_every": "2",
    "trainer.preview_every": "4",
    "trainer.preview_images": "4",
    "trainer.checkpoint_every": "3",  # with steps that have not been logged yet
}


@dataclass(frozen=True)
class Recipe:
    """A training run, and what is drawn from it. Arguments as on the command line, with RUN for the run's directory.

    Paths are relative to a directory beside material/ (see `digests.material`).

    Args:
        name: what it is recorded under.
        train: arguments of `ddpm-train`.
        again: further trainings, each with its own arguments, before anything is hashed.
        forget_after: before the first of `again`, checkpoints of later steps are removed; None: none are.
        samples: arguments of `ddpm-sample` by name.
        processes: that train together, as torchrun would start them.
    """

    name: str
    train: Sequence[str]
    again: Sequence[Sequence[str]] = ()
    forget_after: int | None = None
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    processes: int = 1

    @property
    def commands(self) -> int:
        """How many there are, which is about how long it takes."""
        return 1 + len(self.again) + len(self.samples)


def tiny(*arguments: str, without: Sequence[str] = ()) -> list[str]:
    """`TINY` with `arguments`, of which the last of a key counts, and without the keys `without`."""
    given = dict(argument.split("=", 1) for argument in arguments)
    return [f"{key}={value}" for key, value in (TINY | given).items() if key not in without]
