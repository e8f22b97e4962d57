"""Which runs a sweep has and where they lie, beside where Hydra itself would have them lie."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.cli.sweep_plan import SweepPlan, plan_sweep
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.shipped import configs_directory

SUBMITIT = "hydra/launcher=submitit_local"


@pytest.fixture
def composed(tmp_path: Path, monkeypatch) -> Iterator[Callable[..., DictConfig]]:
    """The configuration of a sweep of ddpm-train with these overrides, as Hydra hands it to a callback."""
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    with initialize_config_dir(str(configs_directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield lambda *overrides: loader.load_configuration("train", list(overrides), run_mode=RunMode.MULTIRUN)


def by_hydra(config: DictConfig, plan: SweepPlan) -> list[str]:
    """Where Hydra runs these jobs: what its basic launcher does for each of them."""
    from hydra._internal.callbacks import Callbacks

    loader, found = GlobalHydra.instance().config_loader(), []
    for number, run in enumerate(plan.runs or []):
        job = loader.load_sweep_config(config, run.overrides)
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = number
        run_job(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=lambda cfg: found.append(HydraConfig.get().runtime.output_dir),
            config=job,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    return found


@pytest.mark.parametrize(
    ("overrides", "home"),
    [
        (["name=a,b", "output_dir=x,y"], r"outputs/sweeps/[\d_-]+"),
        (["+tag=u,v", "hydra.sweep.dir=s/${tag}/${now:%f}", "hydra.sweep.subdir=${now:%S}_${hydra.job.num}"], "s"),
    ],
    ids=["ours", "times, and what is swept"],
)
def test_runs_lie_where_the_plan_says_and_later_too(composed, overrides: list[str], home: str):
    config = composed(*overrides)
    plan = plan_sweep(config)
    assert re.fullmatch(home, str(plan.home))
    assert plan.runs is not None
    planned = [str(run.directory.absolute()) for run in plan.runs]
    assert by_hydra(config, plan) == planned
    assert config.hydra.sweep.dir == str(plan.home)
    time.sleep(0.001)  # a microsecond would do
    later = composed(*(text for text in overrides if not text.startswith("hydra.sweep.")), *plan.places)
    assert plan_sweep(later) == plan


def test_a_shuffled_sweep_has_the_same_order_every_time(composed):
    plan, again = (plan_sweep(composed("seed=shuffle(range(8))", "hydra.sweep.dir=s")) for _ in range(2))
    assert plan == again
    assert plan.runs is not None
    order = [run.overrides for run in plan.runs]
    assert order != sorted(order) == [[f"seed={seed}"] for seed in range(8)]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["hydra.sweep.subdir=x"], "hydra.sweep.subdir: runs 0 and 1 would both lie in .*/x; "),
        (["hydra.sweep.subdir=${hydra.job.id}", SUBMITIT], "hydra.sweep.subdir: hydra.job.id is not known before"),
        (["hydra.sweep.dir=/${seed}"], "hydra.sweep.dir: the runs' have no directory in common: /1, /2"),
    ],
)
def test_directories_that_cannot_be_are_refused(composed, overrides: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        plan_sweep(composed("seed=1,2", *overrides))
