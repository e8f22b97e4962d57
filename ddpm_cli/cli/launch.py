"""From the shell to a checked configuration: with `jobs`, `mistakes` and `sweep` the only modules that know Hydra.

Hydra composes; we check every key before anything starts, and answer a mistake with one message and exit status 2.
`HYDRA_FULL_ERROR=1` shows the traceback instead.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.cli.error_messages import explain
from ddpm_cli.cli.job import Job, register_resolvers
from ddpm_cli.cli.sweep import RefusedSweep, SweepReport, stop_workers
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.exit_codes import FAILED, GO_ON_LATER, MISTAKE, RunError, Stopped, leave
from ddpm_cli.runtime.signals import Stop

_FLAGS_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p"),
    "--experimental-rerun",
)
_NO_EFFECT = {
    "hydra.run.dir": "output_dir and name say where a run goes, out where samples go",
    "hydra.output_subdir": "config.yaml in the directory of a run is its whole configuration",
}
# As people know it from other trainers: the recipe's batch stays what a step sees, in as few parts as memory allows.
_ALSO_CALLED = {"trainer.batch_size=auto": "trainer.accumulate=auto"}


def launch(program: str, config_name: str, target: str, job: Callable[[dict, Invocation], Any], *, stop: Stop) -> None:
    """Run `job(config, call)` once, or once per run of a sweep; ends the process with the status the shell should see.

    Args:
        program: the command's name, for messages.
        config_name: of the YAML file in configs/ to start from.
        target: the class whose fields are the configuration's top-level keys.
        job: gets the checked configuration as plain dicts; returns a final loss, or the picture that it has made. A
            launcher may pickle it into other processes.
        stop: tells whether the job was asked to stop.
    """
    try:
        _launch(program, config_name, target, job, stop)
    except SystemExit as ended:
        leave(ended.code if isinstance(ended.code, int) else FAILED)
        raise
    leave(0)


def _launch(program: str, config_name: str, target: str, job: Callable[[dict, Invocation], Any], stop: Stop) -> None:
    show_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as exceptions instead of being printed by Hydra
    register_resolvers()
    run = Job(program, target, job, stop)
    stop.pass_on = stop_workers
    try:
        with stop.unmistaken():
            _prepare_arguments()
            hydra.main(version_base="1.3", config_path=str(configs_directory()), config_name=config_name)(run)()
            if run.failure is not None:
                raise run.failure
    except RefusedSweep as refused:
        _say(f"{program}: {refused}")
        sys.exit(MISTAKE)
    except Exception as error:
        if not show_traceback and SweepReport.lost(error):
            sys.exit(GO_ON_LATER if stop.requested else FAILED)
        # Whatever Hydra raises before it has a configuration is about the command line or a YAML file.
        about_the_call = isinstance(error, ConfigError | HydraException | OmegaConfBaseException) or not run.called
        if show_traceback or not (about_the_call or isinstance(error, RunError)):
            raise
        _say(f"{program}: {explain(error, config_name, target)}")
        sys.exit(error.status if isinstance(error, RunError) else MISTAKE)
    except Stopped as stopped:
        _say(f"{program}: {SweepReport.left_behind(stop.signal) or stopped}")
        sys.exit(GO_ON_LATER)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    if SweepReport.failed:
        sys.exit(GO_ON_LATER if stop.requested else FAILED)


def _say(message: str) -> None:
    """One message, also where several processes come to it together.

    Whatever names and values it repeats, they neither move the cursor nor begin a line: lists of ours are indented.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        lines = re.split(r"\n(?=  )", message.strip())
        print("\n".join(map(printable, lines)), file=sys.stderr)


def _prepare_arguments() -> None:
    """Put `sys.argv` into the form that Hydra takes.

    Raises:
        ConfigError: for flags that Hydra does not take, and for what it would accept without effect.
    """
    flags: list[str] = []
    overrides: list[str] = []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        (flags if argument.startswith("-") else overrides).append(argument)
        if argument in _FLAGS_WITH_VALUE:
            value = next(arguments, None)
            if value is None:
                raise ConfigError(f"{argument}: needs a value")
            flags.append(value)
    overrides = [_ALSO_CALLED.get(override, override) for override in overrides]
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
