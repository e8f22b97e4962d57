"""Warnings about a recipe that runs but cannot work as intended: one line each, with the key to change."""

from collections.abc import Sequence

from ddpm_cli.ema.ema import updates_until
from ddpm_cli.training.trainer_config import TrainerConfig

LARGE_ON_A_CPU = 20_000_000  # parameters: the networks for 32 x 32 pixels and more have more, those for 28 x 28 fewer
MANY_ON_A_CPU = 50_000  # images: so many a large network does not see there by accident, as in a test of a few steps


def doubts(config: TrainerConfig, *, decays: Sequence[float], parameters: int, device: str) -> list[str]:
    """What is known before the data is there.

    Args:
        decays: of the exponential averages.
        parameters: of the network.
        device: its type.
    """
    said = [*_of_warmup(config), *_of_averages(config.steps, decays)]
    images = config.steps * config.batch_size
    if device == "cpu" and parameters > LARGE_ON_A_CPU and images > MANY_ON_A_CPU:
        said.append(
            f"model: a network of {parameters:,} parameters is too large to train on a CPU for {config.steps:,} steps "
            f"of batch {config.batch_size}; make it smaller with model.base_channels, data.image_size or model=unet_16"
        )
    return said


def doubts_of_data(config: TrainerConfig, count: int) -> list[str]:
    """What is known once the data is there, `count` images to train on."""
    if config.batch_size <= count:
        return []
    times = config.batch_size / count
    return [
        f"trainer.batch_size: {config.batch_size} is more than the {count:,} images, so each is in every batch "
        f"{times:.3g} times; set trainer.batch_size={count} to have each once"
    ]


def _of_warmup(config: TrainerConfig) -> list[str]:
    warmup, steps = config.warmup_steps, config.steps
    if warmup <= steps:
        return []
    return [
        f"trainer.warmup_steps: the learning rate rises over {warmup:,} steps, but the run has only {steps:,}: it ends "
        f"at {steps / warmup:.2g} of optimizer.lr; set trainer.warmup_steps={max(1, steps // 20)}"
    ]


def _of_averages(steps: int, decays: Sequence[float]) -> list[str]:
    """No average is too long for a run: what it remembers grows with it, see `ddpm_cli.ema.ema`. Several may be one."""
    growing = [decay for decay in decays if updates_until(decay) >= steps]
    if len(growing) < 2:
        return []
    named = ", ".join(repr(decay) for decay in growing)
    other = ",".join(repr(decay) for decay in decays if decay not in growing[1:])
    return [
        f"ema.decays: {named} give the same average over {steps:,} steps: they differ only after "
        f"{round(min(map(updates_until, growing))):,}; set ema.decays=[{other}] to keep it once"
    ]
