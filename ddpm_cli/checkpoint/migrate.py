"""Updates configurations of earlier checkpoint formats to the present one, without changing what they compute.

They may come from anywhere and hold any JSON: only keys of known nodes are added and renamed, and the result is checked
like any other.
"""

from ddpm_cli.checkpoint.stored_config import Node, map_nodes


def upgrade(config: dict, written: int) -> dict:
    """A configuration of format `written`, as it stands in the file, in the terms of format 3; a new dict."""
    if written < 2:
        config = _from_1(config)
    if written < 3:
        config = _from_2(config)
    return map_nodes(map_nodes(config, _with_new_names), _with_later_options)


# From 1 to 2: more options -------------------------------------------------------------------------------------------

# By group: what its nodes whose `_target_` begins so have got since format 1, with the values that change nothing.
_SINCE_1: dict[str, tuple[str, Node]] = {
    "schedule": ("ddpm_cli.diffusion.schedule.", {"zero_terminal_snr": False}),
    "model": ("ddpm_cli.models.unet.UNet", {"num_classes": None, "learn_variance": False}),
    "sampler": ("ddpm_cli.diffusion.samplers.", {"spacing": "linspace"}),
    "ema": ("ddpm_cli.training.ema.EMA", {"posthoc": []}),
    "trainer": ("ddpm_cli.training.settings.Settings", {"label_dropout": None}),
    "data": ("ddpm_cli.data.", {"num_classes": None}),
}


def _from_1(config: dict) -> dict:
    found = dict(config)
    for group, (target, since) in _SINCE_1.items():
        node = found.get(group)
        if isinstance(node, dict) and str(node.get("_target_")).startswith(target):
            found[group] = since | (_with_decays(node) if group == "ema" else node)
    if "trainer" in found:
        loss = {"_target_": "ddpm_cli.diffusion.loss.Simple"}
        timesteps = {"_target_": "ddpm_cli.training.timesteps.Uniform", "_partial_": True}
        found = {"loss": loss, "timesteps": timesteps} | found
    return found


def _with_decays(node: Node) -> Node:
    """A node of the EMA with a list of decays in the place of the only one."""
    renamed = {}
    for key, value in node.items():
        if key == "decay":
            renamed["decays"] = [value]
        else:
            renamed[key] = value
    return renamed


# From 2 to 3: names without paths, some of them new ones -------------------------------------------------------------

_GROUPS = {"timesteps": "timestep_sampler"}

# By group of format 2: every target that was shipped for it, and its name in format 3.
_NAMES: dict[str, dict[str, str]] = {
    "schedule": {
        "ddpm_cli.diffusion.schedule.linear": "linear",
        "ddpm_cli.diffusion.schedule.scaled_linear": "scaled_linear",
        "ddpm_cli.diffusion.schedule.cosine": "cosine",
        "ddpm_cli.diffusion.schedule.sigmoid": "sigmoid",
        "ddpm_cli.diffusion.schedule.custom": "custom",
    },
    "model": {"ddpm_cli.models.unet.UNet": "UNet"},
    "prediction": {
        "ddpm_cli.diffusion.prediction.Epsilon": "Epsilon",
        "ddpm_cli.diffusion.prediction.Start": "X0",
        "ddpm_cli.diffusion.prediction.Velocity": "Velocity",
    },
    "variance": {
        "ddpm_cli.diffusion.variance.fixed_small": "FixedSmall",
        "ddpm_cli.diffusion.variance.fixed_large": "FixedLarge",
        "ddpm_cli.diffusion.variance.learned_range": "LearnedRange",
    },
    "weighting": {
        "ddpm_cli.diffusion.weighting.simple": "Uniform",
        "ddpm_cli.diffusion.weighting.snr_truncated": "TruncatedSNR",
        "ddpm_cli.diffusion.weighting.min_snr": "MinSNR",
        "ddpm_cli.diffusion.weighting.p2": "P2",
    },
    "loss": {
        "ddpm_cli.diffusion.loss.Simple": "Simple",
        "ddpm_cli.diffusion.loss.Hybrid": "Hybrid",
        "ddpm_cli.diffusion.loss.VariationalBound": "VariationalBound",
    },
    "timesteps": {
        "ddpm_cli.training.timesteps.Uniform": "Uniform",
        "ddpm_cli.training.timesteps.Stratified": "Stratified",
        "ddpm_cli.training.timesteps.LossAware": "LossSecondMoment",
    },
    "sampler": {
        "ddpm_cli.diffusion.samplers.ddpm": "Ancestral",
        "ddpm_cli.diffusion.samplers.ddim": "DDIM",
        "ddpm_cli.diffusion.samplers.heun": "Heun",
        "ddpm_cli.diffusion.samplers.dpmpp_2m": "DPMSolverPP2M",
        "ddpm_cli.diffusion.samplers.dpmpp_2m_sde": "DPMSolverPP2MSDE",
        "ddpm_cli.diffusion.samplers.unipc": "UniPC",
    },
    "optimizer": {
        "ddpm_cli.training.optimizers.adam": "adam",
        "ddpm_cli.training.optimizers.adamw": "adamw",
    },
    "ema": {"ddpm_cli.training.ema.EMA": "EMA"},
    "trainer": {"ddpm_cli.training.settings.Settings": "TrainerConfig"},
    "data": {
        "ddpm_cli.data.sources.digits": "digits",
        "ddpm_cli.data.sources.mnist": "mnist",
        "ddpm_cli.data.sources.fashion_mnist": "fashion_mnist",
        "ddpm_cli.data.sources.cifar10": "cifar10",
        "ddpm_cli.data.folder.folder": "folder",
        "ddpm_cli.data.shards.webdataset": "webdataset",
    },
}

