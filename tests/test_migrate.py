"""Configurations in checkpoints: written without paths, read from every format; they compute what they computed."""

import contextlib
import copy
import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_cli.checkpoint import migrate
from ddpm_cli.checkpoint.metadata import FORMAT, Metadata, parse
from ddpm_cli.checkpoint.migrate import upgrade
from ddpm_cli.checkpoint.stored_config import decode, encode
from ddpm_cli.checkpoint.validate import check_config
from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.common_options import Common, common_options
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.schema import check, is_node, targets_in
from ddpm_cli.config.shipped import configs_directory, shipped_targets
from ddpm_cli.config.signatures import resolve
from ddpm_cli.config.train_options import OPTIONS, TrainOptions

KEPT = {
    path.parents[2].name: path
    for path in sorted((Path(__file__).parent / "kept").glob("*/checkpoints/step_00000003/checkpoint.json"))
}
EARLIER = sorted(KEPT.keys() - {f"format_{FORMAT}"})
BY_KEPT = pytest.mark.parametrize("kept", EARLIER)
GROUPS = [field.name for field in fields(TrainOptions) if field.type in ("dict", dict)]


def stored(kept: str) -> dict:
    """The configuration of a kept checkpoint, as it stands in the file."""
    return json.loads(KEPT[kept].read_text())["config"]


def written(kept: str) -> int:
    return int(kept.removeprefix("format_"))


def name_of(target: str) -> str:
    return target.rpartition(".")[2]


# As they are written -------------------------------------------------------------------------------------------------


def test_names_are_unique_within_a_group():
    """A checkpoint holds the last part of a path alone."""
    for group, targets in shipped_targets().items():
        names = [name_of(target) for target in targets]
        assert len(set(names)) == len(names), group


@pytest.mark.parametrize("group", GROUPS)
def test_what_we_ship_is_written_as_its_name_and_read_as_it_was(group: str):
    for target, partial in shipped_targets()[group].items():
        node = {"_target_": target} | ({"_partial_": True} if partial else {}) | {"some": [1, {"_target_": target}]}
        short = encode({group: node})
        assert short == {group: {"_target_": name_of(target), "some": node["some"]}}, "lists are never built"
        assert decode(short) == {group: node}
        assert list(decode(short)[group]) == list(node), "in this order, as config.yaml shows it"


def test_nodes_inside_nodes_are_written_by_the_group_that_they_are_named_by():
    variance = {"_target_": next(iter(shipped_targets()["variance"]))}
    if shipped_targets()["variance"][variance["_target_"]]:
        variance["_partial_"] = True
    config = {
        "seed": 3,
        "sampler": {"_target_": "mine.sampler", "_partial_": True, "variance": variance, "other": variance},
    }
    short = {"_target_": name_of(variance["_target_"])}
    assert encode(config)["sampler"] == config["sampler"] | {"variance": short}, "`other` is no group of ours"
    assert decode(encode(config)) == config


@pytest.mark.parametrize("name", ["cosine", "linear "])
def test_names_count_in_their_own_group_alone(name: str):
    config = {"weighting": {"_target_": name}, "mine": {"_target_": name}}
    assert decode(config) == config


def test_a_full_path_of_ours_is_accepted_as_such():
    for group in GROUPS:
        for target in shipped_targets()[group]:
            assert decode({group: {"_target_": target}}) == {group: {"_target_": target}}


def test_what_a_node_says_of_partial_is_there_to_be_checked():
    assert decode({"prediction": {"_target_": "Epsilon", "_partial_": True}})["prediction"]["_partial_"] is True
    assert decode({"optimizer": {"_target_": "adam", "_partial_": [1]}})["optimizer"]["_partial_"] == [1]


def test_a_description_holds_no_path_of_ours_and_is_read_back():
    config = parse(KEPT["format_1"].read_text(), KEPT["format_1"]).config
    metadata = Metadata(step=3, image_shape=(1, 8, 8), images=9, config=config, versions={})
    text = metadata.as_json()
    assert "ddpm_cli." not in text
    assert "_partial_" not in text
    assert parse(text, Path("checkpoint.json")) == metadata


# As they were written ------------------------------------------------------------------------------------------------


@BY_KEPT
def test_a_kept_one_is_a_configuration_of_today(kept: str):
    config = parse(KEPT[kept].read_text(), KEPT[kept]).config
    assert config == decode(upgrade(stored(kept), written(kept)))
    check(config, OPTIONS)
    check_config(config)
    build_ddpm(config)


@BY_KEPT
def test_a_kept_one_has_all_options_there_are_and_no_others(kept: str):
    """So that a run of that version is the same run when its command line is given again."""
    shipped: dict[str, set[str]] = {}
    for file in configs_directory().glob("*/*.yaml"):
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        node = node.get(file.parent.name, node)
        if is_node(node):
            shipped[node["_target_"]] = shipped.get(node["_target_"], set()) | node.keys()
    config = parse(KEPT[kept].read_text(), KEPT[kept]).config
    recent = {"fsdp", "compile", "eval_every", "eval_images", "keep_best"}  # which may change in a run
    recent |= {"overfit_batches", "profile_steps"}  # likewise, or as if it were 0
    for group in GROUPS:
        missing = shipped[config[group]["_target_"]] - config[group].keys()
        assert missing <= (recent if group == "trainer" else set()), group
        assert config[group].keys() - common_options(group).keys() <= shipped[config[group]["_target_"]], group
        assert common_options(group).keys() <= config[group].keys()


