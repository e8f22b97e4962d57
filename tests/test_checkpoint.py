"""Checkpoints: what is saved comes back, what is damaged is named, what is foreign builds nothing."""

import ast
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm_cli import checkpoint, train
from ddpm_cli.checkpoint import CheckpointError, Metadata
from ddpm_cli.checkpoint.metadata import parse
from ddpm_cli.checkpoint.pretrained import load
from ddpm_cli.checkpoint.validate import MisfitError, check_ddpm, check_node, check_state
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.shipped import shipped_targets
from ddpm_cli.config.signatures import signature
from ddpm_cli.diffusion.variance import FixedLarge
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.signals import Stop

NETWORK = {"image_size": 8, "in_channels": 1, "base_channels": 8, "channel_mults": [1], "num_res_blocks": 1}
NETWORK |= {"attention_resolutions": [], "dropout": 0.0, "norm_groups": 4}
# What a file that leaves it out is taken to mean.
NETWORK |= {"head_channels": None, "norm_eps": 1e-6, "time_cos_first": False, "time_freq_shift": 1, "time_scale": 1.0}
NETWORK |= {"downsample_padding": "same", "scale_shift_norm": False, "resblock_updown": False, "null_label": True}
UNIFORM = {"_target_": "ddpm_cli.diffusion.weighting.Uniform"}
CONFIG = {
    "model": {"_target_": "ddpm_cli.models.unet.UNet", **NETWORK},
    "schedule": {"_target_": "ddpm_cli.diffusion.schedule.linear", "timesteps": 10},
    "prediction": {"_target_": "ddpm_cli.diffusion.prediction.Epsilon"},
    "weighting": UNIFORM,
    "variance": {"_target_": "ddpm_cli.diffusion.variance.FixedLarge"},
    "loss": {"_target_": "ddpm_cli.diffusion.loss.Simple"},
}


def weights() -> dict[str, torch.Tensor]:
    """Of a network, in the one layout in memory that the safetensors library takes."""
    return {name: tensor.contiguous() for name, tensor in UNet(**NETWORK).state_dict().items()}


def describe(step: int, **changes) -> Metadata:
    known = {"step": step, "image_shape": (1, 8, 8), "images": 9, "config": CONFIG, "versions": {"torch": "2"}}
    return Metadata(**known | changes)


def write(directory: Path, step: int = 5, **changes) -> Path:
    torch.manual_seed(step)
    ema, model = (UNet(**NETWORK).state_dict() for _ in range(2))
    training = {f"model.{name}": value for name, value in model.items()} | {"counter.step": torch.tensor(step)}
    return checkpoint.save(directory / "checkpoints", ema=ema, training=training, description=describe(step, **changes))


def test_what_is_saved_comes_back(tmp_path: Path):
    path = write(tmp_path)
    assert path == tmp_path / "checkpoints" / "step_00000005"
    found = checkpoint.verify(path, *checkpoint.FILES)
    ema, training = checkpoint.load_ema(found), checkpoint.load_training(found)
    assert found.metadata == checkpoint.verify(path, checkpoint.EMA_FILE).metadata == describe(5)
    assert training["counter.step"].item() == 5
    for name, value in load_file(path / "ema.safetensors").items():
        assert torch.equal(ema[name], value)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000005"]


@pytest.mark.parametrize("what", ["", "/", "/step_00000005", "/step_00000005/ema.safetensors"])
def test_load_takes_a_run_a_checkpoint_or_its_ema_file(tmp_path: Path, what: str):
    path = write(tmp_path)
    found = load(f"{tmp_path}/checkpoints{what}" if what else tmp_path)
    assert found.step == 5
    assert found.image_shape == (1, 8, 8)
    assert found.ddpm.schedule.timesteps == 10
    assert isinstance(found.ddpm.variance, FixedLarge)
    assert not found.ddpm.training
    for name, value in load_file(path / "ema.safetensors").items():
        assert torch.equal(found.ddpm.model.state_dict()[name], value)


