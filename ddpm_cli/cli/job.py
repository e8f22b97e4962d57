"""One run, as Hydra calls it, in this process or in a launcher's worker process."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.cli.arguments import key_of
from ddpm_cli.cli.gpu_lock import pin
from ddpm_cli.cli.hydra_launchers import SLURM, device_is_auto, runs_in_parallel
from ddpm_cli.cli.hydra_record import HydraRecord, is_wanted
from ddpm_cli.cli.launchers import refuse_copies, speaks
from ddpm_cli.cli.own_yaml import check_what_hydra_loads
from ddpm_cli.cli.packages import check_packages
from ddpm_cli.cli.references import check_references
from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.cli.run_directory import RunDirectory
from ddpm_cli.cli.run_result import RunResult, result_in, run_resumed
from ddpm_cli.cli.sweep_progress import SweepProgress
from ddpm_cli.cli.worker import worker_process
from ddpm_cli.config.compare import LOGGER
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.paths import expanded
from ddpm_cli.config.schema import check
from ddpm_cli.io.text import printable
from ddpm_cli.runtime import openmp
from ddpm_cli.runtime.exit_codes import Stopped
from ddpm_cli.runtime.signals import Stop

_ONLY_IN_SWEEPS = ("hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher")


@dataclass
class Job:
    """A command's work for one configuration, to be called by Hydra. For its fields see `ddpm_cli.cli.launch.launch`.

    Pickled into a worker process it knows that it is in one: errors are raised instead of kept in `failure`, and a
    signal ends one run, not the process, which may be given others.
    """

    program: str
    target: str
    work: Callable[[dict, Invocation], Any]
    stop: Stop
    called: bool = False
    failure: Exception | None = None  # Hydra would announce an exception itself before handing it on
    in_worker: bool = False
    run_directory: RunDirectory = field(default_factory=RunDirectory)
    progress: SweepProgress = field(default_factory=SweepProgress)

    def __getstate__(self) -> dict:
        return vars(self) | {"in_worker": True}

    def __setstate__(self, state: dict) -> None:
        register_resolvers()  # the configuration is composed again where the job runs
        check_what_hydra_loads()
        vars(self).update(state)

    def __call__(self, cfg: DictConfig) -> Any:
        self.called = True
        try:
            with self.stop.unmistaken():
                return self._run(cfg)
        except Exception as error:
            if self.in_worker:
                raise
            self.failure = self.failure or error
            return None

    def _run(self, cfg: DictConfig) -> Any:
        refuse_copies(self.program)
        hydra_config = HydraConfig.get()
        overrides, of_hydra = _texts(hydra_config.overrides.task), _texts(hydra_config.overrides.hydra)
        if hydra_config.mode is RunMode.MULTIRUN:
            return self._run_of_sweep(cfg, overrides, Path(hydra_config.runtime.output_dir))
        _refuse_sweep_options(of_hydra)
        check_references(cfg)
        return self._work(cfg, overrides, sweep_directory=None)

    def _run_of_sweep(self, cfg: DictConfig, overrides: list[str], directory: Path) -> Any:
        """One run of a sweep, unless it is done already; a failure is kept for the report and does not stop others."""
        earlier = result_in(directory)
        if earlier is not None and earlier.overrides != overrides:
            raise ConfigError(f"hydra.sweep.dir: {directory} already holds a run; choose another directory")
        if earlier is not None and earlier.done:
            self._say(overrides, f"{earlier.ending}, before")
            return earlier.final_loss
        result, outcome, began = RunResult(overrides), float("nan"), time.monotonic()
        try:
            outcome = self._recorded(cfg, result, directory)
            if earlier is None:  # else it has resumed, and taken less
                self.progress.seconds.append(time.monotonic() - began)
        except Stopped:
            if not self.in_worker:
                raise
        except Exception as error:
            self._say(overrides, result.ending if result.error is not None else str(error))
        else:
            if self.in_worker:
                self._say(overrides, f"{result.ending}{self.progress.so_far()}")
        return outcome

    def _recorded(self, cfg: DictConfig, result: RunResult, directory: Path) -> Any:
        """The outcome of a run of a sweep, whose start and end are recorded."""
        launcher = HydraConfig.get().launcher._target_
        try:
            with self._process(launcher, directory):
                print(f"\n{self.progress.header(HydraConfig.get().job.num, result.overrides)}", flush=True)
                result.begin(directory)
                check_references(cfg)
                if runs_in_parallel(launcher) and launcher != SLURM and device_is_auto(cfg):
                    result.gpu = pin()
                outcome = self._work(cfg, result.overrides, sweep_directory=directory)
        except (Exception, Stopped) as error:
            locked = isinstance(error, ConfigError) and isinstance(error.__cause__, BlockingIOError)
            if result.under_way and not locked:  # else the process that is at it will say how it ends
                result.end_early(directory, error)
            raise
        result.end(directory, outcome)
        return outcome

    def _say(self, overrides: list[str], ending: str) -> None:
        print(printable(f"{self.program}: {' '.join(overrides)}: {ending}"), file=sys.stderr)

    def _process(self, launcher: str, directory: Path) -> AbstractContextManager[None]:
        return worker_process(launcher, directory, self.stop) if self.in_worker else nullcontext()

    def _work(self, cfg: DictConfig, overrides: list[str], *, sweep_directory: Path | None) -> Any:
        self.stop.begin()
        typed = OverridesParser.create().parse_overrides(overrides)
        spelt, changes = _spelt(typed), expanded(_changes(typed, cfg))
        named = {key: None if cfg.get(key) is None else spelt.get(key, str(cfg[key])) for key in ("resume", "fork")}
        resume, fork = expanded(named).values()
        chosen, config = {}, {}
        names_a_run = resume not in (None, "auto")
        if fork is not None:
            # Of a new run they are never those of the old one.
            changes = expanded({key: cfg.get(key) for key in ("name", "output_dir")}) | changes
        with _as_resolvers_say():
            if fork is not None or names_a_run:  # that run has a configuration of its own
                chosen = _chosen(changes, cfg)
            else:
                config = _checked(cfg, self.target, spelt)
        openmp.prepare()
        record = HydraRecord(cfg) if is_wanted(_texts(HydraConfig.get().overrides.hydra)) else None
        sweep = None if sweep_directory is None else Path(HydraConfig.get().sweep.dir).absolute().name
        call = Invocation(
            resume=resume,
            changes=changes,
            sweep_directory=sweep_directory,
            fork=fork,
            chosen=chosen,
            spelt=spelt,
            run_directory=self.run_directory.path,
            record=record,
            sweep=sweep,
        )
        work = partial(self.work, config, call)
        return run_resumed(resume, work) if names_a_run and speaks() else work()


def _texts(overrides: Any) -> list[str]:
    """Overrides as they were given: references in them, `${...}`, are not resolved yet."""
    texts = OmegaConf.to_container(overrides)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def _changes(typed: Iterable[Override], cfg: DictConfig) -> dict[str, Any]:
    """The values that a command line sets, by dotted key; references to other options, `${...}`, are resolved."""
    changes = {}
    for override in typed:
        key, value = str(override.key_or_group), override.value()
        if "${" in str(value):
            value = OmegaConf.select(cfg, key)
        changes[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return changes


def _spelt(typed: Iterable[Override]) -> dict[str, str]:
    """The spelling of numbers and truth values, by dotted key: if a text is expected, this is the text."""
    return {
        str(override.key_or_group): str(override.input_line).partition("=")[2].strip()
        for override in typed
        if isinstance(override.value(), int | float)
    }


def _chosen(changes: dict[str, Any], cfg: DictConfig) -> dict[str, dict]:
    """By group, the composed options that `changes` choose; of `logger` always."""
    chosen = {}
    # Several options of a group are no choice that Hydra knows of.
    for group in (changes.keys() & HydraConfig.get().runtime.choices.keys()) | {LOGGER}:
        node = cfg.get(group)
        if OmegaConf.is_dict(node):
            _refuse_missing(cfg, group)
            chosen[group] = OmegaConf.to_container(node, resolve=True)
    return chosen


def _refuse_missing(cfg: DictConfig, group: str = "") -> None:
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not group or key.startswith(f"{group}."))
    if missing:
        raise ConfigError(f"{missing[0]}: must be given, as {missing[0]}=...")


def _refuse_sweep_options(overrides: Iterable[str]) -> None:
    for key in map(key_of, overrides):
        if key.startswith(_ONLY_IN_SWEEPS):
            raise ConfigError(f"{key}: has an effect only in a sweep, with -m")


def _checked(cfg: DictConfig, target: str, spelt: dict[str, str]) -> dict:
    runtime = HydraConfig.get().runtime
    check_packages(OmegaConf.to_container(cfg, resolve=False), target, runtime)
    _refuse_missing(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    return expanded(check(config, target, groups=runtime.choices, spelt=spelt))


@contextmanager
def _as_resolvers_say() -> Iterator[None]:
    """Raises the error of one of our resolvers, which OmegaConf has wrapped in its own errors."""
    try:
        yield
    except OmegaConfBaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None
