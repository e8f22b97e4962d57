"""Hostile configurations and descriptions: what they would build, read, write, or how much they would take."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from torture.hostile_run import ALL, Foreign, Kind

BUILT = ("model", "schedule", "prediction", "weighting", "variance")  # by every use; the other groups by resuming
RESUMED = ("sampler", "optimizer", "trainer", "data", "name", "trust", "surprise")
NOT_LISTED = "is not on the list of what a checkpoint may build"
OUT_OF_RANGE = "no checkpoint may hold this"
MISFIT = "do not fit the network it describes"
OTHERS = "sample load"  # ways of use that do not look at what only resuming needs

# Each with the arguments that would make it do harm. The paths through our own modules lead to what those import.
CALL = {"_target_": "os.system", "command": "PAYLOAD"}
EVAL = {"_args_": ["__import__('os').system('PAYLOAD')"]}
TARGETS: dict[str, dict[str, Any]] = {
    "posix.system": {"command": "PAYLOAD"},
    "subprocess.Popen": {"args": "PAYLOAD", "shell": True},
    "builtins.eval": EVAL,
    "importlib.import_module": {"name": "antigravity"},
    "functools.partial": {"_args_": ["os.system", "PAYLOAD"]},
    "torch.load": {"f": "ELSEWHERE/diary.txt", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": "hostile/repository", "model": "pwned"},
    "torch.hub.load_state_dict_from_url": {"url": "http://127.0.0.1:9/pwned"},
    "hydra.utils.instantiate": {"config": CALL},
    "ddpm_cli.cli.launch.os.system": {"command": "PAYLOAD"},
    "ddpm_cli.models.unet.torch.os.system": {"command": "PAYLOAD"},
    "ddpm_cli.data.folder.folder": {"path": "ELSEWHERE"},
    "os.system ": {"command": "PAYLOAD"},
    "\uff4f\uff53.system": {"command": "PAYLOAD"},  # full-width letters, which Python's parser reads as plain ones
    "": {},
    # Names without a path, of which only those that we ship for a group are known there.
    "eval": EVAL,
    "system": {"command": "PAYLOAD"},
    "torch": {},
    "folder": {"path": "ELSEWHERE"},
    "load": {"path": "ELSEWHERE"},
    "NoiseSchedule": {"log_alpha_bar": [0.1]},
    "Epsilon ": {},
}

Table = list[tuple[str, dict[str, Any], str]]  # name, options by dotted key, what the refusal says

# Groups that are on the list, with something in them that is not.
NESTED: Table = [
    ("a node for a number", {"schedule.timesteps": CALL}, NOT_LISTED),
    ("a node in a list of numbers", {"model.channel_mults": [1, CALL]}, "expected a list of whole numbers"),
    ("a node in an unknown option", {"weighting.log_snr": CALL}, "no such option"),
    ("a list for a group", {"prediction": [CALL]}, "expected a group of options"),
    ("_args_", {"schedule._args_": [CALL]}, "no such option"),
    ("_recursive_ and _convert_", {"model._recursive_": False, "model._convert_": "all"}, "no such option"),
    ("_partial_ where none belongs", {"prediction._partial_": True}, "_partial_: cannot be true"),
    ("_partial_ of another type", {"variance._partial_": [CALL]}, "_partial_: cannot be"),
    ("_partial_ of the optimizer false", {"optimizer._partial_": False}, "_partial_: cannot be"),
    ("another group's target", {"weighting._target_": "ddpm_cli.diffusion.schedule.linear"}, NOT_LISTED),
    ("another group's name", {"weighting._target_": "linear"}, NOT_LISTED),
    ("a list as a name", {"schedule._target_": ["cosine"]}, "expected the full name of a function or class"),
    ("oc.env for a number", {"schedule.timesteps": "${oc.env:HOME}"}, "expected a whole number"),
    ("oc.decode for a number", {"model.dropout": "${oc.decode:${oc.env:HOME}}"}, "expected a number"),
    ("oc.create for a group", {"weighting": "${oc.create:{_target_: os.system}}"}, "expected a group of options"),
]

LARGEST = {"model.base_channels": 4096, "model.channel_mults": [64] * 15, "model.image_size": 2**14}
LARGEST |= {"model.num_res_blocks": 16, "model.attention_resolutions": [2**i for i in range(15)]}

# Numbers that would take memory or time without bound, or are none.
NUMBERS: Table = [
    ("base_channels 4096", {"model.base_channels": 4096}, MISFIT),
    ("base_channels 4098", {"model.base_channels": 4098}, OUT_OF_RANGE),
    ("a network as large as may be", LARGEST, "model.image_size: is 16384, but"),
    ("num_res_blocks -1", {"model.num_res_blocks": -1}, "must be at least 1, got -1"),
    ("image_size [0, 16]", {"model.image_size": [0, 16]}, "model.image_size: is 0, but"),
    ("timesteps 100,001", {"schedule.timesteps": 100_001}, OUT_OF_RANGE),
    ("timesteps 10**400", {"schedule.timesteps": 10**400}, OUT_OF_RANGE),
    ("timesteps NaN", {"schedule.timesteps": float("nan")}, OUT_OF_RANGE),
    ("timesteps true", {"schedule.timesteps": True}, "expected a whole number, got true"),
    ("beta_max Infinity", {"schedule.beta_max": float("inf")}, OUT_OF_RANGE),
    ("a number of 5,000 digits, as text", {"model.norm_groups": "4" * 5000}, OUT_OF_RANGE),
    ("an option with a name of 200 kB", {"model." + "a" * 200_000: 1}, OUT_OF_RANGE),
    ("sampler.steps 2**62", {"sampler.steps": 2**62}, "steps must be between 1 and"),
    ("batch_size 2**17", {"trainer.batch_size": 2**17}, OUT_OF_RANGE),
    ("preview_images 10**9", {"trainer.preview_images": 10**9}, OUT_OF_RANGE),
    ("data.image_size 2**15", {"data.image_size": 2**15}, OUT_OF_RANGE),
    ("log_every -1", {"trainer.log_every": -1}, "log_every must be at least 1"),
    ("seed Infinity", {"seed": float("inf")}, "seed: expected a whole number"),
    ("seed 60,000 empty lists", {"seed": [[]] * 60_000}, "seed: expected a whole number"),
]

CUSTOM = {"_target_": "custom"}
HYBRID = {"_target_": "ddpm_cli.diffusion.loss.Hybrid"}  # by its path, which is as good
LOSS_SECOND_MOMENT = {"_target_": "LossSecondMoment", "uniform": 0.001}

# Of another type or without bound, in what only some runs have. By name, options, what is said, harmless ways of use.
OPTIONS: list[tuple[str, dict[str, Any], str, str]] = [
    ("num_classes 2**21", {"model.num_classes": 2**21}, OUT_OF_RANGE, ""),
    ("num_classes 2**20", {"model.num_classes": 2**20}, MISFIT, ""),
    ("num_classes true", {"model.num_classes": True}, "expected a whole number", ""),
    ("betas a number", {"schedule": CUSTOM | {"betas": 0.1}}, "expected a list", ""),
    ("betas 2**14 + 1", {"schedule": CUSTOM | {"betas": [0.1] * (2**14 + 1)}}, OUT_OF_RANGE, ""),
    ("betas of lists", {"schedule": CUSTOM | {"betas": [[0.1]]}}, "expected a list of numbers", ""),
    ("betas NaN", {"schedule": CUSTOM | {"betas": [0.1, float("nan")]}}, OUT_OF_RANGE, ""),
    ("betas none", {"schedule": CUSTOM | {"betas": []}}, "at least one", ""),
    ("zero_terminal_snr a number", {"schedule.zero_terminal_snr": 1}, "expected true or false", ""),
    ("zero_terminal_snr a node", {"schedule.zero_terminal_snr": CALL}, NOT_LISTED, ""),
    ("bound_weight 1e300", {"loss": HYBRID | {"bound_weight": 1e300}}, OUT_OF_RANGE, ""),
    ("bound_weight a text", {"loss": HYBRID | {"bound_weight": "x"}}, "expected a number", ""),
    ("history 2**30", {"timestep_sampler": LOSS_SECOND_MOMENT | {"history": 2**30}}, OUT_OF_RANGE, OTHERS),
    ("history a list", {"timestep_sampler": LOSS_SECOND_MOMENT | {"history": [1]}}, "expected a whole number", OTHERS),
    ("label_dropout Infinity", {"trainer.label_dropout": float("inf")}, OUT_OF_RANGE, OTHERS),
    ("label_dropout a list", {"trainer.label_dropout": [0.1]}, "expected a number", OTHERS),
    ("posthoc of 64", {"ema.posthoc": [0.05 + i / 1000 for i in range(64)]}, OUT_OF_RANGE, "sample"),
    ("posthoc a number", {"ema.posthoc": 0.1}, "expected a list", "sample"),
    ("posthoc of nodes", {"ema.posthoc": [CALL]}, "expected a list of numbers", "sample"),
    ("posthoc too long", {"ema.posthoc": [5.0]}, "impossible ema.posthoc|training state does not fit", "sample"),
    ("posthoc twice", {"ema.posthoc": [0.1, 0.1]}, "impossible ema.posthoc|must differ|does not fit", "sample"),
    ("decays of 65", {"ema.decays": [0.9] * 65}, OUT_OF_RANGE, "sample"),
    ("decays a text", {"ema.decays": "0.9"}, "expected a list", "sample"),
]

FOLDER = {"_target_": "ddpm_cli.data.folder.folder", "image_size": 16, "channels": 1}
MNIST = {"_target_": "ddpm_cli.data.datasets.mnist", "image_size": 16}
NOWHERE = {"path": "ELSEWHERE/none", "cache_dir": "ELSEWHERE/cache"}

# Texts that lead elsewhere, or to the terminal.
TEXTS: Table = [
    ("data.path and cache_dir elsewhere", {"data": FOLDER | NOWHERE}, "no such folder"),
    ("data.path oc.env", {"data": FOLDER | {"path": "${oc.env:HOME}"}}, "no such folder of images"),
    ("data.path with a NUL", {"data": FOLDER | {"path": "x\0y"}}, "data"),
    ("data.root absent", {"data": MNIST | {"root": "none"}}, "is missing: set data.download=true"),
    ("data.download", {"data": MNIST | {"root": "data", "download": True}}, "is missing: set data.download=true"),
    ("a target for the terminal", {"schedule._target_": "\x1b]0;pwned\x07\x1b[2J"}, NOT_LISTED),
    ("an option for the terminal", {"schedule.\x1b[2J\rpwned": 1}, "no such option"),
]

# A resumed run stays in its directory, and whom to trust is said on the command line.
WITHOUT_EFFECT: Table = [
    ("name out of here", {"name": "../../../elsewhere/x"}, "name"),
    ("output_dir and resume elsewhere", {"output_dir": "ELSEWHERE/outputs", "resume": "ELSEWHERE"}, "output_dir"),
    ("trust in the checkpoint", {"trust": ["os.system"]}, "trust"),
]

# The description around the configuration.
DESCRIPTIONS: Table = [
    ("format 4", {"format": 4}, "another checkpoint format"),
    ("step 10**300", {"step": 10**300}, "step 1000"),
    ("images NaN", {"images": float("nan")}, "images nan"),
    ("image_shape 2**40", {"image_shape": [1, 2**40, 16]}, "image_shape"),
    ("image_shape of too many pixels", {"image_shape": [1, 2**16, 2**9]}, "too large"),
    ("image_shape of other channels", {"image_shape": [2**8, 16, 16]}, "model: |model.in_channels: "),
    ("image_shape nested", {"image_shape": [[[1]], -16, 1e308]}, "image_shape"),
    ("config a list", {"config": [["model", CALL]]}, "config and versions must be objects"),
    ("a description with _target_", CALL, "its description is invalid"),
]


def kinds() -> Iterator[Kind]:
    for group in (*BUILT, *RESUMED):
        yield Kind(f"os.system as {group}", _configured({group: CALL}), NOT_LISTED, "" if group in BUILT else OTHERS)
    for (target, arguments), group in zip(TARGETS.items(), itertools.cycle(BUILT), strict=False):
        yield Kind(f"{target} as {group}", _configured({group: {"_target_": target, **arguments}}), NOT_LISTED)
    for name, values, says in (*NESTED, *NUMBERS, *TEXTS):
        built = any(key.startswith(BUILT) for key in values)
        yield Kind(name, _configured(values), says, "" if built else OTHERS)
    for name, values, says, harmless in OPTIONS:
        yield Kind(name, _configured(values), says, harmless)
    for name, values, says in WITHOUT_EFFECT:
        yield Kind(name, _configured(values), says, ALL)
    for name, values, says in DESCRIPTIONS:
        yield Kind(name, _described(values), says)
    for depth in (9, 950, 100_000):  # Python's parser gives up at a thousand; other code may before
        yield Kind(f"nested {depth} deep", _deep(depth), "its description is invalid|nested too deep|larger|longer")
    yield Kind("a key twice, the hostile one last", _twice(before="prediction"), NOT_LISTED)
    yield Kind("a key twice, the hostile one first", _twice(before="schedule"), NOT_LISTED, ALL)
    yield Kind("a giant in checkpoint.json alone", _in_one_file({"model.base_channels": 512}), MISFIT, "sample")
    yield Kind("a target in checkpoint.json alone", _in_one_file({"schedule": CALL}), NOT_LISTED, "sample")
    yield Kind("1 MB of numbers", _configured({"surprise": [1] * 350_000}), "longer than|larger than|a header of")


def _configured(values: dict[str, Any]) -> Callable[[Foreign], object]:
    return lambda foreign: foreign.configure(values)


def _described(values: dict[str, Any]) -> Callable[[Foreign], object]:
    return lambda foreign: foreign.retell(lambda description: description.update(foreign.filled_in(values)))


def _deep(depth: int) -> Callable[[Foreign], object]:
    def spoil(foreign: Foreign) -> None:
        foreign.configure({"seed": 12345, "model.dropout": 12345})
        text = (foreign.checkpoint / "checkpoint.json").read_text()
        foreign.put_description(text.replace("12345", "[" * depth + "]" * depth))

    return spoil


def _twice(before: str) -> Callable[[Foreign], object]:
    """The schedule twice: which of the two counts must be the same for whoever checks and for whoever builds."""

    def spoil(foreign: Foreign) -> None:
        text = (foreign.checkpoint / "checkpoint.json").read_text()
        hostile = json.dumps(foreign.filled_in(CALL))
        foreign.put_description(text.replace(f'"{before}":', f'"schedule": {hostile}, "{before}":'))

    return spoil


def _in_one_file(values: dict[str, Any]) -> Callable[[Foreign], object]:
    """The EMA file keeps the true configuration, and only the other one is hostile."""

    def spoil(foreign: Foreign) -> None:
        ema = (foreign.checkpoint / "ema.safetensors").read_bytes()
        foreign.configure(values)
        foreign.put("ema.safetensors", ema)

    return spoil