def test_an_ema_file_alone_is_enough(tmp_path: Path):
    alone = tmp_path / "shared.safetensors"
    (write(tmp_path) / "ema.safetensors").rename(alone)
    assert load(alone).ddpm.sample(2, 8, 1, show_progress=False).shape == (2, 1, 8, 8)
    with pytest.raises(CheckpointError, match="only EMA weights"):
        load(alone, weights="model")


def test_the_networks_own_weights_can_be_asked_for(tmp_path: Path):
    path = write(tmp_path)
    saved = load_file(path / "training.safetensors")
    for name, value in load(path, weights="model").ddpm.model.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])
    with pytest.raises(ConfigError, match="ema: expected a group of options, got null"):
        load(path, weights="emma")  # this configuration says nothing of the averages it has


def test_the_newest_are_kept_and_the_newest_is_found(tmp_path: Path):
    for step in (2, 10, 9, 11, 100_000_000):
        write(tmp_path, step)
    checkpoint.remove_old(tmp_path / "checkpoints", keep_last=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000011", "step_100000000"]
    assert checkpoint.newest(tmp_path).name == "step_100000000", "by number, not by name"


def test_some_are_kept_for_good(tmp_path: Path):
    for step in range(1, 10):
        write(tmp_path, step)
        checkpoint.remove_old(tmp_path / "checkpoints", keep_last=2, keep_every=4)
    assert sorted(p.name[-1] for p in (tmp_path / "checkpoints").iterdir()) == ["4", "8", "9"]


def test_a_step_is_saved_once(tmp_path: Path):
    path = write(tmp_path, 5)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="this step has been saved"):
        write(tmp_path, 5, image_shape=(3, 8, 8))
    assert (path / "manifest.json").read_bytes() == before


def test_a_save_that_fails_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path: Path, monkeypatch):
    write(tmp_path, 5)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 6)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]
    checkpoint.verify(checkpoint.newest(tmp_path), *checkpoint.FILES)
    assert write(tmp_path, 6).name == "step_00000006", "once there is room"


def test_room_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch):
    write(tmp_path, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(os, "write", lambda *arguments: pytest.fail("something was written"))
    with pytest.raises(OSError, match=r"1 MB are needed, 0 MB are free: .*checkpoints"):
        write(tmp_path, 6)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]


def test_what_an_interrupted_save_left_is_cleared_away(tmp_path: Path):
    left_over = tmp_path / "checkpoints" / ".step_00000004.tmp"
    left_over.mkdir(parents=True)
    (left_over / "ema.safetensors").write_bytes(b"half")
    write(tmp_path, 5)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]


def test_the_files_are_what_the_safetensors_library_makes_of_the_same_tensors(tmp_path: Path):
    """Written here piece by piece; read, and compared, by the library."""
    tensors = {
        "_bytes": torch.arange(3, dtype=torch.uint8),
        "a": torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
        "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "half": torch.rand(3).bfloat16(),
        "flags": torch.tensor([True, False]),
    }
    path = checkpoint.save(tmp_path / "c", ema=tensors, training=tensors, description=describe(1))
    for file in ("ema.safetensors", "training.safetensors"):
        found = load_file(path / file)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


def test_resuming_falls_back_to_the_newest_whole_one(tmp_path: Path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    directory = tmp_path / "checkpoints"
    (directory / "step_00000004" / "manifest.json").unlink()
    (directory / "step_00000003" / "checkpoint.json").write_text("{}")
    whole, damaged = checkpoint.newest_whole(tmp_path)
    assert whole.path.name == "step_00000002"
    assert [path.name for path in damaged] == ["step_00000004", "step_00000003"]
    assert "manifest.json is missing" in damaged[directory / "step_00000004"]
    assert "checkpoint.json is damaged" in damaged[directory / "step_00000003"]
    for step in (1, 2):
        (directory / f"step_0000000{step}" / "ema.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: .*4.*3.*2.*1"):
        checkpoint.newest_whole(tmp_path)
    aside = checkpoint.set_aside(directory / "step_00000004", "damaged")
    assert aside.name == "damaged_step_00000004"
    assert checkpoint.newest(tmp_path).name == "step_00000003"


def test_a_pinned_checkpoint_is_that_one_and_no_other(tmp_path: Path):
    path = write(tmp_path)
    pin = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    assert load(tmp_path, sha256=pin.upper()).step == 5
    assert load(path / "ema.safetensors", sha256=pin).step == 5, "the EMA file of a checkpoint stands for it"
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((path / "ema.safetensors").read_bytes())
    assert load(alone, sha256=hashlib.sha256(alone.read_bytes()).hexdigest()).step == 5
    for wrong in (path, alone):
        with pytest.raises(CheckpointError, match="is not the one asked for: its SHA-256 is"):
            load(wrong, sha256=pin[:-1] + ("0" if pin[-1] != "0" else "1"))


@pytest.mark.parametrize("what", ["step_00000005", "step_00000005/ema.safetensors", "step_00000005/manifest.json"])
def test_links_are_not_followed_out_of_a_checkpoint(tmp_path: Path, what: str):
    write(tmp_path)
    inside = tmp_path / "checkpoints" / what
    inside.rename(tmp_path / "elsewhere")
    inside.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"not a plain file|is a link"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["ema.safetensors", "manifest.json"])
