"""Checking and building configurations, without Hydra."""

import sys
from functools import partial
from pathlib import Path

import pytest

from ddpm_cli.config.compare import merge
from ddpm_cli.config.errors import ConfigError, naming, nearest
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.schema import check
from ddpm_cli.config.shipped import shipped_targets
from ddpm_cli.config.signatures import signature
from ddpm_cli.io import run_dir as run_directory

OWN_MODULE = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from math import hypot


def root(*, count: int, rate: float = 0.5, name: str | None = None, sizes: Sequence[int] = (), part: dict): ...


def part(given, *, mode: Literal["slow", "fast"] = "slow", betas: tuple[float, float] = (0.9, 0.999), on: bool = False):
    if on and mode == "slow":
        raise ValueError("cannot be on when slow")
    return given, mode, betas, on


def anything(**options):
    return options


@dataclass
class Plain:
    width: int
    height: int = 3


class Heir(Plain):
    pass


class Bare:
    scale: float = 1.0


Side = int | Sequence[int]


def aliased(side: Side = 1): ...
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch):
    """A module of the user's own, so that what is checked here is not our signatures but the mechanism."""
    (tmp_path / "mymodule.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mymodule", None)


def node(target: str = "part", *, partial: bool = True, **options) -> dict:
    return {"_target_": f"mymodule.{target}"} | ({"_partial_": True} if partial else {}) | options


def test_a_right_configuration_passes_without_importing_its_targets():
    check({"count": 3, "rate": 1, "sizes": [1, 2], "part": node(mode="fast", betas=[0, 0.5])}, "mymodule.root")
    check({"count": 3, "name": "x", "part": node("Plain", partial=False, width=2)}, "mymodule.root")
    check({"count": 3, "part": node("anything", partial=False, whatever=[{}])}, "mymodule.root")
    assert "mymodule" not in sys.modules


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"part": node()}, "count: missing"),
        (
            {"count": 1, "part": node(), "rato": 1},
            r"rato: no such option \(did you mean 'rate'\?\); this command takes",
        ),
        ({"count": True, "part": node()}, "count: expected a whole number, got true"),
        ({"count": 1.5, "part": node()}, "count: expected a whole number, got 1.5"),
        ({"count": "1", "part": node()}, 'count: expected a whole number, got "1"'),
        ({"count": 1, "rate": None, "part": node()}, "rate: expected a number, got null"),
        ({"count": 1, "name": 3, "part": node()}, "name: expected text or null, got 3"),
        ({"count": 1, "sizes": [1, "2"], "part": node()}, "sizes: expected a list of whole numbers"),
        ({"count": 1, "sizes": 1, "part": node()}, "sizes: expected a list of whole numbers, got 1"),
        ({"count": 1, "part": {}}, "part: expected a group of options, got {}"),
        ({"count": 1, "part": "part"}, "part: expected a group of options"),
        ({"count": 1, "part": node(mode="fats")}, r"part.mode: expected one of slow, fast \(did you mean 'fast'\?\)"),
        ({"count": 1, "part": node(mode=[])}, r"part.mode: expected one of slow, fast, got \[\]"),
        ({"count": 1, "part": node(betas=[1])}, r"part.betas: expected a list of 2 numbers, got \[1\]"),
        ({"count": 1, "part": node(given=3)}, "part.given: no such option; part takes mode, betas, on"),
        ({"count": 1, "part": node(partial=False)}, "part.given: missing"),
        ({"count": 1, "part": node("Plain", partial=False)}, "part.width: missing"),
        ({"count": 1, "part": node("Plain", partial=False, width=1, depth=2)}, "part.depth: no such option"),
        ({"count": 1, "part": node("prat")}, r"part._target_: there is no 'mymodule.prat'"),
        ({"count": 1, "part": {"_target_": "nowhere.x"}}, r"part._target_: there is no 'nowhere.x'"),
        ({"count": 1, "part": {"_target_": ""}}, "part._target_: there is no ''"),
        ({"count": 1, "part": {"_target_": None}}, "part._target_: expected the full name"),
        ({"count": 1, "part": node("hypot", z=1)}, "part"),
    ],
)
def test_what_is_wrong_is_named(config: dict, says: str):
    if config["part"] == node("hypot", z=1):  # not Python: it cannot be asked what it takes, building it says
        check(config, "mymodule.root")
        return
    with pytest.raises(ConfigError, match=says):
        check(config, "mymodule.root")


def test_build_makes_nested_objects_and_partials():
    made = instantiate(node(mode="fast", betas=[0.1, 0.2]), "part")
    assert isinstance(made, partial)
    assert made("x") == ("x", "fast", (0.1, 0.2), False)
    nested = instantiate(node("anything", partial=False, inner=node("Plain", partial=False, width=1)), "part")
    assert nested["inner"].height == 3


