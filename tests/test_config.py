"""Checking and building configurations, without Hydra."""

import ast
import inspect
import sys
from functools import partial
from pathlib import Path

import pytest

from ddpm_cli.config.compare import differences, fork, merge
from ddpm_cli.config.errors import ConfigError, naming, nearest
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.paths import seen_from
from ddpm_cli.config.schema import check, check_untrusted
from ddpm_cli.config.shipped import shipped_targets
from ddpm_cli.config.signatures import class_variable, resolve, signature
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

# Bases in one module, what inherits in another: nothing of either is imported by a check.
BASES = """
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

Pace = Literal["slow", "fast"]
Paces = Pace | None


class Shape(Protocol):
    def area(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Base(ABC):
    noisy: ClassVar[bool] = True
    steps: int | None = None
    pace: Paces = "slow"
    width: float


class Bare:
    pass


class Built:
    def __init__(self, *, size: int): ...
"""
HEIRS = """
import enum
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from collections import OrderedDict
from typing import ClassVar

from mybases import Bare as Plain
from mybases import Base, Built, Pace, Shape


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Heir(Plain, Base):
    steps: int = 3
    width: ClassVar[float] = 1.0
    paces: Sequence[Pace] = ()
    shape: Shape
    colour: Colour = Colour.RED
    cache: dict = field(init=False, default_factory=dict)
    _: KW_ONLY
    sizes: list[int] = field(default_factory=list)
    depth: int = field(metadata={})
    not_a_field = 5


@dataclass(frozen=True, kw_only=True)
class Grandchild(Heir):
    noisy: ClassVar[bool] = False
    pace: Pace


class Undecorated(Grandchild):
    more: int = 3


class BuiltToo(Plain, Built):
    pass


@dataclass
class OfALibrary(OrderedDict):
    scale: float = 1.0
"""
LOST = """
from another import Missing


class Lost(Missing):
    pass
"""


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch):
    """Modules of the user's own, so that what is checked here is not our signatures but the mechanism."""
    for name, content in (("mymodule", OWN_MODULE), ("mybases", BASES), ("myheirs", HEIRS), ("mylost", LOST)):
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("mymodule", "mybases", "myheirs"):
        sys.modules.pop(name, None)


def node(target: str = "part", *, module: str = "mymodule", partial: bool = True, **options) -> dict:
    return {"_target_": f"{module}.{target}"} | ({"_partial_": True} if partial else {}) | options


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
        ({"count": 2.0**53, "part": node()}, "count: expected a whole number"),
        ({"count": 1, "name": 1.5, "part": node()}, "name: expected text or null, got 1.5"),
        ({"count": 1, "name": ["x"], "part": node()}, "name: expected text or null"),
        ({"count": 1, "sizes": [1, "2"], "part": node()}, "sizes: expected a list of whole numbers"),
        ({"count": 1, "sizes": 1.5, "part": node()}, "sizes: expected a list of whole numbers, got 1.5"),
        ({"count": 1, "sizes": None, "part": node()}, "sizes: expected a list of whole numbers, got null"),
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


def test_what_is_meant_comes_in_the_type_that_is_wanted():
    written = {"count": 1e5, "name": 20261125, "sizes": 8, "part": node(betas=[0, 1])}
    meant = check(written, "mymodule.root")
    assert meant == {"count": 100_000, "name": "20261125", "sizes": [8], "part": node(betas=[0, 1])}
    assert [type(meant[key]) for key in ("count", "name")] == [int, str]
    assert written["name"] == 20261125, "the configuration that was given is left alone"
    spelt = {"name": "1e5", "count": "3"}
    assert check({"count": 3, "name": 1e5, "part": node()}, "mymodule.root", spelt=spelt)["name"] == "1e5"
    assert check({"count": 3, "sizes": [2.0, 1], "part": node()}, "mymodule.root")["sizes"] == [2, 1]
    assert check({"side": 2}, "mymodule.aliased") == {"side": 2}, "no list where one number will do"
    assert check({"side": 2e1}, "mymodule.aliased") == {"side": 20}


def test_a_checkpoint_holds_what_it_is_to_hold_already():
    cosine = {"_target_": "ddpm_cli.diffusion.schedule.cosine"}
    check_untrusted("schedule", cosine | {"timesteps": 10})
    with pytest.raises(ConfigError, match=r"schedule\.timesteps: expected a whole number, got 10\.0"):
        check_untrusted("schedule", cosine | {"timesteps": 10.0})


def test_instantiate_makes_nested_objects_and_partials():
    made = instantiate(node(mode="fast", betas=[0.1, 0.2]), "part")
    assert isinstance(made, partial)
    assert made("x") == ("x", "fast", (0.1, 0.2), False)
    nested = instantiate(node("anything", partial=False, inner=node("Plain", partial=False, width=1)), "part")
    assert nested["inner"].height == 3


