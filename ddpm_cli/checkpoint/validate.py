"""What a configuration out of somebody else's checkpoint may be: names on a list, numbers in a range, shapes that fit.

All of it is found out before a class is imported that we do not ship, and before memory is taken for a network.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ddpm_cli.config.build_ddpm import DDPM_GROUPS
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.schema import check_untrusted
from ddpm_cli.config.shipped import shipped_targets
from ddpm_cli.ema.posthoc import MOST_WIDTHS, ema_prefix, posthoc_prefix

# The largest magnitude of a number by the name of its option: those that decide how much memory or time is taken.
_MOST = {
    "timesteps": 100_000,
    "image_size": 2**14,
    "in_channels": 64,
    "channels": 64,
    "base_channels": 4096,
    "channel_mults": 64,
    "num_res_blocks": 16,
    "attention_resolutions": 2**14,
    "num_heads": 1024,
    "num_classes": 2**20,
    "history": 2**12,
    "norm_groups": 4096,
    "batch_size": 2**16,
    "accumulate": 2**16,
    "log_every": 2**20,
    "preview_images": 4096,
    "workers": 1024,
    "window": 2**20,
    "memory_mb": 2**20,
}
_MOST_OTHERWISE = 2**63
_LONGEST_TEXT = 4096
_LONGEST_LIST = 64
_LONGEST = {"betas": 2**13, "steps": 2**13, "posthoc": MOST_WIDTHS}  # of a schedule, and of a sampler's timesteps
_DEEPEST = 8
_MOMENTS = ("exp_avg", "exp_avg_sq")  # beside `step`, what each optimizer that we ship keeps of every parameter


Shapes = Mapping[str, tuple[int | None, ...]]  # of tensors by name; None stands for a size that is not known


class MisfitError(ValueError):
    """A checkpoint whose parts do not belong together."""


def check_node(group: str, node: Any, *, trust: Iterable[str] = ()) -> None:
    """Check one group of a configuration that came with a checkpoint.

    Args:
        trust: names that `_target_` may be beside those we ship, by the user's own word.

    Raises:
        ConfigError: for a `_target_` that is not on the list, an option that it does not take, a value out of range.
    """
    _check_range(node, key=group, path=group, depth=0)
    check_untrusted(group, node, trust=trust)


def check_ddpm(
    config: dict, shapes: dict[str, tuple[int, ...]], image_shape: tuple[int, int, int], *, trust: Iterable[str]
) -> None:
    """Check the groups of a network and its diffusion, and that the network is the one whose tensors are there.

    The network is built without memory ("meta" tensors), so that a small file cannot describe a giant. That is left out
    for a class that needed `trust`: it may do anything anyway.

    Args:
        config: the checkpoint's whole configuration.
        shapes: of the tensors in the file, by name.
        image_shape: (C, H, W) of its images.

    Raises:
        ConfigError: as `check_node`, or if the network cannot be built or does not take such images.
        MisfitError: if a group is missing, or the tensors are not those of the network.
    """
    import torch

    for group in DDPM_GROUPS:
        if group not in config:
            raise MisfitError(f"its configuration has no {group!r}")
        check_node(group, config[group], trust=trust)
    if config["model"]["_target_"] not in shipped_targets()["model"]:
        return
    with torch.device("meta"):
        model = instantiate(config["model"], "model")
    _compare("its weights do", {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, shapes)
    _check_images(config["model"], image_shape)


def check_state(
    config: dict, shapes: dict[str, tuple[int, ...]], image_shape: tuple[int, int, int], *, trust: Iterable[str]
) -> None:
    """As `check_ddpm`, for the tensors of a whole training state, of which every one must have the shape it had.

    Those who use them rely on it: a fused optimizer would write beyond the end of moments that are too short.

    Raises:
        ConfigError: as `check_ddpm`.
        MisfitError: as `check_ddpm`, and if a tensor has another shape, is missing, or has no place in such a state.
    """
    weights = _below("model.", shapes)
    check_ddpm(config, weights, image_shape, trust=trust)
    expected: dict[str, tuple[int | None, ...]] = {n: shape for n, shape in shapes.items() if n.startswith("model.")}
    expected |= {name: () for name in shapes if name.startswith(("counter.", "scaler."))}
    moments = _below("optimizer.", shapes)
    if moments:
        check_node("optimizer", config.get("optimizer"), trust=trust)
        expected |= _moments(config["optimizer"]["_target_"], moments, weights)
    expected |= _averages(config, shapes, weights, trust=trust)
    if _below("unlogged.", shapes):
        check_node("trainer", config.get("trainer"), trust=trust)
        steps, batch = shapes.get("unlogged.grad_norm", ())[:1], (config["trainer"].get("batch_size"),)
        expected |= {"unlogged.grad_norm": steps, "unlogged.skipped": steps}
        expected |= {"unlogged.losses": steps + batch, "unlogged.t": steps + batch}
        if "unlogged.weights" in shapes:  # not in those of version 0.1
            expected["unlogged.weights"] = steps + batch
    expected |= _timesteps(config, shapes, trust=trust)
    _compare("its training state does", expected, shapes)


def _moments(target: str, found: Shapes, weights: Shapes) -> dict[str, tuple[int | None, ...]]:
    """The shapes that the moments of an optimizer must have; those that are there, if it is none of ours."""
    if target not in shipped_targets()["optimizer"]:
        return {f"optimizer.{name}": shape for name, shape in found.items()}
    expected: dict[str, tuple[int | None, ...]] = {}
    for name in {moment.rpartition(".")[0] for moment in found} & weights.keys():
        expected |= {f"optimizer.{name}.{moment}": weights[name] for moment in _MOMENTS}
        expected[f"optimizer.{name}.step"] = ()
    return expected


def _averages(
    config: dict, shapes: Shapes, weights: Shapes, *, trust: Iterable[str]
) -> dict[str, tuple[int | None, ...]]:
    """The shapes of the averages beside the main one, as `EMA.state` names them; those there are, if it is not ours."""
    found = {name: shape for name, shape in shapes.items() if name.startswith(("ema.", "posthoc."))}
    if "ema" not in config and not found:
        return {}
    check_node("ema", config.get("ema"), trust=trust)
    node = config["ema"]
    if node["_target_"] not in shipped_targets()["ema"]:
        return found
    prefixes = [ema_prefix(decay) for decay in node.get("decays", [])[1:]]
    prefixes += [posthoc_prefix(width) for width in node.get("posthoc", [])]
    return {f"{prefix}{name}": shape for prefix in prefixes for name, shape in weights.items()}


def _timesteps(config: dict, shapes: Shapes, *, trust: Iterable[str]) -> dict[str, tuple[int | None, ...]]:
    """The shapes of what has been learned of the losses at each t; those there are, if it is not ours."""
    found = {name: shape for name, shape in shapes.items() if name.startswith("timesteps.")}
    if "timestep_sampler" not in config and not found:
        return {}
    check_node("timestep_sampler", config.get("timesteps"), trust=trust)
    node, schedule = config["timestep_sampler"], config["schedule"]
    if node["_target_"] not in shipped_targets()["timestep_sampler"]:
        return found
    if "history" not in node:
        return {}
    count = schedule["timesteps"] if "timesteps" in schedule else len(schedule.get("betas", []))
    return {"timesteps.losses": (count, node["history"]), "timesteps.seen": (count,)}


def _below(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _compare(what: str, expected: Shapes, shapes: Shapes) -> None:
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            described, found = (_shape(names.get(name)) for names in (expected, shapes))
            raise MisfitError(f"{what} not fit the network it describes: {name} is {found}, should be {described}")


def _check_images(model: dict, image_shape: tuple[int, int, int]) -> None:
    """Compare the shape of the images with what the network's options say of them; running it would take memory."""
    size = model.get("image_size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    for name, described, found in zip(
        ("in_channels", "image_size", "image_size"), (model.get("in_channels"), height, width), image_shape, strict=True
    ):
        if described is not None and described != found:
            raise ConfigError(f"model.{name}: is {described}, but the checkpoint's images are {list(image_shape)}")


def _shape(shape: tuple[int | None, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _check_range(value: object, *, key: str, path: str, depth: int) -> None:
    too_much = None
    if depth > _DEEPEST:
        too_much = "nested too deep"
    elif isinstance(value, str) and len(value) > _LONGEST_TEXT:
        too_much = f"a text of {len(value)} characters"
    elif isinstance(value, list | dict) and len(value) > _LONGEST.get(key, _LONGEST_LIST):
        too_much = f"{len(value)} entries"
    elif isinstance(value, float) and not math.isfinite(value):
        too_much = f"{value}"
    elif isinstance(value, int | float) and abs(value) > _MOST.get(key, _MOST_OTHERWISE):
        too_much = f"{str(value)[:20]} is beyond {_MOST.get(key, _MOST_OTHERWISE)}"
    if too_much is not None:
        raise ConfigError(f"{path}: no checkpoint may hold this: {too_much}")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_range(str(name), key="", path=f"{path}.{name}"[:200], depth=depth + 1)
            _check_range(inner, key=str(name), path=f"{path}.{name}"[:200], depth=depth + 1)
    if isinstance(value, list):
        for inner in value:
            _check_range(inner, key=key, path=path, depth=depth + 1)
