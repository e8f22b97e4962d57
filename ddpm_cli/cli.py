"""From the shell to a checked configuration: with `mistakes.py` and `sweep.py` the only modules that know Hydra.

Hydra composes; we check every key before anything starts, and answer a mistake with one message and exit status 2.
`HYDRA_FULL_ERROR=1` shows the traceback instead.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.config import ConfigError, check, configs_directory
from ddpm_cli.ending import GO_ON_LATER, MISTAKE, RunError, Stop, Stopped
from ddpm_cli.mistakes import explain
from ddpm_cli.printable import printable
from ddpm_cli.sweep import SweepReport, has_result, write_result

_FLAGS_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p"),
    "--experimental-rerun",
)
_NO_EFFECT = {
    "hydra.run.dir": "output_dir and name say where a run goes, out where samples go",
    "hydra.output_subdir": "config.yaml in the directory of a run is its whole configuration",
}
_ONLY_IN_SWEEPS = ("hydra.sweep", "hydra.launcher")


@dataclass(frozen=True)
class Call:
    """How a command was called, beside its configuration."""

    resume: str | None  # "auto", or the run directory to go on with: then `changes` count and not the configuration
    changes: dict[str, Any]  # what the command line sets, by dotted key
    sweep_directory: Path | None  # this run's own directory, if it is one of a sweep


def launch(
    program: str, config_name: str, target: str, job: Callable[[dict, Call], Any], *, stop: Stop | None = None
) -> None:
    """Run `job(config, call)` once, or once per run of a sweep; ends the process with the status the shell should see.

    Args:
        program: the command's name, for messages.
        config_name: of the YAML file in configs/ to start from.
        target: the class whose fields are the configuration's top-level keys.
        job: gets the checked configuration as plain dicts; returns a final loss, or the picture that it has made.
        stop: tells whether the job was asked to stop; None: it does not listen.
    """
    show_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as exceptions instead of being printed by Hydra
    register_resolvers()
    composed = False
    failures: list[Exception] = []  # Hydra would announce an exception itself before handing it on

    def task(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        hydra_config = HydraConfig.get()
        in_sweep = hydra_config.mode is RunMode.MULTIRUN
        try:
            overrides = OmegaConf.to_container(hydra_config.overrides.task)  # not yet followed, were there a ${...}
            assert isinstance(overrides, list)
            if not in_sweep:
                _refuse_sweep_options(hydra_config.overrides.hydra)
            call = Call(
                resume=None if cfg.get("resume") is None else str(cfg.get("resume")),
                changes=_changes(overrides, cfg),
                sweep_directory=Path(hydra_config.runtime.output_dir) if in_sweep else None,
            )
            if call.sweep_directory is None:
                return job(_checked(cfg, target), call)
            return _run_of_sweep(lambda: job(_checked(cfg, target), call), overrides, call.sweep_directory, program)
        except Exception as error:
            failures.append(error)

    try:
        with nullcontext() if stop is None else stop.unmistaken():
            _prepare_arguments()
            hydra.main(version_base="1.3", config_path=str(configs_directory()), config_name=config_name)(task)()
            if failures:
                raise failures[0]
    except Exception as error:
        # Whatever Hydra raises before it has a configuration is about the command line or a YAML file.
        about_the_call = isinstance(error, ConfigError | HydraException | OmegaConfBaseException) or not composed
        if show_traceback or not (about_the_call or isinstance(error, RunError)):
            raise
        _say(f"{program}: {explain(error, config_name, target)}")
        sys.exit(error.status if isinstance(error, RunError) else MISTAKE)
    except Stopped as stopped:
        _say(f"{program}: {stopped}")
        sys.exit(GO_ON_LATER)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    if SweepReport.failed:
        sys.exit(1)


def register_resolvers() -> None:
    """What our YAML files call by `${name:...}`."""
    OmegaConf.register_new_resolver("options", _options, replace=True)
    OmegaConf.register_new_resolver("prefix", lambda name: "" if name is None else f"{name}_", replace=True)
    # Whether a network has to have channels for a variance, by the name of its function, which is not imported here.
    OmegaConf.register_new_resolver("learned", lambda name: name.rpartition(".")[2].startswith("learned"), replace=True)


def _say(message: str) -> None:
    """One message, also where several processes come to it together.

    Whatever names and values it repeats, they neither move the cursor nor begin a line: lists of ours are indented.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        lines = re.split(r"\n(?=  )", message.strip())
        print("\n".join(map(printable, lines)), file=sys.stderr)


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