def test_a_pipe_in_a_checkpoint_is_no_trap(tmp_path: Path, name: str):
    file = write(tmp_path) / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: not a plain file"):
        load(tmp_path)


def test_a_small_file_cannot_describe_a_giant(tmp_path: Path):
    """4,096 channels would take 6 GB; the file, and what reading it may take, are a few kilobytes."""
    path = write(tmp_path, config=CONFIG | {"model": CONFIG["model"] | {"base_channels": 4096}})
    tracker = torch.profiler.profile(profile_memory=True)
    with tracker, pytest.raises(CheckpointError, match=r"do not fit the network it describes: .* is .*, should be"):
        load(path)
    taken = sum(max(0, event.cpu_memory_usage) for event in tracker.events() or [] if event.cpu_memory_usage)
    assert taken < 2 * (path / "ema.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("schedule", "timesteps", 100_001),
        ("model", "base_channels", 2**20),
        ("model", "num_res_blocks", 1000),
        ("model", "channel_mults", [1] * 65),
        ("model", "dropout", float("inf")),
        ("model", "image_size", "8" * 5000),
        ("model", "head_channels", 2**18 + 1),
        ("model", "norm_eps", 1e9),
        ("model", "norm_eps", float("nan")),
        ("model", "time_scale", 1e30),
        ("model", "time_freq_shift", -2),
        ("schedule", "timesteps", 10**400),
    ],
)
def test_every_number_of_a_checkpoint_has_a_range(tmp_path: Path, group: str, key: str, value: object):
    path = write(tmp_path, config=CONFIG | {group: CONFIG[group] | {key: value}})
    with pytest.raises(ConfigError, match=f"{group}.{key}: no checkpoint may hold this"):
        load(path)


@pytest.mark.parametrize(
    ("group", "target", "key", "value"),
    [
        ("model", "models.unet.UNet", "num_classes", 2**20 + 1),
        ("schedule", "diffusion.schedule.custom", "betas", [0.1] * (2**14 + 1)),
        ("schedule", "diffusion.schedule.custom", "betas", [float("nan")]),
        ("loss", "diffusion.loss.Hybrid", "bound_weight", 1e300),
        ("timestep_sampler", "training.timestep_samplers.LossSecondMoment", "history", 2**12 + 1),
        ("ema", "ema.ema.EMA", "posthoc", [0.1] * 9),
        ("ema", "ema.ema.EMA", "decays", [0.9] * 65),
        ("trainer", "training.trainer_config.TrainerConfig", "label_dropout", float("inf")),
    ],
)
def test_so_has_one_of_every_other_group(group: str, target: str, key: str, value: object):
    with pytest.raises(ConfigError, match=f"{group}.{key}: no checkpoint may hold this"):
        check_node(group, {"_target_": f"ddpm_cli.{target}", key: value})


