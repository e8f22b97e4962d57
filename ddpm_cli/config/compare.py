"""How a run's own configuration may change: when it is resumed (only what keeps its learning valid), or forked."""

import copy
from collections.abc import Collection
from typing import Any

from ddpm_cli.config.errors import ConfigError, nearest
from ddpm_cli.config.renamed import new_key, new_value
from ddpm_cli.config.schema import is_node

# Everything else decides what the run learns, and may not change under its feet.
CHANGEABLE = (
    *("name", "output_dir", "sampler", "objective"),
    *("trainer.steps", "trainer.accumulate", "trainer.device", "trainer.activation_checkpointing"),
    *("trainer.fsdp", "trainer.compile"),
    *("trainer.deterministic", "trainer.log_every", "trainer.preview_every", "trainer.preview_images"),
    *("trainer.checkpoint_every", "trainer.keep_last", "trainer.keep_every"),
    *("trainer.eval_every", "trainer.eval_images", "trainer.keep_best", "trainer.profile_steps"),
    *("data.path", "data.root", "data.download", "data.workers", "data.cache_dir", "data.memory_mb", "data.on_bad"),
    *("data.follow_links", "data.cache_gb", "data.dataset"),
)
LOGGER = "logger"  # not in checkpoints at all: one of somebody else's is not to have anything sent anywhere
# Given again with each command; a checkpoint's values of them are ignored.
OF_THE_INVOCATION = ("resume", "fork", "init", "trust", LOGGER)
SAMPLER = "sampler"  # of previews, and of nothing else
STEPS, LR_DECAY = "trainer.steps", "trainer.lr_decay"  # more steps may come with another decay


def merge(saved: dict, changes: dict[str, Any], chosen: dict[str, dict]) -> dict:
    """The configuration to resume with.

    Args:
        saved: the configuration in the run's checkpoint; not modified.
        changes: what the command line sets, by dotted key.
        chosen: by group, the options of what it chooses of that group; of `logger` always.

    Raises:
        ConfigError: if a change would make it another run; names the key, the old and the new value.
    """
    merged = _as_saved(saved)
    if LOGGER in chosen:
        merged[LOGGER] = chosen[LOGGER]
    if SAMPLER in chosen:
        merged[SAMPLER] = _of_previews(chosen, merged)
    further = changes.get(STEPS, _lookup(saved, STEPS)) != _lookup(saved, STEPS)
    changeable = (*CHANGEABLE, LR_DECAY) if further else CHANGEABLE
    for key, new in changes.items():
        group, _, option = key.partition(".")
        node = merged.get(group)
        if group in OF_THE_INVOCATION or (key in chosen and chosen[key] == saved.get(key)):
            continue
        if SAMPLER in chosen and SAMPLER in (key, group):
            continue  # in what was chosen
        if key in changeable and not option:
            merged[key] = new
        elif (key in changeable or group == SAMPLER) and isinstance(node, dict):
            node[option] = new
        elif _lookup(saved, key) != new:
            old = _lookup(saved, key)
            hint = new_key(key) or nearest(key, CHANGEABLE)
            has = f"no such option{hint}" if old is _ABSENT else f"{_plain(old)!r}{new_value(key, new)}"
            raise ConfigError(
                f"{key}: cannot change when resuming: the run has {has}, this command line {new!r}. "
                f"What may change: {', '.join(CHANGEABLE)}. fork= instead of resume= starts a new run from its state, "
                "init= from its weights alone"
            )
    return merged


def fork(saved: dict, changes: dict[str, Any], chosen: dict[str, dict]) -> dict:
    """The configuration of a new run that starts from the state of another one, with any changes.

    Args:
        saved: the other run's configuration; not modified.
        changes: what the command line sets, by dotted key; new keys are for `schema.check` to judge.
        chosen: by group, the options of what it chooses of that group; of `logger` always.

    Raises:
        ConfigError: for a key below something that holds no options.
    """
    merged = _as_saved(saved) | copy.deepcopy(chosen)
    merged.pop("init", None)  # the new run starts from more than those weights
    if SAMPLER in chosen:
        merged[SAMPLER] = _of_previews(chosen, merged)
    for key, new in changes.items():
        *groups, option = key.split(".")
        if (groups and groups[0] in (*chosen, LOGGER)) or key in (*chosen, *OF_THE_INVOCATION):
            continue
        node = merged
        for group in groups:
            node = node.get(group)
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: no such option; the run has no options at {group}")
        node[option] = new
    return merged


def _of_previews(chosen: dict[str, dict], config: dict) -> dict:
    """The sampler chosen for previews; if it takes a variance, it gets the run's."""
    return {key: config.get(key, value) if key == "variance" else value for key, value in chosen[SAMPLER].items()}


def _as_saved(saved: dict) -> dict:
    """A copy without downloads and loggers: only the user's command may ask for these, never a checkpoint."""
    config = copy.deepcopy(saved)
    config.pop(LOGGER, None)
    data = config.get("data")
    if isinstance(data, dict) and "download" in data:
        data["download"] = False
    return config


def differences(saved: dict, config: dict) -> list[str]:
    """One line for every difference that makes a whole configuration another run than the saved one."""
    further = _lookup(config, STEPS) != _lookup(saved, STEPS)
    ignored = (*CHANGEABLE, *OF_THE_INVOCATION, *([LR_DECAY] if further else []))
    return [f"{key}: was {old!r}, now {new!r}" for key, old, new in _differences(saved, config, "", ignored)]


def all_differences(saved: dict, config: dict) -> list[str]:
    """One line for every option that differs, whether or not that makes it another run."""
    return [f"{key}: was {old!r}, now {new!r}" for key, old, new in _differences(saved, config, "", OF_THE_INVOCATION)]


def _differences(saved: dict, config: dict, path: str, ignored: Collection[str]) -> list[tuple[str, object, object]]:
    if path and saved.get("_target_") != config.get("_target_"):
        return [(path, _plain(saved), _plain(config))]  # another choice: its options need not be compared
    found = []
    for key in sorted(saved.keys() | config.keys()):
        where = f"{path}.{key}" if path else key
        old, new = saved.get(key, _ABSENT), config.get(key, _ABSENT)
        if where in ignored or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, where, ignored)
        else:
            found.append((where, _plain(old), _plain(new)))
    return found


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _plain(value: object) -> object:
    """The value as messages show it: a node by the name of what it builds."""
    return str(value["_target_"]).rpartition(".")[2] if isinstance(value, dict) and is_node(value) else value


def _lookup(config: dict, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value
