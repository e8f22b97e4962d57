"""From the shell to a checked configuration: with `mistakes.py` and `sweep.py` the only modules that know Hydra.

Hydra composes; we check every key before anything starts, and answer a mistake with one message and exit status 2.
`HYDRA_FULL_ERROR=1` shows the traceback instead.
"""

import itertools
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.config import ConfigError, check, configs_directory
from ddpm_cli.mistakes import explain
from ddpm_cli.sweep import SweepReport, has_result, write_result

_FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package")


class RunFailed(Exception):  # noqa: N818 (it is how a run ends, not a defect of the program)
    """A run that had begun came to an end it could not help; says why, and with which exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Call:
    """How a command was called, beside its configuration."""

    resume: str | None  # the run directory to go on with; then `changes` count and not the composed configuration
    changes: dict[str, Any]  # what the command line sets, by dotted key
    sweep_directory: Path | None  # this run's own directory, if it is one of a sweep


def launch(program: str, config_name: str, target: str, job: Callable[[dict, Call], Any]) -> None:
    """Run `job(config, call)` once, or once per run of a sweep; ends the process with the status the shell should see.

    Args:
        program: the command's name, for messages.
        config_name: of the YAML file in configs/ to start from.
        target: the class whose fields are the configuration's top-level keys.
        job: gets the checked configuration as plain dicts.
    """
    show_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as exceptions instead of being printed by Hydra
    OmegaConf.register_new_resolver("options", _options, replace=True)
    OmegaConf.register_new_resolver("prefix", lambda name: "" if name is None else f"{name}_", replace=True)
    composed = False
    failures: list[Exception] = []  # Hydra would announce an exception itself before handing it on

    def task(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        hydra_config = HydraConfig.get()
        overrides = list(hydra_config.overrides.task)
        in_sweep = hydra_config.mode is RunMode.MULTIRUN
        try:
            call = Call(
                resume=cfg.get("resume"),
                changes={str(o.key_or_group): o.value() for o in OverridesParser.create().parse_overrides(overrides)},
                sweep_directory=Path(hydra_config.runtime.output_dir) if in_sweep else None,
            )
            if call.sweep_directory is None:
                return job(_checked(cfg, target), call)
            return _run_of_sweep(lambda: job(_checked(cfg, target), call), overrides, call.sweep_directory, program)
        except Exception as error:
            failures.append(error)

    try:
        _prepare_arguments()
        hydra.main(version_base="1.3", config_path=str(configs_directory()), config_name=config_name)(task)()
        if failures:
            raise failures[0]
    except Exception as error:
        # Whatever Hydra raises before it has a configuration is about the command line or a YAML file.
        about_the_call = isinstance(error, ConfigError | HydraException | OmegaConfBaseException) or not composed
        if show_traceback or not (about_the_call or isinstance(error, RunFailed)):
            raise
        print(f"{program}: {explain(error, config_name, target)}", file=sys.stderr)
        sys.exit(error.status if isinstance(error, RunFailed) else 2)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    if SweepReport.failed:
        sys.exit(1)


def _prepare_arguments() -> None:
    """Put `sys.argv` into the form that Hydra takes.

    Raises:
        ConfigError: for what Hydra would accept without effect.
    """
    flags, overrides = [], []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument in _FLAGS_WITH_VALUE:
            flags += [argument, next(arguments, "")]
        else:
            (flags if argument.startswith("-") else overrides).append(argument)
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    if "hydra.run.dir" in keys:
        raise ConfigError("hydra.run.dir: has no effect here; output_dir and name say where a run goes")
    _check_own_configs(flags)
    if "resume" in keys:
        # A run's own options need not be among the defaults that Hydra composes: data.path of a folder, say.
        overrides = [f"++{o}" if "." in key and o[0] not in "+~" else o for o, key in zip(overrides, keys, strict=True)]
    sys.argv[1:] = flags + overrides  # argparse takes flags before or after the overrides, not among them


def _check_own_configs(flags: list[str]) -> None:
    """Raise ConfigError for an option of the user's own that Hydra would pass over for ours of the same name."""
    for flag, value in itertools.pairwise(flags):
        for file in Path(value).glob("*/*.yaml") if flag in ("--config-dir", "-cd") else ():
            if (configs_directory() / file.relative_to(value)).exists():
                option = f"{file.parent.name}={file.stem}"
                raise ConfigError(f"{file}: would be passed over for our own {option}; give it another name")


def _options(group: str) -> str:
    """The options of a group, for help texts: `${options:sampler}`."""
    return ", ".join(sorted(file.stem for file in (configs_directory() / group).glob("*.yaml")))


def _checked(cfg: DictConfig, target: str) -> dict:
    if cfg.get("resume") is not None:
        return {}
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]}: must be given, as {missing[0]}=...")
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    check(config, target)
    return config


def _run_of_sweep(run: Callable[[], Any], overrides: list[str], directory: Path, program: str) -> Any:
    """One run of a sweep; its failure is kept for the report and does not stop the others. Returns the final loss."""
    if has_result(directory):
        raise ConfigError(f"hydra.sweep.dir: {directory} already holds a run; choose another directory")
    try:
        loss = run()
    except Exception as error:
        expected = isinstance(error, ConfigError | RunFailed)
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        print(f"{program}: {' '.join(overrides)}: {message}", file=sys.stderr)
        details = None if expected else traceback.format_exc()
        write_result(directory, overrides=overrides, loss=None, error=message, details=details)
        return float("nan")
    write_result(directory, overrides=overrides, loss=loss, error=None)
    return loss