# Groups of format 2 whose targets were not called yet.
_PARTIAL = ("variance", "weighting", "timesteps", "sampler", "optimizer", "ema")

# By group of format 2: options of its own targets that have another name in format 3.
_OPTIONS: dict[str, dict[str, str]] = {
    "trainer": {"checkpoint_activations": "activation_checkpointing", "shard": "fsdp"},
}


def _from_2(config: dict) -> dict:
    return {_GROUPS.get(group, group): node for group, node in map_nodes(config, _renamed).items()}


def _renamed(group: str, node: Node) -> Node:
    target = node["_target_"]
    name = _NAMES.get(group, {}).get(target) if isinstance(target, str) else None
    if name is None:
        return node
    options = _OPTIONS.get(group, {})
    found = {options.get(key, key): value for key, value in node.items()}
    if group in _PARTIAL and node.get("_partial_") is True:
        del found["_partial_"]
    return found | {"_target_": name}


# Options that have another name, or other values, since format 3 began -----------------------------------------------

# Sources of images of ours; their names have been those of format 3 before there were such options.
_SOURCES = ("digits", "mnist", "fashion_mnist", "cifar10", "folder", "webdataset")
_FLIPS = {True: "horizontal", False: "none"}


def _with_new_names(group: str, node: Node) -> Node:
    if group != "data" or node["_target_"] not in _SOURCES:
        return node
    found = {"background" if key == "alpha" and "background" not in node else key: node[key] for key in node}
    if isinstance(found.get("flip"), bool):
        found["flip"] = _FLIPS[found["flip"]]
    return found


# Options that format 3 has got since, without another number: absent they mean what is here -------------------------

_PICTURES: Node = {"value_range": None, "background": "white", "crop": "center"}
_NETWORK: Node = {
    "head_channels": None,
    "norm_eps": 1e-6,
    "time_cos_first": False,
    "time_freq_shift": 1,
    "time_scale": 1.0,
    "downsample_padding": "same",
    "scale_shift_norm": False,
    "resblock_updown": False,
    "null_label": True,
}
_LATER: dict[str, dict[str, Node]] = {
    "model": {"UNet": _NETWORK},
    "data": {
        "folder": {"extensions": ["png", "jpg", "jpeg", "webp", "bmp"], "follow_links": False, "cache_gb": 50}
        | _PICTURES,
        "webdataset": _PICTURES,
    },
}


# The same, of every node of a group, also a user's own.
_LATER_OF_ALL: dict[str, Node] = {"data": {"holdout": 0}}


def _with_later_options(group: str, node: Node) -> Node:
    target = node["_target_"]
    later = _LATER.get(group, {}).get(target, {}) if isinstance(target, str) else {}
    added = _LATER_OF_ALL.get(group, {}) | later
    return node | {key: value for key, value in added.items() if key not in node}  # in the order of what is there
