"""The options of `init`: the trained weights from which a new run starts."""

from dataclasses import dataclass

from ddpm_cli.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """The keys of `init`; configs/train.yaml says what each means.

    Raises:
        ConfigError: for one that says nothing without a path.
    """

    path: str | None = None
    weights: str = "ema"
    strict: bool = True

    def __post_init__(self) -> None:
        if self.path is not None:
            return
        for name, default in (("weights", "ema"), ("strict", True)):
            if getattr(self, name) != default:
                raise ConfigError(f"init.{name}: has no effect without init=PATH, the weights to begin with")


def init_options(section: dict | None) -> InitOptions:
    """Those of a checked configuration; of one that says nothing of them, the defaults."""
    return InitOptions(**(section or {}))
