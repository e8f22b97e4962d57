"""`hydra.run.dir`: the directory of one run, or of its images, as Hydra's users set it.

Hydra would make that directory at once, also for a command line that is refused. So it is read before Hydra does, and
what is left for Hydra is the directory that is there already.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from ddpm_cli.cli.path_values import RUN_DIR
from ddpm_cli.cli.references import check_references
from ddpm_cli.config.errors import ConfigError


class RunDirectory:
    """The value of `hydra.run.dir` in one process, once Hydra has composed its configuration."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._problem: Exception | None = None

    @property
    def path(self) -> Path | None:
        """As it was given, with `~` expanded; None if it was not. Raises ConfigError for invalid references in it."""
        if self._problem is not None:
            first_line, *_ = str(self._problem).splitlines() or [type(self._problem).__name__]
            raise ConfigError(f"{RUN_DIR}: {first_line}") from self._problem
        return self._path

    @contextmanager
    def told_by_hydra(self) -> Iterator[None]:
        """Inside, `RunDirectoryCallback` reports to this."""
        token = _to_tell.set(self)
        try:
            yield
        finally:
            _to_tell.reset(token)

    def take(self, config: DictConfig) -> None:
        """Read it from a configuration, and remove it there."""
        of_before = HydraConfig.instance().cfg
        try:
            check_references(config)
            HydraConfig.instance().set_config(config)  # for ${hydra:...}
            path = str(config.hydra.run.dir)
            self._path = Path(os.path.expanduser(path)) if path else None
        except Exception as error:
            self._problem = error
        finally:
            HydraConfig.instance().cfg = of_before
        with read_write(config.hydra):
            config.hydra.run.dir = ""


# Where a run and its callback meet: Hydra makes callbacks itself, and hands them nothing of ours.
_to_tell: ContextVar[RunDirectory] = ContextVar("_to_tell")


class RunDirectoryCallback(Callback):
    """The callback that Hydra calls before it starts a run, as configs/train.yaml and configs/sample.yaml ask."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if OmegaConf.to_container(config.hydra.run, resolve=False) != {"dir": ""}:
            _to_tell.get().take(config)
