"""A command is composed once, and again only where something may ask for a sweep without -m."""

from pathlib import Path

import pytest
from commands import TINY_RUN, run, train

from ddpm_cli.cli.hydra_mode import sets_mode
from ddpm_cli.config.shipped import configs_directory

SWEEP = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
COUNTED = """
from hydra._internal.hydra import Hydra
from ddpm_cli.train import main
compose, times = Hydra.compose_config, []
Hydra.compose_config = lambda *given, **more: (times.append(1), compose(*given, **more))[1]
try:
    main()
finally:
    print(len(times), "compositions")
"""


@pytest.mark.parametrize(
    ("place", "text", "sets"),
    [
        ("experiment", SWEEP, True),
        ("experiment", "hydra: {'mode' : MULTIRUN}", True),
        ("experiment", "# @package hydra\nmode: 2", True),
        ("hydra", "mode: MULTIRUN", True),
        ("experiment", "hydra:\n  job:\n    name: a", False),
        ("experiment", "defaults:\n  - mode: generate\nhydra:\n  job:\n    name: a", False),
        ("experiment", "mode:\n  resamplings: 3", False),
    ],
)
def test_a_file_that_may_set_the_mode_is_known(place: str, text: str, sets: bool, tmp_path: Path):
    file = tmp_path / place / "own.yaml"
    file.parent.mkdir()
    file.write_text(text)
    assert sets_mode(file) == sets


def test_none_of_ours_sets_it():
    assert [file for file in configs_directory().rglob("*.yaml") if sets_mode(file)] == []


@pytest.mark.parametrize(
    ("arguments", "times"), [((), 1), (("schedule=linear", "name=a"), 1), (("hydra.run.dir=x",), 2)]
)
def test_a_command_composes_as_often_as_it_needs(arguments: tuple[str, ...], times: int, tmp_path: Path):
    done = run("train", *TINY_RUN, "trainer.batch_size=0", *arguments, cwd=tmp_path, code=COUNTED)
    assert done.stdout.splitlines()[-1] == f"{times} compositions", done.stderr
    assert "batch_size must be at least 1" in done.stderr


@pytest.mark.parametrize("arguments", [("--config-dir=own", "experiment=sweep"), ("hydra.mode=MULTIRUN", "seed=1,2")])
def test_who_asks_for_a_sweep_without_m_gets_one(arguments: tuple[str, ...], tmp_path: Path):
    file = tmp_path / "own" / "experiment" / "sweep.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(SWEEP)
    done = train(*TINY_RUN, "trainer.steps=1", "trainer.preview_every=0", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert {"0", "1"} <= {run.name for run in sweep.iterdir()}
