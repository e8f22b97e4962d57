"""The properties of a model in diffusers' scheduler_config.json: noise schedule, prediction, variance, threshold.

The rest of such a file is about the solver that the model is drawn with, which ddpm-sample is told.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ddpm_cli.conversion.said import Said

CONFIG_FILE = "scheduler_config.json"
_OURS = "ddpm_cli.diffusion."
_MOST_BETAS = 2**13  # as many as a checkpoint may hold

Groups = dict[str, dict[str, Any]]


class Scheduler(NamedTuple):
    """The imported properties, and remarks on the rest."""

    groups: Groups
    remarks: tuple[str, ...]


_DDPM = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": True}
_OTHERS = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": None}  # which never clip
_SECOND_ORDER = {"beta_start": 8.5e-4, "beta_end": 0.012, "clip_sample": None}
# By class, what it takes where nothing is said. All of them walk the same diffusion, by other solvers.
_CLASSES: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _DDPM,
    "DDIMScheduler": _DDPM,
    "DDIMInverseScheduler": _DDPM,
    "PNDMScheduler": _OTHERS,
    "LMSDiscreteScheduler": _OTHERS,
    "EulerDiscreteScheduler": _OTHERS,
    "EulerAncestralDiscreteScheduler": _OTHERS,
    "DPMSolverMultistepScheduler": _OTHERS,
    "DPMSolverSinglestepScheduler": _OTHERS,
    "DEISMultistepScheduler": _OTHERS,
    "UniPCMultistepScheduler": _OTHERS,
    "HeunDiscreteScheduler": _SECOND_ORDER,
    "KDPM2DiscreteScheduler": _SECOND_ORDER,
    "KDPM2AncestralDiscreteScheduler": _SECOND_ORDER,
}
_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "variance_type": None,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "clip_sample_range": 1.0,
    "timestep_spacing": None,
    "steps_offset": 0,
}
_PREDICTIONS = {"epsilon": "Epsilon", "sample": "X0", "v_prediction": "Velocity"}
_VARIANCES = {
    None: None,
    "fixed_small": "FixedSmall",
    "fixed_small_log": "FixedSmall",  # computed by its logarithm
    "fixed_large": "FixedLarge",
    "fixed_large_log": "FixedLarge",
    "learned_range": "LearnedRange",
}
_FLOWS = ("use_flow_sigmas", "use_dynamic_shifting")  # another forward process


def to_groups(
    config: Mapping[str, Any], *, where: str = CONFIG_FILE, chosen: Collection[str] = frozenset()
) -> Scheduler:
    """Nodes of `schedule`, `prediction`, `variance` and `threshold`; the last two only if the file says them.

    Args:
        where: names the file in messages.
        chosen: groups of which something else counts: what the file says of them is not looked at.

    Raises:
        ConversionError: if the model's diffusion is none of ours; names the key and its value.
    """
    said = Said(config, where, _DEFAULTS)
    written_by = said.any("_class_name")
    if not isinstance(written_by, str) or written_by not in _CLASSES:
        raise said.refused("_class_name", written_by, f"expected one of {', '.join(sorted(_CLASSES))}")
    said = Said(config, where, _DEFAULTS | _CLASSES[written_by])
    for key in _FLOWS:
        if said.any(key):
            raise said.refused(key, True, "its forward process is not DDPM's")
    groups: Groups = {}
    remarks: list[str] = []
    for group, (node_of, keys) in _READERS.items():
        node = node_of(said, remarks) if group not in chosen else None
        if node is not None:
            groups[group] = node
        for key in keys:
            said.any(key)
    return Scheduler(groups, (*remarks, *_solver(said, written_by)))


def _schedule(said: Said, remarks: list[str]) -> dict[str, Any]:
    steps, zero = said.whole("num_train_timesteps"), {"zero_terminal_snr": said.truth("rescale_betas_zero_snr")}
    shape, start, end = said.any("beta_schedule"), said.number("beta_start"), said.number("beta_end")
    betas = said.list_or_none(float, "trained_betas")
    if betas is None and shape in ("linear", "scaled_linear"):
        return {"_target_": f"{_OURS}schedule.{shape}", "timesteps": steps, "beta_start": start, "beta_end": end} | zero
    if betas is None and shape == "squaredcos_cap_v2":
        clamped = {"s": 0.008, "beta_min": 0.0, "beta_max": 0.999}
        return {"_target_": f"{_OURS}schedule.cosine", "timesteps": steps} | clamped | zero
    if betas is None and shape == "sigmoid":
        if not 2 <= steps <= _MOST_BETAS:
            raise said.refused("num_train_timesteps", steps, f"expected 2 to {_MOST_BETAS:,} with this beta_schedule")
        # The betas follow a sigmoid; in schedule=sigmoid, which is Jabri et al.'s, alpha_bar does.
        logits = (-6 + 12 * i / (steps - 1) for i in range(steps))
        betas = [start + (end - start) / (1 + math.exp(-logit)) for logit in logits]
    if betas is None:
        known = "linear, scaled_linear, squaredcos_cap_v2, sigmoid, or trained_betas"
        raise said.refused("beta_schedule", shape, f"expected one of {known}; schedule=custom takes any betas")
    if len(betas) > _MOST_BETAS:
        raise said.refused("trained_betas", f"{len(betas)} numbers", f"a checkpoint holds up to {_MOST_BETAS:,}")
    return {"_target_": f"{_OURS}schedule.custom", "betas": betas} | zero


def _prediction(said: Said, remarks: list[str]) -> dict[str, Any]:
    return {"_target_": f"{_OURS}prediction.{said.one_of('prediction_type', _PREDICTIONS)}"}


def _variance(said: Said, remarks: list[str]) -> dict[str, Any] | None:
    name = said.one_of("variance_type", _VARIANCES)
    return None if name is None else {"_target_": f"{_OURS}variance.{name}"}


def _threshold(said: Said, remarks: list[str]) -> dict[str, Any] | None:
    clips, limit = said.any("clip_sample"), said.number("clip_sample_range")
    dynamic, quantile = said.truth("thresholding"), said.number("dynamic_thresholding_ratio")
    most = said.number("sample_max_value")
    if clips not in (None, True, False):
        raise said.refused("clip_sample", clips, "expected true or false")
    if dynamic and most > 1:  # up to 1 it is the same as clipping
        remarks.append(f"sample_max_value {most:g}, a cap on the dynamic threshold, is not imported")
        return {"_target_": f"{_OURS}threshold.Dynamic", "quantile": quantile}
    if clips and limit != 1 and not dynamic:
        raise said.refused("clip_sample_range", limit, "here it is 1; choose threshold=static, dynamic or none instead")
    if clips is None and not dynamic:
        return None
    return {"_target_": f"{_OURS}threshold.{'Static' if clips or dynamic else 'Unbounded'}"}


# How the node of each group is read, with lines on what does not come along, and of which keys; None: it is not said.
_READERS: dict[str, tuple[Callable[[Said, list[str]], dict[str, Any] | None], tuple[str, ...]]] = {
    "schedule": (
        _schedule,
        ("num_train_timesteps", "rescale_betas_zero_snr", "beta_schedule", "beta_start", "beta_end", "trained_betas"),
    ),
    "prediction": (_prediction, ("prediction_type",)),
    "variance": (_variance, ("variance_type",)),
    "threshold": (
        _threshold,
        ("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    ),
}


def _solver(said: Said, written_by: str) -> list[str]:
    """Remarks on options of the solver."""
    spacing, offset = said.any("timestep_spacing"), said.any("steps_offset")
    rest = [*(["steps_offset"] if offset else []), *said.rest()]
    lines = []
    if spacing is not None:
        fewer = f"with fewer steps than T {written_by} visits timesteps by {str(spacing)[:40]!r}"
        lines.append(f"{fewer}, which is sampler.spacing of ddpm-sample")
    if rest:
        lines.append(f"the solver's own options are not imported: {', '.join(rest)}")
    return lines