def test_what_has_changed_since_format_1_is_what_was_asked_for():
    config = stored("format_1")
    found = upgrade(config, 1)
    assert {group: node for group, node in found.items() if node != config.get(group)} == {
        "loss": {"_target_": "Simple"},
        "timestep_sampler": {"_target_": "Uniform"},
        "schedule": config["schedule"] | {"_target_": "cosine", "zero_terminal_snr": False},
        "model": config["model"]
        | {"_target_": "UNet", "num_classes": None, "learn_variance": False}
        | {"head_channels": None, "norm_eps": 1e-6, "time_cos_first": False, "time_freq_shift": 1, "time_scale": 1.0}
        | {"downsample_padding": "same", "scale_shift_norm": False, "resblock_updown": False, "null_label": True},
        "prediction": {"_target_": "Epsilon"},
        "variance": {"_target_": "FixedSmall"},
        "weighting": {"_target_": "Uniform"},
        "sampler": {"_target_": "DDIM", "steps": 2, "eta": 0.0, "spacing": "linspace"},
        "optimizer": {key: value for key, value in config["optimizer"].items() if key != "_partial_"}
        | {"_target_": "adamw"},
        "ema": {"_target_": "EMA", "decays": [0.995], "posthoc": []},
        "trainer": {key: value for key, value in config["trainer"].items() if key != "checkpoint_activations"}
        | {"_target_": "TrainerConfig", "activation_checkpointing": False, "label_dropout": None},
        "data": config["data"] | {"_target_": "digits", "flip": "none", "num_classes": None, "holdout": 0},
    }
    assert config.keys() <= found.keys()


# What there was by the name that format 2 gave it: its node, and what it is called now.
FORMAT_2 = [
    ("timesteps", "ddpm_cli.training.timesteps.LossAware", "timestep_sampler", "LossSecondMoment"),
    ("timesteps", "ddpm_cli.training.timesteps.Stratified", "timestep_sampler", "Stratified"),
    ("weighting", "ddpm_cli.diffusion.weighting.simple", "weighting", "Uniform"),
    ("weighting", "ddpm_cli.diffusion.weighting.snr_truncated", "weighting", "TruncatedSNR"),
    ("weighting", "ddpm_cli.diffusion.weighting.min_snr", "weighting", "MinSNR"),
    ("weighting", "ddpm_cli.diffusion.weighting.p2", "weighting", "P2"),
    ("prediction", "ddpm_cli.diffusion.prediction.Start", "prediction", "X0"),
    ("variance", "ddpm_cli.diffusion.variance.fixed_large", "variance", "FixedLarge"),
    ("variance", "ddpm_cli.diffusion.variance.learned_range", "variance", "LearnedRange"),
    ("sampler", "ddpm_cli.diffusion.samplers.ddpm", "sampler", "Ancestral"),
    ("sampler", "ddpm_cli.diffusion.samplers.heun", "sampler", "Heun"),
    ("sampler", "ddpm_cli.diffusion.samplers.dpmpp_2m", "sampler", "DPMSolverPP2M"),
    ("sampler", "ddpm_cli.diffusion.samplers.dpmpp_2m_sde", "sampler", "DPMSolverPP2MSDE"),
    ("sampler", "ddpm_cli.diffusion.samplers.unipc", "sampler", "UniPC"),
    ("data", "ddpm_cli.data.sources.cifar10", "data", "cifar10"),
    ("data", "ddpm_cli.data.folder.folder", "data", "folder"),
    ("data", "ddpm_cli.data.shards.webdataset", "data", "webdataset"),
    ("optimizer", "ddpm_cli.training.optimizers.adam", "optimizer", "adam"),
    ("loss", "ddpm_cli.diffusion.loss.VariationalBound", "loss", "VariationalBound"),
    ("schedule", "ddpm_cli.diffusion.schedule.custom", "schedule", "custom"),
]
PARTIAL = ("timesteps", "weighting", "variance", "sampler", "optimizer", "ema")


@pytest.mark.parametrize(("group", "target", "now", "name"), FORMAT_2, ids=lambda value: name_of(str(value)))
def test_what_format_2_had_is_still_there(group: str, target: str, now: str, name: str):
    node = {"_target_": target} | ({"_partial_": True} if group in PARTIAL else {}) | {"some": 1}
    found = upgrade({group: node, "seed": 7}, 2)
    later = migrate._LATER.get(now, {}).get(name, {}) | migrate._LATER_OF_ALL.get(now, {})
    assert found == {now: {"_target_": name, "some": 1} | later, "seed": 7}
    assert name_of(decode(found)[now]["_target_"]) == name
    assert decode(found)[now]["_target_"] in shipped_targets()[now]


