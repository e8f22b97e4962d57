"""One run, as Hydra calls it: in this process, or in another one to which a launcher has sent it."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddpm_cli.cli.gpu_lock import pin
from ddpm_cli.cli.sweep import (
    JOBLIB,
    SLURM,
    SUBMITIT,
    device_is_auto,
    ended,
    has_result,
    runs_in_parallel,
    write_result,
)
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.schema import check
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.runtime.exit_codes import RunError, Stopped
from ddpm_cli.runtime.signals import Stop

_ONLY_IN_SWEEPS = ("hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher")
CONSOLE_FILE = "console.log"


@dataclass
class Job:
    """A command's work for one configuration, to be called by Hydra. For its fields see `ddpm_cli.cli.launch.launch`.

    Pickled into another process it knows that it is elsewhere: errors are raised instead of kept in `failure`, and a
    signal ends one run, not the process, which may be given others.
    """

    program: str
    target: str
    work: Callable[[dict, Invocation], Any]
    stop: Stop
    called: bool = False
    failure: Exception | None = None  # Hydra would announce an exception itself before handing it on
    elsewhere: bool = False

    def __getstate__(self) -> dict:
        return vars(self) | {"elsewhere": True}

    def __setstate__(self, state: dict) -> None:
        register_resolvers()  # the configuration is composed again where the job runs
        vars(self).update(state)

    def __call__(self, cfg: DictConfig) -> Any:
        self.called = True
        try:
            with self.stop.unmistaken():
                return self._run(cfg)
        except Exception as error:
            if self.elsewhere:
                raise
            self.failure = self.failure or error
            return None

    def _run(self, cfg: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        overrides = OmegaConf.to_container(hydra_config.overrides.task)  # not yet followed, were there a ${...}
        assert isinstance(overrides, list)
        in_sweep = hydra_config.mode is RunMode.MULTIRUN
        if not in_sweep:
            _refuse_sweep_options(hydra_config.overrides.hydra)
        call = Invocation(
            resume=None if cfg.get("resume") is None else str(cfg.get("resume")),
            changes=_changes(overrides, cfg),
            sweep_directory=Path(hydra_config.runtime.output_dir) if in_sweep else None,
        )
        if call.sweep_directory is None:
            return self.work(_checked(cfg, self.target), call)
        return self._run_of_sweep(cfg, call, overrides, call.sweep_directory)

    def _run_of_sweep(self, cfg: DictConfig, call: Invocation, overrides: list[str], directory: Path) -> Any:
        """One run of a sweep; its failure is kept for the report and does not stop the others."""
        if has_result(directory):
            raise ConfigError(f"hydra.sweep.dir: {directory} already holds a run; choose another directory")
        launcher = HydraConfig.get().launcher._target_
        result: dict[str, Any] = {"overrides": overrides, "loss": None, "error": None, "gpu": None}
        outcome, details = float("nan"), None
        try:
            with self._surroundings(launcher, directory):
                if runs_in_parallel(launcher) and launcher != SLURM and device_is_auto(cfg):
                    result["gpu"] = pin()
                outcome = self.work(_checked(cfg, self.target), call)
            result["picture"] = str(outcome.absolute()) if isinstance(outcome, Path) else None
            result["loss"] = outcome if isinstance(outcome, float) else None
        except Stopped as stopped:
            if not self.elsewhere:
                raise
            result |= {"error": str(stopped), "stopped": True}
        except Exception as error:
            expected = isinstance(error, ConfigError | RunError)
            result["error"] = str(error) if expected else f"{type(error).__name__}: {error}"
            details = None if expected else traceback.format_exc()
        write_result(directory, details=details, **result)
        if result["error"] is not None or self.elsewhere:
            said = result["error"] if result["error"] is not None else ended(result["loss"])
            print(f"{self.program}: {' '.join(overrides)}: {said}", file=sys.stderr)
        return outcome

    @contextmanager
    def _surroundings(self, launcher: str, directory: Path) -> Iterator[None]:
        """Inside, what a run needs in a process that is not the command's own; there, nothing.

        Raises:
            Stopped: if the process has been asked to stop, perhaps while it was at another run.
        """
        if not self.elsewhere:
            yield
            return
        if launcher != SLURM:
            # Jobs on the same cores that wait for their threads in busy loops all but stop each other. Read when torch
            # is imported.
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        with ExitStack() as stack:
            if launcher == JOBLIB:
                stack.enter_context(_console(directory / CONSOLE_FILE))
            requeue = _Requeue() if launcher in SUBMITIT else None
            try:
                with self.stop.installed_for_job(*([] if requeue is None else [requeue.signal])):
                    if launcher == JOBLIB:  # Ctrl-C comes to every process of a terminal; the command passes it on
                        signal.signal(signal.SIGINT, signal.SIG_IGN)
                    yield
            except Stopped as stopped:
                if requeue is None or self.stop.signal != requeue.signal:
                    raise
                raise Stopped(f"{stopped}. {requeue()}") from stopped


class _Requeue:
    """What submitit does on its signal, for later: it ends the process where it is, saved or not."""

    def __init__(self) -> None:
        self.signal = f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"
        self.handler = signal.getsignal(getattr(signal, self.signal))

    def __call__(self) -> str:
        """Have the job put back into the queue, which ends this process; returns why it has not been."""
        try:
            assert callable(self.handler)
            self.handler(getattr(signal, self.signal), None)
        except Exception as error:  # submitit's own
            return str(error)
        return "Not put back into the queue"


@contextmanager
def _console(file: Path) -> Iterator[None]:
    """What several runs at once would print all over each other goes to a file of each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as console, redirect_stdout(console), redirect_stderr(console):
        yield


def register_resolvers() -> None:
    """What our YAML files call by `${name:...}`."""
    OmegaConf.register_new_resolver("options", _options, replace=True)
    OmegaConf.register_new_resolver("prefix", lambda name: "" if name is None else f"{name}_", replace=True)
    # Whether a network has to have channels for a variance, by the name of its class, which is not imported here.
    OmegaConf.register_new_resolver("learned", lambda name: name.rpartition(".")[2].startswith("Learned"), replace=True)


def _options(group: str) -> str:
    """The options of a group, for help texts: `${options:sampler}`."""
    return ", ".join(sorted(file.stem for file in (configs_directory() / group).glob("*.yaml")))


def _changes(overrides: list[str], cfg: DictConfig) -> dict[str, Any]:
    """What `overrides` set, by dotted key; references to other options, `${...}`, are followed."""
    changes = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        key, value = str(override.key_or_group), override.value()
        if "${" in str(value):
            value = OmegaConf.select(cfg, key)
        changes[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return changes


def _refuse_sweep_options(overrides: Iterable[str]) -> None:
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.startswith(_ONLY_IN_SWEEPS):
            raise ConfigError(f"{key}: has an effect only in a sweep, with -m")


def _checked(cfg: DictConfig, target: str) -> dict:
    if cfg.get("resume") not in (None, "auto"):
        return {}
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]}: must be given, as {missing[0]}=...")
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    check(config, target)
    return config
