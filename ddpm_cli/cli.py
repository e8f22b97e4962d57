"""From the shell to a checked configuration: the one module (with `sweep.py`) that knows Hydra.

Hydra composes; we check every key before anything starts, and answer a mistake with one line and exit status 2.
`HYDRA_FULL_ERROR=1` shows the traceback instead.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.config import ConfigError, check, configs_directory, nearest
from ddpm_cli.sweep import SweepReport, write_result


class RunFailed(Exception):  # noqa: N818 (it is how a run ends, not a defect of the program)
    """A run that had begun came to an end it could not help; says why, and with which exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Call:
    """How a command was called, beside its configuration."""

    overrides: list[str]  # as typed
    changed_keys: list[str]  # the keys they set
    sweep_directory: Path | None  # this run's own directory, if it is one of a sweep


def launch(program: str, config_name: str, target: str, job: Callable[[dict, Call], Any]) -> None:
    """Run `job(config, call)` once, or once per run of a sweep; ends the process with the status the shell should see.

    Args:
        program: the command's name, for messages.
        config_name: of the YAML file in configs/ to start from.
        target: the function whose parameters are the configuration's top-level keys.
        job: gets the checked configuration as plain dicts.
    """
    show_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as exceptions instead of being printed by Hydra

    composed = False
    failures: list[Exception] = []  # Hydra would announce an exception itself before handing it on

    def task(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        hydra_config = HydraConfig.get()
        in_sweep = hydra_config.mode is RunMode.MULTIRUN
        overrides = list(hydra_config.overrides.task)
        call = Call(
            overrides=overrides,
            changed_keys=[str(o.key_or_group) for o in OverridesParser.create().parse_overrides(overrides)],
            sweep_directory=Path(hydra_config.runtime.output_dir) if in_sweep else None,
        )
        try:
            if call.sweep_directory is not None:
                return _run_of_sweep(lambda: job(_checked(cfg, target), call), call, call.sweep_directory, program)
            return job(_checked(cfg, target), call)
        except Exception as error:
            failures.append(error)

    OmegaConf.register_new_resolver("options", _options)
    # argparse takes flags before or after all the overrides, not among them.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    try:
        if any(argument.startswith("hydra.run.dir=") for argument in sys.argv):
            raise ConfigError("hydra.run.dir: has no effect here; output_dir and name say where a run goes")
        hydra.main(version_base="1.3", config_path=str(configs_directory()), config_name=config_name)(task)()
        if failures:
            raise failures[0]
    except Exception as error:
        # Whatever Hydra raises before it has a configuration is about the command line or a YAML file.
        expected = isinstance(error, ConfigError | RunFailed | OmegaConfBaseException) or not composed
        if show_traceback or not expected:
            raise
        print(f"{program}: {_short(error, config_name, target)}", file=sys.stderr)
        sys.exit(error.status if isinstance(error, RunFailed) else 2)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    if SweepReport.failed:
        sys.exit(1)


def _options(group: str) -> str:
    """The options of a group, for help texts: `${options:sampler}`."""
    return ", ".join(sorted(file.stem for file in (configs_directory() / group).glob("*.yaml")))


def _checked(cfg: DictConfig, target: str) -> dict:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]}: must be given, as {missing[0]}=...")
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    check(config, target)
    return config


def _run_of_sweep(run: Callable[[], Any], call: Call, directory: Path, program: str) -> Any:
    """One run of a sweep; its failure is kept for the report and does not stop the others. Returns the final loss."""
    try:
        loss = run()
    except Exception as error:
        message = str(error) if isinstance(error, ConfigError | RunFailed) else f"{type(error).__name__}: {error}"
        print(f"{program}: {' '.join(call.overrides)}: {message}", file=sys.stderr)
        write_result(directory, overrides=call.overrides, loss=None, error=message)
        return float("nan")
    write_result(directory, overrides=call.overrides, loss=loss, error=None)
    return loss


def _short(error: BaseException, config_name: str, target: str) -> str:
    """One message a person can act on, out of what Hydra and OmegaConf raise."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': {text.splitlines()[0]}; an override is KEY=VALUE, quoted where needed"
    unknown = re.match(r"Could not (?:override|delete from config\.) '?([^'\s]+?)'?\.?\s", text + "\n")
    if isinstance(error, HydraException) and unknown is not None:
        return _unknown_key(unknown[1], config_name, target) or text.splitlines()[0]
    option = re.search(r"Could not find '([^']+)/([^'/]+)'\s+Available options in '[^']*':\n((?:\t.*\n?)*)", text)
    if option is not None:
        available = option[3].split()
        close = nearest(option[2], available)
        return f"{option[1]}={option[2]}: no such option{close}; there are {', '.join(available)}"
    if text.startswith("Config group override must be"):
        for override in OverridesParser.create().parse_overrides(_given_overrides()):
            options = _options(override.key_or_group)
            if options and not isinstance(override.value(), str | list):
                return f"{override.input_line}: expected the name of an option; there are {options}"
    if isinstance(error, yaml.YAMLError):
        return f"a configuration file is no valid YAML: {' '.join(text.split())}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return text.splitlines()[0]
    return text


def _given_overrides() -> list[str]:
    return [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]


def _own_configs() -> list[str]:
    """The user's folder of further groups, as an override that has the same effect as `--config-dir`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    directory = parser.parse_known_args()[0].config_dir
    return [] if directory is None else [f"hydra.searchpath=['file://{Path(directory).absolute()}']"]


def _unknown_key(key: str, config_name: str, target: str) -> str | None:
    """What our own check says of a key that Hydra refused: it knows the nearest right one."""
    others = [argument for argument in _given_overrides() if argument.lstrip("+~").partition("=")[0] != key]
    for overrides in (others, []):
        try:
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
                cfg = hydra.compose(config_name, [*_own_configs(), *overrides, f"++{key}=null"])
            config = OmegaConf.to_container(cfg, resolve=True)
            assert isinstance(config, dict)
            check(config, target)
        except ConfigError as error:
            return str(error)
        except (HydraException, OmegaConfBaseException):
            continue
    return None
