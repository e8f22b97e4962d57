"""Which runs a sweep has, and where each of them lies: known before the first one begins.

Hydra resolves `hydra.sweep.dir` and `hydra.sweep.subdir` anew for every run. Our own `dir` is the same for all of them
(`${once:...}`); another one, and `subdir`, may refer to what is swept, and are followed.
"""

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from ddpm_cli.cli.hydra_launchers import JOBLIB, SUBMITIT
from ddpm_cli.cli.references import check_references
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.io.command_line import hydra_quoted, override

DIR, SUBDIR = "hydra.sweep.dir", "hydra.sweep.subdir"
_BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"
_NUMBER, _ONCE = "${hydra.job.num}", "${once:"
_GIVEN_LATER = "ID_GIVEN_LATER"


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep, whether or not it has begun."""

    overrides: list[str]
    directory: Path


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is going to do.

    Args:
        home: the directory of the sweep itself, in which or below which its runs lie.
        runs: in order; None: a sweeper other than Hydra's basic one decides them as it goes.
        places: the overrides with which the same command means the same directories at any time.
    """

    home: Path
    runs: list[PlannedRun] | None
    places: list[str]


def plan_sweep(config: DictConfig) -> SweepPlan:
    """The plan of the sweep that `config` asks for, in which the sweep's own directory is settled.

    Raises:
        ConfigError: if two runs would lie in one directory, or one in a directory that cannot be known yet.
        HydraException, OmegaConfBaseException: if a run cannot be composed.
    """
    jobs = _jobs(config)
    if jobs is None:
        return SweepPlan(Path(config.hydra.sweep.dir), None, [])
    written = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(written, dict)
    above, below = (_at_one_time(str(written[key]), config) for key in ("dir", "subdir"))
    if _refers(below) or (_refers(above) and not above.startswith(_ONCE)):
        placed = [_place(config, number, job) for number, job in enumerate(jobs)]
    else:
        home = str(config.hydra.sweep.dir)
        placed = [(home, below.replace(_NUMBER, str(number))) for number in range(len(jobs))]
    homes = {place for place, _ in placed}
    home = next(iter(homes)) if len(homes) == 1 else _in_common(homes)
    with read_write(config):
        config.hydra.sweep.dir = home  # for what Hydra and launchers write
    places = [override(DIR, home) if len(homes) == 1 else f"{DIR}={hydra_quoted(above)}"]
    if below != _NUMBER:
        places.append(f"{SUBDIR}={hydra_quoted(below)}")
    runs = [PlannedRun(job, Path(*place)) for job, place in zip(jobs, placed, strict=True)]
    _check_apart(runs)
    return SweepPlan(Path(home), runs, places)


def _jobs(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each run, as Hydra's basic sweeper makes them; None if another sweeper is chosen."""
    sweeper, task = config.hydra.sweeper, config.hydra.overrides.task
    if sweeper._target_ != _BASIC_SWEEPER:
        return None
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    given = [_in_one_order(text, parser) for text in _texts(task)]
    params = [_in_one_order(f"{key}={values}", parser) for key, values in (sweeper.params or {}).items()]
    with read_write(config):
        config.hydra.overrides.task = given
        sweeper.params = dict(text.split("=", 1) for text in params)
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*params, *given]), None)
    return jobs


def _texts(overrides: ListConfig) -> list[str]:
    """Overrides as they were given: a reference in one, ${...}, is for a run to follow."""
    texts = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def _in_one_order(text: str, parser: OverridesParser) -> str:
    """An override whose values `shuffle(...)` would put into another order every time, with the values listed."""
    (parsed,) = parser.parse_overrides([text])
    if not getattr(parsed.value(), "shuffle", False):
        return text
    state = random.getstate()
    random.seed(text)
    try:
        return f"{parsed.get_key_element()}={','.join(parsed.sweep_string_iterator())}"
    finally:
        random.setstate(state)


def _refers(text: str) -> bool:
    return "${" in text.replace(_NUMBER, "")


def _at_one_time(text: str, config: DictConfig) -> str:
    """A text with the time of this sweep where it asks for the time."""

    def resolved(found: re.Match) -> str:
        node = OmegaConf.create({"time": found[0]})
        OmegaConf.copy_cache(from_config=config, to_config=node)
        time = str(node.time)
        OmegaConf.copy_cache(from_config=node, to_config=config)  # from which every run has it
        return time

    return text if text.startswith(_ONCE) else re.sub(r"\$\{now:[^${}]*\}", resolved, text)


def _place(config: DictConfig, number: int, job: Sequence[str]) -> tuple[str, str]:
    """Where Hydra will have a run lie: its directory of the sweep, and the run's below that."""
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, list(job))
    check_references(composed)
    launcher = config.hydra.launcher._target_
    with read_write(composed), open_dict(composed.hydra.job):
        composed.hydra.job.num = number
        composed.hydra.job.id = f"{composed.hydra.job.name}_{number}" if launcher == JOBLIB else number
        if launcher in SUBMITIT:
            composed.hydra.job.id = _GIVEN_LATER
    known = HydraConfig.instance()
    before = known.cfg
    known.set_config(composed)  # for ${hydra:...}
    try:
        place = str(OmegaConf.select(composed, DIR)), str(OmegaConf.select(composed, SUBDIR))
    finally:
        known.cfg = before
    if any(_GIVEN_LATER in part for part in place):
        raise ConfigError(f"{SUBDIR}: hydra.job.id is not known before a job is in its queue; hydra.job.num is")
    return place


def _in_common(directories: set[str]) -> str:
    """The directory in which all of these lie."""
    try:
        above = Path(os.path.commonpath(directories))
    except ValueError:  # some are absolute
        above = Path("/")
    if above == Path(above.anchor) and above.anchor:
        raise ConfigError(f"{DIR}: the runs' have no directory in common: {', '.join(sorted(directories)[:3])}")
    return str(above)


def _check_apart(runs: Sequence[PlannedRun]) -> None:
    first: dict[str, int] = {}
    for number, run in enumerate(runs):
        other = first.setdefault(os.path.abspath(run.directory), number)
        if other != number:
            raise ConfigError(
                f"{SUBDIR}: runs {other} and {number} would both lie in {run.directory}; "
                f"{_NUMBER}, or ${{hydra.job.override_dirname}}, tells them apart"
            )
