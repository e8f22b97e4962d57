"""Going on with a run: its own configuration, with the few changes that leave valid what it has learned."""

from typing import Any

from ddpm_cli.config import ConfigError, is_node

# Everything else decides what the run learns, and may not change under its feet.
CHANGEABLE = (
    *("trainer.steps", "trainer.accumulate", "trainer.device", "trainer.log_every", "trainer.preview_every"),
    *("trainer.preview_images", "trainer.checkpoint_every", "trainer.keep_last"),
    *("data.path", "data.root", "data.download", "data.workers", "data.cache_dir", "data.memory_mb"),
)
OF_THE_CALL = ("resume", "trust")


def merge(saved: dict, changes: dict[str, Any]) -> dict:
    """The configuration to go on with.

    Args:
        saved: the configuration in the run's checkpoint; not modified.
        changes: what the command line sets, by dotted key.

    Raises:
        ConfigError: if a change would make it another run; names the key, the old and the new value.
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    for key, new in changes.items():
        group, _, option = key.partition(".")
        node = merged.get(group)
        if key in OF_THE_CALL:
            merged[key] = new
        elif key in CHANGEABLE and isinstance(node, dict):
            node[option] = new
        elif _lookup(saved, key) != new:
            old = _lookup(saved, key)
            old = old["_target_"].rpartition(".")[2] if isinstance(old, dict) and is_node(old) else old
            raise ConfigError(
                f"{key}: cannot change when resuming: the run has {old!r}, this command line {new!r}. "
                f"What may change: {', '.join(CHANGEABLE)}"
            )
    return merged


def _lookup(config: dict, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