def test_instantiate_says_which_group_a_refused_value_is_in():
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
    assert [p.name for p in imported] == [
        "resume",
        "changes",
        "sweep_directory",
        "fork",
        "chosen",
        "spelt",
        "run_directory",
        "record",
        "sweep",
    ]


def test_classes_without_an_init_of_their_own_are_asked():
    heir, bare, aliased = (signature(f"mymodule.{name}") for name in ("Heir", "Bare", "aliased"))
    assert heir is not None
    assert [p.name for p in heir] == ["width", "height"]
    assert bare == []
    with pytest.raises(ConfigError, match=r"part\.side: expected a whole number or a list of whole numbers, got"):
        check({"count": 1, "part": node("aliased", partial=False, side="x")}, "mymodule.root")
    assert aliased is not None


def options_of(target: str) -> dict[str, tuple[str, bool]]:
    parameters = signature(target)
    assert parameters is not None
    assert not any(p.positional for p in parameters)
    return {p.name: ("" if p.annotation is None else ast.unparse(p.annotation), p.required) for p in parameters}


def test_fields_are_inherited_through_modules_and_may_be_replaced():
    """Also types by other names are what the module in which the field stands means by them."""
    pace = "Literal['slow', 'fast']"
    inherited = {"steps": ("int", False), "pace": (f"{pace} | None", False)}
    own = {
        "paces": (f"Sequence[{pace}]", False),
        "shape": ("dict | None", True),
        "colour": ("Colour", False),
        "sizes": ("list[int]", False),
        "depth": ("int", True),
    }
    assert options_of("mybases.Base") == {"steps": ("int | None", False)} | {
        "pace": inherited["pace"], "width": ("float", True)
    }  # fmt: skip
    assert options_of("myheirs.Heir") == inherited | own
    assert list(options_of("myheirs.Heir")) == [*inherited, *own]
    assert options_of("myheirs.Grandchild") == inherited | {"pace": (pace, False)} | own
    assert options_of("myheirs.Undecorated") == options_of("myheirs.Grandchild")
    assert options_of("myheirs.BuiltToo") == {"size": ("int", True)}
    assert not {"myheirs", "mybases"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"pace": "fats"}, r"part.pace: expected one of slow, fast \(did you mean 'fast'\?\)"),
        ({"paces": ["slow", 3]}, "part.paces: expected a list of values"),
        ({"shape": "round"}, "part.shape: expected a group of options or null"),
        ({"shape": None, "depth": 1.5}, "part.depth: expected a whole number, got 1.5"),
        ({"width": 2.0}, "part.width: no such option"),
        ({"cache": {}}, "part.cache: no such option"),
        ({"noisy": True}, "part.noisy: no such option"),
        ({}, "part.shape: missing"),
    ],
)
def test_inherited_options_are_checked_like_any_others(option: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        check({"count": 1, "part": node("Heir", module="myheirs", partial=False, **option)}, "mymodule.root")


@pytest.mark.parametrize("target", ["mybases.Base", "myheirs.Heir", "myheirs.Undecorated", "myheirs.BuiltToo"])
def test_source_says_what_the_class_itself_says(target: str):
    read = options_of(target)
    live = inspect.signature(resolve(target)).parameters
    assert list(live) == list(read)
    assert [p.default is p.empty for p in live.values()] == [required for _, required in read.values()]


def test_a_class_of_a_library_is_asked_itself():
    assert "scale" in (p.name for p in signature("myheirs.OfALibrary") or [])


def test_a_base_that_cannot_be_found_is_named():
    with pytest.raises(ConfigError, match=r"part\._target_: there is no 'mylost.Lost' \(No module named 'another'\)"):
        check({"count": 1, "part": node("Lost", module="mylost")}, "mymodule.root")


def test_names_that_lead_in_a_circle_end(tmp_path: Path):
    content = "from circle_b import Thing\n\nclass Heir(Thing): ...\nAlias = Alias | None\ndef made(x: Alias): ...\n"
    (tmp_path / "circle_a.py").write_text(content)
    (tmp_path / "circle_b.py").write_text("from circle_a import Thing\n")
    with pytest.raises(ImportError, match=r"there is no 'circle_a\.Heir'"):
        signature("circle_a.Heir")
    (x,) = signature("circle_a.made") or []
    assert ast.unparse(x.annotation) == "Alias | None"


def test_a_class_variable_is_read_from_source():
    assert class_variable("mybases.Base", "noisy") is True
    assert class_variable("myheirs.Heir", "noisy") is True
    assert class_variable("myheirs.Undecorated", "noisy") is False
    for target in ("mylost.Lost", "myheirs.nothing", "mymodule.part", "nowhere.x", ""):
        assert class_variable(target, "noisy") is None
    assert not {"myheirs", "mybases", "mymodule"} & sys.modules.keys()


def test_nothing_inside_a_list_is_built():
    assert instantiate(node("anything", partial=False, inner=[{"_target_": "os.getpid"}]), "x") == {
        "inner": ({"_target_": "os.getpid"},)
    }


def test_shipped_targets_are_kept_apart_by_group():
    targets = shipped_targets()
    schedules = ("linear", "cosine", "sigmoid", "scaled_linear", "custom")
    assert targets["schedule"] == {f"ddpm_cli.diffusion.schedule.{name}": False for name in schedules}
    assert targets["model"] == {"ddpm_cli.models.unet.UNet": False}
    assert targets["timestep_sampler"]["ddpm_cli.training.timestep_samplers.Uniform"] is True
    assert "ddpm_cli.data.folder.folder" in targets["data"]
    assert not any(target.startswith("hydra") for names in targets.values() for target in names)


def test_nearest():
    assert nearest("shedule", ["schedule", "model"]) == " (did you mean 'schedule'?)"
    assert nearest("xyz", ["schedule", "model"]) == ""


SAVED = {"seed": 0, "resume": None, "trust": [], "trainer": {"steps": 10, "batch_size": 4}, "model": node(width=8)}


def test_merge_keeps_the_runs_own_configuration():
    merged = merge(SAVED, {"resume": "r", "trainer.steps": 99, "trainer.batch_size": 4, "seed": 0}, {})
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
        merge(SAVED, {key: value}, {})


def test_a_checkpoint_does_not_say_that_data_are_fetched():
    saved = SAVED | {"data": {"_target_": "x.y", "download": True}}
    assert merge(saved, {}, {})["data"]["download"] is False
    assert merge(saved, {"data.download": True}, {})["data"]["download"] is True


def test_the_sampler_of_previews_may_become_another_and_keeps_the_runs_variance():
    large, small = node("FixedLarge"), node("FixedSmall")
    saved = SAVED | {"variance": large, "sampler": node("DDIM", steps=50)}
    assert merge(saved, {"sampler.steps": 20}, {})["sampler"] == node("DDIM", steps=20)
    chosen = {"sampler": node("Ancestral", steps=7, variance=small)}
    merged = merge(saved, {"sampler": "ddpm", "sampler.steps": 7}, chosen)
    assert merged["sampler"] == node("Ancestral", steps=7, variance=large)
    assert fork(saved, {"sampler": "ddpm", "sampler.steps": 7}, chosen)["sampler"] == merged["sampler"]
    assert differences(saved, saved | {"sampler": chosen["sampler"]}) == []


def test_what_a_run_has_may_be_said_again():
    assert merge(SAVED, {"model": "part"}, {"model": node(width=8)}) == SAVED
    with pytest.raises(ConfigError, match="model: cannot change when resuming"):
        merge(SAVED, {"model": "part"}, {"model": node(width=9)})


def test_relative_paths_are_seen_from_where_the_run_was_begun(tmp_path: Path, monkeypatch):
    begun, here = tmp_path / "begun", tmp_path / "here"
    (begun / "pics").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    data = {"_target_": "ddpm_cli.data.folder.folder", "path": "pics/a", "cache_dir": None}

    def seen(directory: Path | None, *changes: str, **options: str) -> object:
        config = {"data": data | options}
        return seen_from(None if directory is None else str(directory), config, changes)["data"]["path"]

    assert seen(begun) == str(begun / "pics/a")
    assert seen(begun, path="*.tar") == str(begun / "*.tar")
    assert seen(begun, path="/pics") == "/pics"
    assert seen(begun, "data.path", path="mine") == str(here / "mine")
    assert seen(begun, path="gone") == seen(None, path="gone") == "gone"
    assert seen(tmp_path / "moved") == "pics/a", "run and data may have been moved together"
    assert seen(begun, "data.path", _target_="mine.hub", path="owner/set") == "owner/set"


def test_merge_knows_a_misspelt_key():
    with pytest.raises(ConfigError, match=r"the run has no such option \(did you mean 'trainer.steps'\?\)"):
        merge(SAVED, {"trainer.stepz": 3}, {})


def test_run_directories_are_never_shared(tmp_path: Path):
    made = [run_directory.create(tmp_path, "digits") for _ in range(4)]
    assert len(set(made)) == 4
    assert all(path.parent == tmp_path / "digits" for path in made)
    assert not any(c in str(path.relative_to(tmp_path)) for path in made for c in "=, ")


@pytest.mark.parametrize("name", ["a=b", "a,b", "../x", "", "a b", ".hidden", "-x"])
def test_names_that_would_break_a_path_are_refused(name: str):
    with pytest.raises(ValueError, match="may contain only letters"):
        run_directory.check_name(name)
    with pytest.raises(ValueError, match="at most 200 characters long, got 201"):
        run_directory.check_name("x" * 201)
