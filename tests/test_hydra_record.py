""".hydra/ as Hydra's users know it, read as they read it: with OmegaConf, and by Hydra itself."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import TINY, TINY_RUN, assert_one_message, only, run, sample, train
from omegaconf import OmegaConf

FILES = ["config.yaml", "hydra.yaml", "overrides.yaml"]
QUICK = [*TINY, "trainer.steps=1", "trainer.preview_every=0"]


def record(directory: Path) -> dict[str, Any]:
    folder = directory / ".hydra"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    found: dict[str, Any] = {name: OmegaConf.load(folder / name) for name in FILES}
    return found


def trained_as(directory: Path) -> dict:
    config = yaml.safe_load((directory / "config.yaml").read_text())
    return {key: value for key, value in config.items() if key != "name"}


def test_a_run_keeps_how_it_was_composed(home: Path, trained):
    directory, _ = trained
    found = record(directory)
    assert list(found["overrides.yaml"]) == TINY_RUN
    assert "image_size: ${data.image_size}\n" in (directory / ".hydra" / "config.yaml").read_text()
    groups = ["trainer", "optimizer", "schedule"]
    config: dict[str, Any] = yaml.safe_load((directory / "config.yaml").read_text())
    assert OmegaConf.masked_copy(found["config.yaml"], groups) == {key: config[key] for key in groups}
    hydra = found["hydra.yaml"].hydra
    assert Path(hydra.runtime.output_dir).name == directory.name
    assert hydra.runtime.choices.schedule == "cosine"
    assert list(hydra.overrides.task) == TINY_RUN


def test_hydra_trains_it_again_out_of_that_and_leaves_nothing_else(home: Path, trained):
    directory, _ = trained
    place = ["--config-path", str((directory / ".hydra").relative_to(home)), "--config-name", "config"]
    before = set(home.iterdir())
    done = train(*place, "name=again", "trainer.steps=2", cwd=home)
    assert done.returncode == 0, done.stderr
    assert set(home.iterdir()) == before
    assert sorted(path.name for path in (home / "outputs").iterdir()) == ["again", "digits"]
    new = only(home / "outputs" / "again")
    first, second = trained_as(directory), trained_as(new)
    assert second["trainer"].pop("steps") == 2
    first["trainer"].pop("steps")
    assert second == first
    assert list(record(new)["overrides.yaml"]) == ["name=again", "trainer.steps=2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trainer.stpes=3"], r"trainer.stpes: no such option \(did you mean 'steps'\?\)"),
        (["optimizer=adam"], "optimizer=adam: .*config.yaml is a whole configuration; set its values with KEY=VALUE"),
        (["hydra.sweep.dir=x"], "hydra.sweep.dir: has an effect only in a sweep"),
        (["--config-path", "nowhere"], "--config-path: .*nowhere is not a directory"),
    ],
)
def test_of_another_primary_configuration_mistakes_are_one_message(
    arguments: list[str], says: str, home: Path, trained
):
    directory, _ = trained
    place = ["--config-path", str(directory / ".hydra")] if "--config-path" not in arguments else []
    before = sorted(home.rglob("*"))
    assert_one_message(train(*place, "--config-name", "config", *arguments, cwd=home), "train", says)
    assert sorted(home.rglob("*")) == before


def test_a_sweep_of_it_keeps_one_for_each_run(home: Path, trained):
    directory, _ = trained
    place = ["--config-path", str(directory / ".hydra"), "--config-name", "config"]
    quick = ["trainer.steps=1", "trainer.preview_every=0", "hydra.sweep.dir=sweep"]
    done = train("-m", *place, *quick, "seed=1,2", cwd=home)
    assert done.returncode == 0, done.stderr
    for number, seed in (("0", "seed=1"), ("1", "seed=2")):
        found = record(home / "sweep" / number)
        assert seed in found["overrides.yaml"]
        assert Path(found["hydra.yaml"].hydra.runtime.output_dir) == home / "sweep" / number


def test_who_resumes_leaves_it_and_who_forks_has_its_own(home: Path, trained):
    directory, _ = trained
    before = {name: (directory / ".hydra" / name).read_bytes() for name in FILES}
    assert train(f"resume={directory}", "trainer.steps=5", cwd=home).returncode == 0
    assert {name: (directory / ".hydra" / name).read_bytes() for name in FILES} == before
    done = train(f"fork={directory}", "trainer.steps=6", "optimizer.lr=0.5", "name=f", cwd=home)
    assert done.returncode == 0, done.stderr
    new = only(home / "outputs" / "f")
    config = OmegaConf.to_container(record(new)["config.yaml"])
    assert config == yaml.safe_load((new / "config.yaml").read_text()), "not what was composed, but what it is"


def test_samples_and_evaluations_have_one_where_the_directory_is_hydras(home: Path, trained):
    directory, _ = trained
    quick = [f"ckpt={directory}", "n=4", "sampler.steps=2"]
    for program, own in (("sample", []), ("eval", ["features=pixels", "metrics=[fd]"])):
        done = run(program, *quick, *own, f"hydra.run.dir={program}", cwd=home)
        assert done.returncode == 0, done.stderr
        assert "n=4" in record(home / program)["overrides.yaml"]
    before = (directory / ".hydra" / "overrides.yaml").read_bytes()
    done = sample(*quick, f"hydra.run.dir={directory}", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (directory / ".hydra" / "overrides.yaml").read_bytes() == before, "it says how that was trained"


def test_it_is_left_out_where_that_is_asked_for(tmp_path: Path):
    for value, there in (("null", False), (".hydra", True)):
        done = train(*QUICK, f"hydra.output_subdir={value}", f"name=r{there}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (only(tmp_path / "outputs" / f"r{there}") / ".hydra").exists() is there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
    says = "hydra.output_subdir: has no effect here; a run's directory records its configuration in .hydra"
    assert_one_message(train(*QUICK, "hydra.output_subdir=other", cwd=tmp_path), "train", says)


def test_a_command_that_is_refused_writes_none(tmp_path: Path):
    assert_one_message(train(*QUICK, "data=mnist", "model=unet_16", "data.root=none", cwd=tmp_path), "train", "data: ")
    assert list(tmp_path.iterdir()) == []
