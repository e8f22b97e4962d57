"""What can be said of a sampler's spacing before there is a model: `optimized` is chosen for one."""

from typing import Any

from ddpm_cli.config.errors import ConfigError

OPTIMIZED = "optimized"


def is_optimized(sampler: dict[str, Any]) -> bool:
    """Whether a sampler's configuration leaves its timesteps to be chosen for the model."""
    return sampler.get("spacing") == OPTIMIZED


def check_chosen_for_one_model(sampler: dict[str, Any]) -> None:
    """Raise ConfigError for timesteps that are chosen and named at once, or of which there is no choice."""
    if not is_optimized(sampler):
        return
    steps = sampler.get("steps")
    if isinstance(steps, list | tuple):
        raise ConfigError(
            f"sampler.spacing: {OPTIMIZED} chooses the timesteps, and sampler.steps names them; give one of them"
        )
    if steps is None:
        raise ConfigError(f"sampler.steps: {OPTIMIZED} chooses some of all timesteps; say how many, as sampler.steps=8")


def check_not_optimized(sampler: dict[str, Any]) -> None:
    """Raise ConfigError where the weights are yet to be trained."""
    if is_optimized(sampler):
        raise ConfigError(
            f"sampler.spacing: {OPTIMIZED} is chosen for weights, and these change with every preview; choose "
            "trailing. ddpm-sample and ddpm-eval take it"
        )
