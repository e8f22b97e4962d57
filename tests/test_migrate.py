"""Configurations of checkpoint format 1 in the terms of today: they compute what they computed."""

import copy
import inspect
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_cli.checkpoint.metadata import parse
from ddpm_cli.checkpoint.migrate import upgrade_1
from ddpm_cli.checkpoint.validate import check_node
from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.schema import check
from ddpm_cli.config.signatures import resolve

KEPT = Path(__file__).parent / "kept" / "format_1" / "checkpoints" / "step_00000003" / "checkpoint.json"
CONFIG: dict = json.loads(KEPT.read_text())["config"]


def test_the_kept_one_is_a_configuration_of_today():
    config = parse(KEPT.read_text(), KEPT).config
    assert config == upgrade_1(CONFIG)
    check(config, "ddpm_cli.config.train_options.TrainOptions")
    for group, node in config.items():
        if isinstance(node, dict):
            check_node(group, node)
    assert build_ddpm(config).num_classes is None


def test_what_has_changed_is_what_was_asked_for():
    found = upgrade_1(CONFIG)
    assert {group: node for group, node in found.items() if node != CONFIG.get(group)} == {
        "loss": {"_target_": "ddpm_cli.diffusion.loss.Simple"},
        "timestep_sampler": {"_target_": "ddpm_cli.training.timestep_samplers.Uniform", "_partial_": True},
        "schedule": CONFIG["schedule"] | {"zero_terminal_snr": False},
        "model": CONFIG["model"] | {"num_classes": None, "learn_variance": False},
        "sampler": CONFIG["sampler"] | {"spacing": "linspace"},
        "ema": {"_target_": "ddpm_cli.ema.ema.EMA", "_partial_": True, "decays": [0.995], "posthoc": []},
        "trainer": CONFIG["trainer"] | {"label_dropout": None},
        "data": CONFIG["data"] | {"num_classes": None},
    }
    assert CONFIG.keys() <= found.keys()


def test_what_is_added_are_the_values_that_the_options_have_by_default():
    """Written out again here, they must not come to mean something else."""
    config = upgrade_1(CONFIG)
    for group in ("schedule", "model", "sampler", "trainer", "data"):
        options = inspect.signature(resolve(CONFIG[group]["_target_"])).parameters
        added = config[group].keys() - CONFIG[group].keys()
        assert added
        for name in added:
            assert options[name].default == config[group][name], f"{group}.{name}"
    assert instantiate(config["ema"], "ema").keywords == {"decays": (0.995,), "posthoc": ()}


def test_nothing_is_changed_in_place_and_a_second_time_changes_nothing():
    before = copy.deepcopy(CONFIG)
    once = upgrade_1(CONFIG)
    assert before == CONFIG
    assert upgrade_1(once) == once


def test_classes_of_the_users_own_keep_their_options():
    own = {
        "model": {"_target_": "mine.UNet", "decay": 3},
        "schedule": {"_target_": "ddpm_cli_extras.schedule", "timesteps": 10},
        "ema": {"_target_": "mine.EMA", "decay": 0.5},
        "data": {"_target_": "mine.data"},
        "sampler": {"_target_": "mine.sampler"},
    }
    assert upgrade_1(own) == own


@pytest.mark.parametrize("format", [0, 3, -1, True, 1.0, "1", None, [1], {"format": 1}])
def test_other_formats_are_refused(format: object):
    text = json.dumps(json.loads(KEPT.read_text()) | {"format": format})
    with pytest.raises(ValueError, match="is of another checkpoint format; this version reads formats 1 to 2"):
        parse(text, KEPT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
NODES = st.fixed_dictionaries({}, optional=dict.fromkeys(("_target_", "decay", "decays", "posthoc"), JSON))
TARGETS = st.sampled_from([node["_target_"] for node in CONFIG.values() if isinstance(node, dict)])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(CONFIG)), JSON | NODES | st.builds(lambda t: {"_target_": t}, TARGETS)))
def test_any_json_is_survived(config: dict):
    found = upgrade_1(config)
    assert config.keys() <= found.keys()
    assert found.keys() - config.keys() <= {"loss", "timestep_sampler"}
