"""scripts/digests: its recipes leave no option out, and its digests tell apart what differs."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml
from digests import hashing, in_python, recipes, recorded, sampling_recipes, training_recipes

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TRAININGS = [arguments for recipe in recipes.RECIPES.values() for arguments in (recipe.train, *recipe.again)]
SAMPLES = [arguments for recipe in recipes.RECIPES.values() for arguments in recipe.samples.values()]


# Groups that look on, and options that others show to compute what there is a recipe of.
LOOK_ON = {"debug", "logger"}
SHOWN_ELSEWHERE = {
    "data=huggingface",  # the pixels of a folder of the same pictures: test_huggingface
    "guidance=autoguidance",  # the line through two networks: test_guidance, test_autoguidance
}


def options(config: str) -> set[str]:
    """Every option of the groups of a command, as group=option."""
    defaults = yaml.safe_load((CONFIGS / config).read_text(encoding="utf-8"))["defaults"]
    groups = {group for entry in defaults if isinstance(entry, dict) for group in entry if " " not in group}
    files = (file for group in groups - LOOK_ON for file in (CONFIGS / group).glob("*.yaml"))
    return {f"{file.parent.name}={file.stem}" for file in files} - SHOWN_ELSEWHERE


@pytest.mark.parametrize(("config", "commands"), [("train.yaml", TRAININGS), ("sample.yaml", SAMPLES)])
def test_every_option_of_every_group_is_taken(config: str, commands: Iterable[Iterable[str]]):
    taken = {argument for arguments in commands for argument in arguments}
    assert len(options(config)) > 10
    assert options(config) - taken == set()


def test_every_option_of_a_run_that_changes_numbers_is_set():
    set_by_hand = {argument.partition("=")[0] for arguments in TRAININGS for argument in arguments}
    trainer = yaml.safe_load((CONFIGS / "trainer" / "default.yaml").read_text(encoding="utf-8"))
    assert {f"trainer.{key}" for key in trainer if not key.startswith("_")} - set_by_hand == {
        "trainer.compile",  # takes minutes
        "trainer.device",
        "trainer.eval_every",  # looks on: test_eval_training shows that nothing else is computed with it
        "trainer.eval_images",
        "trainer.keep_best",
        "trainer.profile_steps",  # looks on
    }


def test_what_is_recorded_is_what_there_is_to_record():
    names = [recipe.name for recipe in (*training_recipes.recipes(), *sampling_recipes.recipes())]
    assert len(set(names)) == len(names)
    assert set(recorded.read()["recipes"]) == {*names, in_python.NAME}


def test_tensors_are_told_apart_by_name_dtype_shape_and_bits():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    others = [
        {"y": x},
        {"x": x.double()},
        {"x": x.view(torch.int32)},
        {"x": x.flatten()},
        {"x": x * (1 + 1e-7)},
        {"x": -x},  # the zero too
        {},
    ]
    digests = [hashing.of_tensors(tensors) for tensors in ({"x": x}, *others)]
    assert len(set(digests)) == len(digests)
    assert digests[0] == hashing.of_tensors({"x": x.T.contiguous().T}), "not by their place in memory"
    together = hashing.of_tensors({"a": torch.tensor(1), "b": torch.tensor(2)})
    assert together == hashing.of_tensors({"b": torch.tensor(2), "a": torch.tensor(1)})


def test_a_clock_is_not_looked_at(tmp_path: Path):
    digests = []
    for loss, seconds in ((0.5, 1), (0.5, 2), (0.25, 2)):
        file = tmp_path / "metrics.jsonl"
        file.write_text(json.dumps({"step": 1, "loss/mean": loss, "time/images_per_second": seconds}) + "\n")
        digests.append(hashing.of_metrics(file))
    assert digests[0] == digests[1] != digests[2]


def test_what_differs_is_named():
    assert recorded.changes({"ema": "1", "metrics": "2", "gone": "3"}, {"ema": "1", "metrics": "4", "new": "5"}) == [
        "gone",
        "metrics",
        "new",
    ]
    assert recorded.difference({"environment": recorded.environment()}) is None
    said = recorded.difference({"environment": recorded.environment() | {"torch": "1.0"}})
    assert said is not None
    assert said.startswith(f"recorded with torch 1.0, here {torch.__version__}, ")
    assert "scripts/digests --record" in said