def test_options_of_the_trainer_have_new_names():
    old = {
        "_target_": "ddpm_cli.training.settings.Settings",
        "steps": 4,
        "checkpoint_activations": True,
        "shard": False,
    }
    new = {"_target_": "TrainerConfig", "steps": 4, "activation_checkpointing": True, "fsdp": False}
    assert upgrade({"trainer": old}, 2) == {"trainer": new}


def test_a_variance_inside_a_sampler_has_its_new_name():
    variance = {"_target_": "ddpm_cli.diffusion.variance.fixed_small", "_partial_": True}
    sampler = {"_target_": "ddpm_cli.diffusion.samplers.ddpm", "_partial_": True, "steps": None, "variance": variance}
    found = upgrade({"sampler": sampler}, 2)
    assert found == {"sampler": {"_target_": "Ancestral", "steps": None, "variance": {"_target_": "FixedSmall"}}}


def test_what_is_added_are_the_values_that_the_options_have_by_default():
    """Written out again in the table, they must not come to mean something else."""
    config, before = decode(upgrade(stored("format_1"), 1)), stored("format_1")
    for group in ("schedule", "model", "sampler", "trainer", "data"):
        options = inspect.signature(resolve(config[group]["_target_"])).parameters
        added = config[group].keys() - before[group].keys()
        assert added
        for name in added - common_options(group).keys():
            assert options[name].default == config[group][name], f"{group}.{name}"
    assert instantiate(config["ema"], "ema").keywords == {"decays": (0.995,), "posthoc": ()}
    for name, later in migrate._LATER["data"].items():
        options = inspect.signature(resolve(decode({"data": {"_target_": name}})["data"]["_target_"])).parameters
        for option, value in later.items():
            default = options[option].default
            assert (list(default) if isinstance(default, tuple) else default) == value, f"{name}.{option}"
    assert migrate._LATER_OF_ALL["data"] == Common()._asdict()


@BY_KEPT
def test_nothing_is_changed_in_place_and_what_is_of_today_stays(kept: str):
    config = stored(kept)
    before = copy.deepcopy(config)
    once = upgrade(config, written(kept))
    assert before == config
    assert upgrade(once, FORMAT) == once
    assert encode(decode(once)) == once


def test_classes_of_the_users_own_keep_their_options():
    own = {
        "model": {"_target_": "mine.UNet", "decay": 3},
        "schedule": {"_target_": "ddpm_cli_extras.schedule", "timesteps": 10},
        "ema": {"_target_": "mine.EMA", "_partial_": True, "decay": 0.5},
        "data": {"_target_": "mine.data"},
        "sampler": {"_target_": "mine.sampler"},
        "trainer": {"_target_": "mine.Trainer", "shard": True},
    }
    for written in (1, 2):
        found = decode(upgrade(own, written))
        assert {group: found[group] for group in own} == own | {"data": {"_target_": "mine.data", "holdout": 0}}
    assert decode(encode(own)) == own
    assert set(targets_in(own)) == {node["_target_"] for node in own.values()}


@pytest.mark.parametrize("format", [0, 4, -1, True, 1.0, "1", None, [1], {"format": 1}])
def test_other_formats_are_refused(format: object):
    kept = KEPT["format_1"]
    text = json.dumps(json.loads(kept.read_text()) | {"format": format})
    with pytest.raises(ValueError, match="is of another checkpoint format; this version reads formats 1 to 3"):
        parse(text, kept)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
KEYS = ("_target_", "_partial_", "decay", "decays", "posthoc", "shard", "fsdp", "variance")
OLD = [target for config in map(stored, EARLIER) for target in targets_in(config)] + [row[1] for row in FORMAT_2]
NEW = [name for _, target, _, name in FORMAT_2] + [target for group in GROUPS for target in shipped_targets()[group]]
TARGETS = st.builds(
    lambda target, rest: rest | {"_target_": target},
    st.sampled_from(OLD + NEW),
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
)
NODES = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON)) | TARGETS
NESTED = st.builds(lambda node, inner: node | {"variance": inner}, NODES, NODES)
ANY = st.dictionaries(st.sampled_from(["timesteps", "name", "seed", *GROUPS]), JSON | NODES | NESTED)


@settings(max_examples=40, deadline=None)
@given(ANY, st.sampled_from(range(1, FORMAT + 1)))
def test_any_json_is_survived(config: dict, written: int):
    before = copy.deepcopy(config)
    upgraded = upgrade(config, written)
    found = decode(upgraded)
    assert repr(config) == repr(before)
    kept = {"timestep_sampler" if written < 3 and key == "timesteps" else key for key in config}
    assert kept <= found.keys()
    assert found.keys() - kept <= ({"loss", "timestep_sampler"} if written == 1 else set())
    short = encode(found)
    assert json.dumps(encode(decode(short)), sort_keys=True) == json.dumps(short, sort_keys=True)
    with contextlib.suppress(ConfigError):
        check_config(found)