# Whole numbers that may be as large as they like, and why.
HARMLESS = {
    "steps": "a sampler takes no more than T, which has a bound; a trainer goes on for as many as it says",
    "warmup_steps": "is compared with the step",
    "preview_every": "is compared with the step",
    "checkpoint_every": "is compared with the step",
    "eval_every": "is compared with the step",
    "keep_last": "is compared with how many there are",
    "keep_every": "is compared with the step",
    "interval": "is of the command line: no checkpoint holds guidance",
    "jump_length": "is of the command line: no checkpoint holds a mode",
    "resamplings": "is of the command line: no checkpoint holds a mode",
    "seeds": "are of the command line: no checkpoint holds a mode",
}


def whole_numbers() -> Iterator[tuple[str, str, str]]:
    """Every option of what we ship that takes whole numbers: its group, target and name."""
    for group, targets in shipped_targets().items():
        for target in targets:
            for option in signature(target) or []:
                names = [] if option.annotation is None else ast.walk(option.annotation)
                if any(isinstance(name, ast.Name) and name.id == "int" for name in names):
                    yield group, target, option.name


@pytest.mark.parametrize(("group", "target", "name"), [*whole_numbers()])
def test_every_whole_number_has_a_bound_or_is_known_to_be_harmless(group: str, target: str, name: str):
    for value in (2**62, [2**62]):
        refused = nullcontext() if name in HARMLESS else pytest.raises(ConfigError, match="no checkpoint may hold this")
        with refused, suppress_other_refusals():
            check_node(group, {"_target_": target, name: value})


@contextmanager
def suppress_other_refusals() -> Iterator[None]:
    """Inside, an option that is missing or of another type is not refused."""
    try:
        yield
    except ConfigError as error:
        if "no checkpoint may hold this" in str(error):
            raise


def test_what_is_known_to_be_harmless_is_still_there():
    assert HARMLESS.keys() <= {name for _, _, name in whole_numbers()}


@pytest.mark.parametrize("name", ["ema.safetensors", "training.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_before_anything_is_used(tmp_path: Path, name: str, damage: str):
    path = write(tmp_path)
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 1  # a bit of a weight: safetensors itself would load it
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-3])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is (damaged|missing)"):
        load(path, weights="ema" if name.startswith("ema") else "model")