def test_build_says_which_group_a_refused_value_is_in():
    with pytest.raises(ConfigError, match=r"outer\.inner: cannot be on when slow"):
        instantiate(node("anything", partial=False, inner=node(partial=False, given=1, on=True)), "outer")


def test_naming_names_files_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(ConfigError, match=rf"out: {tmp_path}/x/y: No such file or directory"), naming("out"):
        (tmp_path / "x" / "y").touch()


def test_signature_reads_every_kind_of_target():
    own = signature("mymodule.part")
    assert own is not None
    assert [(p.name, p.required, p.positional) for p in own] == [
        ("given", True, True), ("mode", False, False), ("betas", False, False), ("on", False, False)
    ]  # fmt: skip
    assert signature("mymodule.anything") is None
    imported = signature("ddpm_cli.config.invocation.Invocation")  # imported there, defined elsewhere
    assert imported is not None
    assert [p.name for p in imported] == ["resume", "changes", "sweep_directory"]


def test_classes_without_an_init_of_their_own_are_asked():
    heir, bare, aliased = (signature(f"mymodule.{name}") for name in ("Heir", "Bare", "aliased"))
    assert heir is not None
    assert [p.name for p in heir] == ["width", "height"]
    assert bare == []
    with pytest.raises(ConfigError, match=r"part\.side: expected a whole number or a list of whole numbers, got"):
        check({"count": 1, "part": node("aliased", partial=False, side="x")}, "mymodule.root")
    assert aliased is not None


def test_nothing_inside_a_list_is_built():
    assert instantiate(node("anything", partial=False, inner=[{"_target_": "os.getpid"}]), "x") == {
        "inner": ({"_target_": "os.getpid"},)
    }


def test_shipped_targets_are_kept_apart_by_group():
    targets = shipped_targets()
    schedules = ("linear", "cosine", "sigmoid", "scaled_linear", "custom")
    assert targets["schedule"] == {f"ddpm_cli.diffusion.schedule.{name}": False for name in schedules}
    assert targets["model"] == {"ddpm_cli.models.unet.UNet": False}
    weightings = ("uniform", "min_snr", "p2", "truncated_snr")
    assert targets["weighting"] == {f"ddpm_cli.diffusion.weighting.{name}": True for name in weightings}
    assert "ddpm_cli.data.folder.folder" in targets["data"]
    assert not any(target.startswith("hydra") for names in targets.values() for target in names)


def test_nearest():
    assert nearest("shedule", ["schedule", "model"]) == " (did you mean 'schedule'?)"
    assert nearest("xyz", ["schedule", "model"]) == ""


SAVED = {"seed": 0, "resume": None, "trust": [], "trainer": {"steps": 10, "batch_size": 4}, "model": node(width=8)}


def test_merge_keeps_the_runs_own_configuration():
    merged = merge(SAVED, {"resume": "r", "trainer.steps": 99, "trainer.batch_size": 4, "seed": 0})
    assert merged == SAVED | {"trainer": {"steps": 99, "batch_size": 4}}, "resume= is of the call, not of the run"
    assert SAVED["trainer"]["steps"] == 10, "the saved configuration is left alone"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 7),
        ("trainer.batch_size", 1),
        ("model.width", 1),
        ("model", "part"),
        ("experiment", "x"),
        ("data.path", "x"),
    ],
)
def test_merge_refuses_what_would_make_it_another_run(key: str, value: object):
    with pytest.raises(ConfigError, match=f"^{key}: cannot change when resuming: the run has .*, this command line"):
        merge(SAVED, {key: value})


def test_a_checkpoint_does_not_say_that_data_are_fetched():
    saved = SAVED | {"data": {"_target_": "x.y", "download": True}}
    assert merge(saved, {})["data"]["download"] is False
    assert merge(saved, {"data.download": True})["data"]["download"] is True


def test_merge_knows_a_misspelt_key():
    with pytest.raises(ConfigError, match=r"the run has no such option \(did you mean 'trainer.steps'\?\)"):
        merge(SAVED, {"trainer.stepz": 3})


def test_run_directories_are_never_shared(tmp_path: Path):
    made = [run_directory.create(tmp_path, "digits") for _ in range(4)]
    assert len(set(made)) == 4
    assert all(path.parent == tmp_path / "digits" for path in made)
    assert not any(c in str(path.relative_to(tmp_path)) for path in made for c in "=, ")


@pytest.mark.parametrize("name", ["a=b", "a,b", "../x", "", "a b", ".hidden", "-x"])
def test_names_that_would_break_a_path_are_refused(name: str):
    with pytest.raises(ValueError, match="may hold letters"):
        run_directory.check_name(name)
    with pytest.raises(ValueError, match="at most 200 characters long, got 201"):
        run_directory.check_name("x" * 201)
