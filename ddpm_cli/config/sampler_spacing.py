"""Checks of a sampler's spacing that need no model; `optimized` is chosen for one model."""

from typing import Any

from ddpm_cli.config.errors import ConfigError

OPTIMIZED = "optimized"


def is_optimized(sampler: dict[str, Any]) -> bool:
    """Whether a sampler's timesteps are to be chosen for the model."""
    return sampler.get("spacing") == OPTIMIZED


def check_chosen_for_one_model(sampler: dict[str, Any]) -> None:
    """Raise ConfigError for `optimized` with a list of timesteps, or with all of them."""
    if not is_optimized(sampler):
        return
    steps = sampler.get("steps")
    if isinstance(steps, list | tuple):
        raise ConfigError(
            f"sampler.spacing: {OPTIMIZED} chooses the timesteps, but sampler.steps lists them; leave out either"
        )
    if steps is None:
        raise ConfigError(f"sampler.steps: {OPTIMIZED} needs a number of timesteps to choose, such as sampler.steps=8")


def check_not_optimized(sampler: dict[str, Any]) -> None:
    """Raise ConfigError for `optimized` in training, where the weights still change."""
    if is_optimized(sampler):
        raise ConfigError(
            f"sampler.spacing: {OPTIMIZED} is for ddpm-sample and ddpm-eval: it fits timesteps to weights, and these "
            "change between previews; choose trailing"
        )