def test_a_damaged_manifest_is_named(tmp_path: Path):
    path = write(tmp_path)
    (path / "manifest.json").write_text('{"ema.safetensors": 3}')
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        load(path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "text.txt").write_text("hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "garbage.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for name, says in {
        "nothing": "does not exist",
        "text.txt": "neither a run directory nor a checkpoint",
        "": "holds no checkpoint|neither",
        "foreign.safetensors": "is not an EMA file of ddpm-cli",
        "garbage.safetensors": "garbage.safetensors is damaged: a header of",
        "empty": "holds no checkpoint",
    }.items():
        with pytest.raises(CheckpointError, match=says):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 4}, "another checkpoint format; this version reads formats 1 to 3"),
        ({"format": True}, "another checkpoint format"),
        ({"step": "abc"}, "its description is invalid: ValueError: step 'abc'"),
        ({"step": -1}, "step -1"),
        ({"step": True}, "step True"),
        ({"images": None}, "images None"),
        ({"image_shape": ["a", "b", "c"]}, "image_shape"),
        ({"image_shape": [1, -5, 8]}, "image_shape"),
        ({"image_shape": [1, 60000, 60000]}, "too large"),
        ({"image_shape": 3}, "its description is invalid"),
        ({"config": []}, "config and versions must be objects"),
        ({"config": {}}, "its configuration has no 'model'"),
        ({"surprise": 1}, "its description is invalid: TypeError"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(tmp_path: Path, change: dict, says: str):
    file = tmp_path / "x.safetensors"
    description = json.loads(describe(1).as_json()) | change
    save_file(weights(), file, {"ddpm_cli": json.dumps(description)})
    with pytest.raises(CheckpointError, match=says):
        load(file)


@pytest.mark.parametrize("text", ["[]", "{", "null", "[" * 200_000])
def test_headers_that_are_no_description_are_refused(tmp_path: Path, text: str):
    file = tmp_path / "x.safetensors"
    save_file(weights(), file, {"ddpm_cli": text})
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load(file)


@pytest.mark.parametrize("size", [2**19 + 100, 2**20, 2**40])
def test_a_header_larger_than_its_data_is_refused(tmp_path: Path, size: int):
    file = tmp_path / "x.safetensors"
    file.write_bytes(size.to_bytes(8, "little") + b"{}" + b" " * (min(size, 2**20) - 2) + bytes(1000))
    with pytest.raises(CheckpointError, match=rf"x\.safetensors is damaged: a header of {size} bytes"):
        load(file)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_of_16_bits_or_more_are_refused(tmp_path: Path, dtype: torch.dtype):
    """They would take another size in memory than in the file, or lose what they hold."""
    file = tmp_path / "x.safetensors"
    described = {"ddpm_cli": describe(5).as_json()}
    save_file({name: tensor.to(dtype) for name, tensor in weights().items()}, file, described)
    with pytest.raises(CheckpointError, match=rf"does not fit .*: it is {str(dtype)[6:]}, should be float32"):
        load(file)
    save_file({name: tensor.half() for name, tensor in weights().items()}, file, described)
    assert load(file).step == 5


def test_a_message_repeats_little_of_what_is_foreign(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    save_file(weights() | {"a" * 400_000: torch.zeros(1)}, file, {"ddpm_cli": describe(5).as_json()})
    with pytest.raises(CheckpointError, match=r"aaa\.\.\. is ") as refused:
        load(file)
    assert len(str(refused.value)) < 1000
    save_file(weights(), file, {"ddpm_cli": json.dumps({"format": 3, "b" * 100_000: 1, "image_shape": [1, 8, 8]})})
    with pytest.raises(CheckpointError, match="description is invalid") as refused:
        load(file)
    assert len(str(refused.value)) < 1000


def test_images_the_network_does_not_take_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model.in_channels: is 1, but the checkpoint's images are \[3, 8, 8\]"):
        load(write(tmp_path / "grey", image_shape=(3, 8, 8)))
    with pytest.raises(ConfigError, match=r"model.image_size: is 8, but the checkpoint's images are \[1, 8, 4096\]"):
        load(write(tmp_path / "wide", image_shape=(1, 8, 4096)))


@pytest.mark.parametrize(
    ("group", "node"),
    [
        ("model", {"_target_": "os.system", "command": "touch canary"}),
        ("model", {"_target_": "ddpm_cli.data.folder.folder", "path": "/"}),
        ("schedule", {"_target_": "ddpm_cli.models.unet.os.system", "command": "touch canary"}),
        ("schedule", {"_target_": "ddpm_cli.diffusion.schedule.linear", "timesteps": {"_target_": "os.getpid"}}),
        ("variance", {"_target_": "builtins.exec", "_partial_": True}),
        ("weighting", "ddpm_cli.diffusion.weighting.Uniform"),
        ("prediction", {"_target_": ["os.system"]}),
        ("weighting", UNIFORM | {"log_snr": [{"_target_": "os.system", "command": "touch canary"}]}),
        ("model", CONFIG["model"] | {"image_size": [{"_target_": "os.system", "command": "touch canary"}, 8]}),
        ("weighting", UNIFORM | {"log_snr": 3}),
        ("prediction", CONFIG["prediction"] | {"_partial_": True}),
        ("schedule", CONFIG["schedule"] | {"timesteps": 10**13}),
        ("model", CONFIG["model"] | {"base_channels": 10**9}),
        ("model", CONFIG["model"] | {"downsample_padding": "circular"}),
        ("model", CONFIG["model"] | {"downsample_padding": ["same"]}),
        ("model", CONFIG["model"] | {"scale_shift_norm": 1}),
    ],
)
def test_a_checkpoint_builds_only_what_is_on_the_list(tmp_path: Path, monkeypatch, group: str, node: object):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, config=CONFIG | {group: node})
    with pytest.raises(ConfigError, match=r"not on the list|expected|no such option|cannot be|no checkpoint may hold"):
        load(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("group", ["model", "optimizer", "data", "trainer", "surprise"])
def test_resuming_builds_only_what_is_on_the_list_whatever_the_checkpoint_trusts(tmp_path: Path, group: str):
    hostile = {group: {"_target_": "os.system", "command": f"touch {tmp_path}/canary"}, "trust": ["os.system"]}
    write(tmp_path, config=CONFIG | hostile)
    with pytest.raises(ConfigError, match=rf"{group}._target_: os\.system is not on the list"):
        train.start(
            {}, Invocation(resume=str(tmp_path), changes={"resume": str(tmp_path)}, sweep_directory=None), Stop()
        )
    assert not (tmp_path / "canary").exists()


def test_a_training_state_must_have_the_shapes_it_had():
    """A fused optimizer would write beyond the end of moments that are too short."""
    config = CONFIG | {"optimizer": {"_target_": "ddpm_cli.training.optimizers.adamw", "_partial_": True, "lr": 1e-3}}
    weights = {name: tuple(tensor.shape) for name, tensor in UNet(**NETWORK).state_dict().items()}
    state = {f"model.{name}": shape for name, shape in weights.items()} | {"counter.step": ()}
    for name, shape in weights.items():
        state |= {f"optimizer.{name}.{moment}": shape for moment in ("exp_avg", "exp_avg_sq")}
        state[f"optimizer.{name}.step"] = ()
    config["ema"] = {
        "_target_": "ddpm_cli.ema.ema.EMA",
        "_partial_": True,
        "decays": [0.9, 0.99],
        "posthoc": [0.1],
    }
    for name, shape in weights.items():
        state |= {f"ema.0.99.{name}": shape, f"posthoc.0.1.{name}": shape}
    loss_second_moment = {
        "_target_": "ddpm_cli.training.timestep_samplers.LossSecondMoment",
        "_partial_": True,
        "history": 3,
        "uniform": 0.1,
    }
    config["timestep_sampler"] = loss_second_moment
    state |= {"timesteps.losses": (10, 3), "timesteps.seen": (10,)}
    network = check_ddpm(config, (1, 8, 8), trust=())
    check_state(config, state, network, trust=())
    for change in (
        {"ema.0.99.conv_in.weight": (1,)},
        {"ema.0.9.conv_in.weight": state["model.conv_in.weight"]},
        {"posthoc.0.1.conv_in.weight": ()},
        {"posthoc.0.10.conv_in.weight": state["model.conv_in.weight"]},
        {"timesteps.losses": (10, 10)},
        {"timesteps.other": ()},
        {"optimizer.conv_in.weight.exp_avg": (1,)},
        {"optimizer.conv_in.weight.step": (7,)},
        {"optimizer.other.exp_avg": (1,)},
        {"model.conv_in.weight": (8, 1, 3)},
        {"counter.step": (10**9,)},
        {"surprise": ()},
    ):
        with pytest.raises(MisfitError, match="not fit the network it describes: "):
            check_state(config, state | change, network, trust=())
    for missing in ("ema.0.99.conv_in.bias", "posthoc.0.1.conv_out.weight", "timesteps.seen"):
        with pytest.raises(MisfitError, match=f"{missing} is missing"):
            check_state(config, {n: s for n, s in state.items() if n != missing}, network, trust=())


def test_a_class_of_the_users_own_needs_their_word(tmp_path: Path):
    """`torch.nn.Identity` stands for a network of the user's own; it has no weights to fit the ones saved here."""
    path = write(tmp_path, config=CONFIG | {"model": {"_target_": "torch.nn.Identity"}})
    with pytest.raises(ConfigError, match=r"torch\.nn\.Identity is not on the list"):
        load(path)
    with pytest.raises(CheckpointError, match="do not fit the network"):
        load(path, trust=["torch.nn.Identity"])


@pytest.mark.parametrize("data", [[], {"images": "ab"}, {"images": 7}, {"images": "A" * 64}, {"images": "a" * 65}])
def test_what_it_says_of_its_data_can_only_be_digests(data):
    text = describe(5, data={"images": "0" * 64}).as_json()
    assert parse(text, Path("x")).data == {"images": "0" * 64}
    with pytest.raises(CheckpointError, match="x: its description is invalid: ValueError: data must be"):
        parse(json.dumps(json.loads(text) | {"data": data}), Path("x"))
    old = {key: value for key, value in json.loads(text).items() if key != "data"}
    assert parse(json.dumps(old), Path("x")).data == {}
