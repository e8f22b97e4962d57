"""A diffusion of ours as scheduler/scheduler_config.json of diffusers.

It is written for DDPMScheduler; its other schedulers are made of the same configuration, and read of it what they know.
"""

import inspect
from typing import Any

import torch

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.schema import NODE_KEYS
from ddpm_cli.config.signatures import resolve
from ddpm_cli.diffusion import schedule as schedules
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.prediction import X0, Epsilon, Velocity
from ddpm_cli.diffusion.threshold import Dynamic, Static, Threshold, Unbounded
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall, LearnedRange, Variance

SCHEDULER = "DDPMScheduler"
_PREDICTIONS = {Epsilon: "epsilon", X0: "sample", Velocity: "v_prediction"}
_VARIANCES = {FixedSmall: "fixed_small", FixedLarge: "fixed_large", LearnedRange: "learned_range"}
_LIKE_THEIRS = {schedules.linear: "linear", schedules.scaled_linear: "scaled_linear"}
_THEIR_COSINE = {"s": 0.008, "beta_min": 0.0, "beta_max": 0.999}
# Of the quantile in dynamic thresholding. Ours has none; theirs, unless told, has 1, which makes it static.
_NO_MAXIMUM = 1e9


def scheduler_config(ddpm: DDPM, node: dict[str, Any], *, variance: Variance, threshold: Threshold) -> dict[str, Any]:
    """The arguments of DDPMScheduler.

    Args:
        node: what the schedule was built of, as a configuration has it.
        variance: of the steps.

    Raises:
        ConfigError: for what none of diffusers' schedulers does, or not in 32 bits; names the group.
    """
    schedule = ddpm.schedule
    _check_in_float32(schedule)
    return {
        "num_train_timesteps": schedule.timesteps,
        **_betas(schedule, node),
        # For their solvers, which step in log(alpha / sigma): it lets pure noise keep a trace of x_0. Done again to
        # betas that have it already, it changes nothing.
        "rescale_betas_zero_snr": schedule.ends_in_noise,
        "prediction_type": _called(_PREDICTIONS, ddpm.prediction, "prediction", "eps, x0 and v"),
        "variance_type": _called(_VARIANCES, variance, "variance", "fixed_small, fixed_large and learned_range"),
        **_bounds(threshold),
        # The one spacing that begins where the noise is and after which their DDIM steps to what it visits next.
        "timestep_spacing": "trailing",
    }


def _betas(schedule: NoiseSchedule, node: dict[str, Any]) -> dict[str, Any]:
    """The betas by name and ends if diffusers has the same schedule, else number by number."""
    target = resolve(node["_target_"])
    given = {key: value for key, value in node.items() if key not in NODE_KEYS}
    if target in _LIKE_THEIRS:
        found = _arguments(target, given)
        return {"beta_schedule": _LIKE_THEIRS[target], **{key: found[key] for key in ("beta_start", "beta_end")}}
    if target is schedules.cosine and _THEIR_COSINE.items() <= _arguments(target, given).items():
        return {"beta_schedule": "squaredcos_cap_v2"}
    return {"trained_betas": schedule.betas.tolist()}


def _arguments(target: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with `given`, defaults included."""
    bound = inspect.signature(target).bind(**given)
    bound.apply_defaults()
    return bound.arguments


def _bounds(threshold: Threshold) -> dict[str, Any]:
    match threshold:
        case Static():
            return {"clip_sample": True, "thresholding": False}
        case Unbounded():
            return {"clip_sample": False, "thresholding": False}
        case Dynamic(quantile=quantile):
            return {
                "clip_sample": False,
                "thresholding": True,
                "dynamic_thresholding_ratio": quantile,
                "sample_max_value": _NO_MAXIMUM,
            }
    raise ConfigError(f"threshold: diffusers has no {type(threshold).__name__}; it has static, dynamic, none")


def _called(names: dict[type, str], option: object, group: str, there_are: str) -> str:
    if type(option) not in names:
        raise ConfigError(f"{group}: diffusers has no {type(option).__name__}; it has {there_are}")
    return names[type(option)]


def _check_in_float32(schedule: NoiseSchedule) -> None:
    """Check the schedule in diffusers' tables, which compute 1 - beta in 32 bits; ours use its logarithm in 64."""
    alphas_cumprod = torch.cumprod(1 - schedule.betas.float(), dim=0)
    if alphas_cumprod[0] == 1:
        first = schedule.betas[0].item()
        raise ConfigError(
            f"schedule: its first beta, {first:g}, vanishes in diffusers' 32 bits, which would divide by 0"
        )
    noise = int((alphas_cumprod == 0).sum())
    if noise > schedule.ends_in_noise:  # only the last may be
        raise ConfigError(
            f"schedule: its last {noise} steps are pure noise in diffusers' 32 bits, which would divide by 0"
        )