def _prepare_arguments() -> None:
    """Put `sys.argv` into the form that Hydra takes.

    Raises:
        ConfigError: for flags that Hydra does not take, and for what it would accept without effect.
    """
    flags, overrides = [], []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        (flags if argument.startswith("-") else overrides).append(argument)
        if argument in _FLAGS_WITH_VALUE:
            value = next(arguments, None)
            if value is None:
                raise ConfigError(f"{argument}: needs a value")
            flags.append(value)
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if "" in keys:
        raise ConfigError(f"cannot read '{overrides[keys.index('')]}': an override is KEY=VALUE")
    given = _check_flags([*flags, *overrides])
    for key in keys:
        if key in _NO_EFFECT:
            raise ConfigError(f"{key}: has no effect here; {_NO_EFFECT[key]}")
    if given.config_dir is not None:
        _check_own_configs(Path(given.config_dir))
    if any(_names_a_run(override) for override in overrides):
        # A run's own options need not be among the defaults that Hydra composes: data.path of a folder, say.
        overrides = [f"++{o}" if "." in key and o[0] not in "+~" else o for o, key in zip(overrides, keys, strict=True)]
    sys.argv[1:] = flags + overrides  # argparse takes flags before or after the overrides, not among them


def _check_flags(arguments: list[str]) -> argparse.Namespace:
    """The command line as Hydra's parser reads it. Raises ConfigError where that would print its usage and exit."""

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}; options are KEY=VALUE, without dashes; --hydra-help shows the flags")

    parser = get_args_parser()
    parser.allow_abbrev = False
    parser.error = error
    given = parser.parse_args(arguments)
    if given.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: runs code out of a file; resume= goes on with a run")
    if given.package is not None and given.cfg is None:
        raise ConfigError("--package: has an effect only with --cfg")
    return given


def _names_a_run(override: str) -> bool:
    key, _, value = override.lstrip("+").partition("=")
    return key == "resume" and value not in ("", "null", "auto")


def _check_own_configs(directory: Path) -> None:
    """Raise ConfigError for an option of the user's own that Hydra would pass over for ours of the same name."""
    for file in directory.glob("*/*.yaml"):
        if (configs_directory() / file.relative_to(directory)).exists():
            option = f"{file.parent.name}={file.stem}"
            raise ConfigError(f"{file}: would be passed over for our own {option}; give it another name")


def _options(group: str) -> str:
    """The options of a group, for help texts: `${options:sampler}`."""
    return ", ".join(sorted(file.stem for file in (configs_directory() / group).glob("*.yaml")))


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


def _run_of_sweep(run: Callable[[], Any], overrides: list[str], directory: Path, program: str) -> Any:
    """One run of a sweep; its failure is kept for the report and does not stop the others. Returns what `run` does."""
    if has_result(directory):
        raise ConfigError(f"hydra.sweep.dir: {directory} already holds a run; choose another directory")
    try:
        outcome = run()
    except Exception as error:
        expected = isinstance(error, ConfigError | RunError)
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        print(f"{program}: {' '.join(overrides)}: {message}", file=sys.stderr)
        details = None if expected else traceback.format_exc()
        write_result(directory, overrides=overrides, loss=None, error=message, details=details)
        return float("nan")
    picture = str(outcome.absolute()) if isinstance(outcome, Path) else None
    loss = outcome if isinstance(outcome, float) else None
    write_result(directory, overrides=overrides, loss=loss, error=None, picture=picture)
    return outcome
