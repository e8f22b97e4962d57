"""What a configuration out of somebody else's checkpoint may be: names on a list, numbers in a range, shapes that fit.

All of it is found out before a class is imported that we do not ship, and before memory is taken for a network.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ddpm_cli.checkpoint.files import Shapes
from ddpm_cli.checkpoint.tensor_names import AVERAGES, COUNTER, MODEL, OPTIMIZER, SCALER, TIMESTEPS, UNLOGGED, below
from ddpm_cli.config.build_ddpm import DDPM_GROUPS
from ddpm_cli.config.errors import ConfigError, shown
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.schema import check_untrusted, is_node
from ddpm_cli.config.shipped import shipped_targets
from ddpm_cli.ema.posthoc import MOST_LENGTHS, ema_prefix, posthoc_prefix

if TYPE_CHECKING:
    from torch import Tensor

# The largest magnitude of a number by the name of its option: those that decide how much memory or time is taken.
_MOST = {
    "timesteps": 100_000,
    "diffusion_steps": 100_000,
    "image_size": 2**14,
    "in_channels": 64,
    "channels": 64,
    "base_channels": 4096,
    "channel_mults": 64,
    "num_res_blocks": 16,
    "attention_resolutions": 2**14,
    "num_heads": 1024,
    "head_channels": 2**18,
    "num_head_channels": 2**18,
    "norm_eps": 1,
    "time_freq_shift": 1,
    "time_scale": 2**20,
    "num_classes": 2**20,
    "history": 2**12,
    "norm_groups": 4096,
    "batch_size": 2**16,
    "accumulate": 2**16,
    "log_every": 2**20,
    "preview_images": 4096,
    "eval_images": 2**20,
    "workers": 1024,
    "window": 2**20,
    "background": 255,
    "overfit_batches": 2**20,
    "profile_steps": 2**12,
    "memory_mb": 2**20,
}
_MOST_OTHERWISE = 2**63
_LONGEST_TEXT = 4096
_LONGEST_LIST = 64
_LONGEST = {"betas": 2**13, "steps": 2**13, "posthoc": MOST_LENGTHS}  # of a schedule, and of a sampler's timesteps
_DEEPEST = 8
_OF_OTHER_TYPES = (COUNTER, UNLOGGED, TIMESTEPS, SCALER)  # what is no weight and none of its averages or moments
_MOMENTS = ("exp_avg", "exp_avg_sq")  # beside `step`, what each optimizer that we ship keeps of every parameter


PartialShapes = dict[str, tuple[int | None, ...]]  # None stands for a size that is not known


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


def check_config(config: dict, *, trust: Iterable[str] = ()) -> None:
    """Check every group of a configuration that came with a checkpoint. Arguments and errors as of `check_node`."""
    for group, node in config.items():
        if is_node(node):
            check_node(group, node, trust=trust)


def check_ddpm(config: dict, image_shape: tuple[int, int, int], *, trust: Iterable[str]) -> Shapes | None:
    """Check the groups of a network and its diffusion; returns the shapes of the network's tensors by name.

    The network is built without memory ("meta" tensors), so that a small file cannot describe a giant. That is left out
    for a class that needed `trust`: it may do anything anyway. None then.

    Args:
        config: the checkpoint's whole configuration.
        image_shape: (C, H, W) of its images.

    Raises:
        ConfigError: as `check_node`, or if the network cannot be built or does not take such images.
        MisfitError: if a group is missing.
    """
    import torch

    for group in DDPM_GROUPS:
        if group not in config:
            raise MisfitError(f"its configuration has no {group!r}")
        check_node(group, config[group], trust=trust)
    if config["model"]["_target_"] not in shipped_targets()["model"]:
        return None
    _check_images(config["model"], image_shape)
    with torch.device("meta"):
        model = instantiate(config["model"], "model")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_weights(shapes: Shapes, network: Shapes | None) -> None:
    """Check that the tensors in a file, by name, are those of the network that `check_ddpm` has built.

    Raises:
        MisfitError: if one has another shape, is missing, or has no place in it.
    """
    if network is not None:
        _compare("its weights do", network, shapes)


def check_types(tensors: "Mapping[str, Tensor]", network: Shapes | None) -> None:
    """Check that weights and what belongs to them are numbers of a size that is about theirs in memory.

    Bytes, bits and float8 would take four times and more of their file once they are in the network, in float32.

    Raises:
        MisfitError: naming the first tensor that holds anything else.
    """
    import torch

    known = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for name, tensor in tensors.items():
        if network is not None and not name.startswith(_OF_OTHER_TYPES) and tensor.dtype not in known:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise MisfitError(f"{shown(name)} does not fit the network it describes: it is {kind}, should be float32")


def check_state(config: dict, shapes: Shapes, network: Shapes | None, *, trust: Iterable[str]) -> None:
    """Check that every tensor of a whole training state has the shape it had.

    Those who use them rely on it: a fused optimizer would write beyond the end of moments that are too short.

    Args:
        shapes: of the tensors in the file, by name.
        network: what `check_ddpm` has returned.

    Raises:
        ConfigError: as `check_node`.
        MisfitError: if a tensor has another shape, is missing, or has no place in such a state.
    """
    weights = below(MODEL, shapes)
    check_weights(weights, network)
    expected: PartialShapes = {name: shape for name, shape in shapes.items() if name.startswith(MODEL)}
    expected |= {name: () for name in shapes if name.startswith((COUNTER, SCALER))}
    expected |= _moments(config, below(OPTIMIZER, shapes), weights, trust=trust)
    expected |= _averages(config, shapes, weights, trust=trust)
    expected |= _unlogged(config, below(UNLOGGED, shapes), trust=trust)
    expected |= _timesteps(config, shapes, trust=trust)
    _compare("its training state does", expected, shapes)


def _moments(config: dict, found: Shapes, weights: Shapes, *, trust: Iterable[str]) -> PartialShapes:
    """The shapes that the moments of an optimizer must have; those that are there, if it is none of ours."""
    if not found:
        return {}
    check_node("optimizer", config.get("optimizer"), trust=trust)
    if config["optimizer"]["_target_"] not in shipped_targets()["optimizer"]:
        return {f"{OPTIMIZER}{name}": shape for name, shape in found.items()}
    expected: PartialShapes = {}
    for name in {moment.rpartition(".")[0] for moment in found} & weights.keys():
        expected |= {f"{OPTIMIZER}{name}.{moment}": weights[name] for moment in _MOMENTS}
        expected[f"{OPTIMIZER}{name}.step"] = ()
    return expected


def _averages(config: dict, shapes: Shapes, weights: Shapes, *, trust: Iterable[str]) -> PartialShapes:
    """The shapes of the averages beside the main one; those that are there, if the EMA is not ours."""
    found: PartialShapes = {name: shape for name, shape in shapes.items() if name.startswith(AVERAGES)}
    if "ema" not in config and not found:
        return {}
    check_node("ema", config.get("ema"), trust=trust)
    node = config["ema"]
    if node["_target_"] not in shipped_targets()["ema"]:
        return found
    prefixes = [ema_prefix(decay) for decay in node.get("decays", [])[1:]]
    prefixes += [posthoc_prefix(length) for length in node.get("posthoc", [])]
    return {f"{prefix}{name}": shape for prefix in prefixes for name, shape in weights.items()}


def _unlogged(config: dict, found: Shapes, *, trust: Iterable[str]) -> PartialShapes:
    """The shapes of what is known of the steps that are still to be logged."""
    if not found:
        return {}
    check_node("trainer", config.get("trainer"), trust=trust)
    steps = found.get("grad_norm", ())[:1]
    images = (*steps, config["trainer"].get("batch_size"))
    expected: PartialShapes = {"grad_norm": steps, "skipped": steps, "losses": images, "t": images}
    if "weights" in found:  # not in those of version 0.1
        expected["weights"] = images
    return {f"{UNLOGGED}{name}": shape for name, shape in expected.items()}


def _timesteps(config: dict, shapes: Shapes, *, trust: Iterable[str]) -> PartialShapes:
    """The shapes of what has been learned of the losses at each t; those there are, if it is not ours."""
    found: PartialShapes = {name: shape for name, shape in shapes.items() if name.startswith(TIMESTEPS)}
    if "timestep_sampler" not in config and not found:
        return {}
    check_node("timestep_sampler", config.get("timestep_sampler"), trust=trust)
    node, schedule = config["timestep_sampler"], config["schedule"]
    if node["_target_"] not in shipped_targets()["timestep_sampler"]:
        return found
    if "history" not in node:
        return {}
    count = schedule["timesteps"] if "timesteps" in schedule else len(schedule.get("betas", []))
    return {f"{TIMESTEPS}losses": (count, node["history"]), f"{TIMESTEPS}seen": (count,)}


def _compare(what: str, expected: Mapping[str, tuple[int | None, ...]], shapes: Shapes) -> None:
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            described, found = (shown(_shape(names.get(name))) for names in (expected, shapes))
            named = f"{shown(name)} is {found}, should be {described}"
            raise MisfitError(f"{what} not fit the network it describes: {named}")


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
        too_much = "nested too deeply"
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
