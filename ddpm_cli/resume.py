"""Going on with a run: its own configuration, with the few changes that leave valid what it has learned."""

from ddpm_cli.config import ConfigError

# Everything else decides what the run learns, and may not change under its feet.
CHANGEABLE = (
    *("trainer.steps", "trainer.accumulate", "trainer.device", "trainer.log_every", "trainer.preview_every"),
    *("trainer.preview_images", "trainer.checkpoint_every", "trainer.keep_last"),
    *("data.path", "data.root", "data.download", "data.workers", "data.cache_dir", "data.memory_mb"),
)
_OF_THE_CALL = ("resume", "trust")


def merge(saved: dict, given: dict, changed_keys: list[str]) -> dict:
    """The configuration to go on with: the run's own, with the changes of this command line.

    Args:
        saved: the configuration in the run's checkpoint; not modified.
        given: the configuration of this command line, composed from our defaults.
        changed_keys: the dotted keys and groups that the command line set.

    Raises:
        ConfigError: if a change would make it another run; names the key, the old and the new value.
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    merged |= {key: given[key] for key in _OF_THE_CALL}
    for key in changed_keys:
        if key in _OF_THE_CALL:
            continue
        new, old = _lookup(given, key), _lookup(saved, key)
        if new == old:
            continue
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{key}: cannot change when resuming: the run has {old!r}, this command line {new!r}. "
                f"What may change: {', '.join(CHANGEABLE)}"
            )
        group, _, option = key.partition(".")
        merged[group][option] = new
    return merged


def _lookup(config: dict, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
