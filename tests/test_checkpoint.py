"""Checkpoints: what is saved comes back, what is damaged is named, what is foreign builds nothing."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm_cli import checkpoint, train
from ddpm_cli.checkpoint import CheckpointError, Description
from ddpm_cli.cli import Call
from ddpm_cli.config import ConfigError
from ddpm_cli.diffusion.variance import fixed_large
from ddpm_cli.models.unet import UNet
from ddpm_cli.pretrained import load

NETWORK = {"image_size": 8, "in_channels": 1, "base_channels": 8, "channel_mults": [1], "num_res_blocks": 1}
NETWORK |= {"attention_resolutions": [], "dropout": 0.0, "norm_groups": 4}
SIMPLE = {"_target_": "ddpm_cli.diffusion.weighting.simple", "_partial_": True}
CONFIG = {
    "model": {"_target_": "ddpm_cli.models.unet.UNet", **NETWORK},
    "schedule": {"_target_": "ddpm_cli.diffusion.schedule.linear", "timesteps": 10},
    "prediction": {"_target_": "ddpm_cli.diffusion.prediction.Epsilon"},
    "weighting": SIMPLE,
    "variance": {"_target_": "ddpm_cli.diffusion.variance.fixed_large", "_partial_": True},
}


def describe(step: int, **changes) -> Description:
    known = {"step": step, "image_shape": (1, 8, 8), "images": 9, "config": CONFIG, "versions": {"torch": "2"}}
    return Description(**known | changes)


def write(directory: Path, step: int = 5, *, keep_last: int = 3, **changes) -> Path:
    torch.manual_seed(step)
    ema, model = (UNet(**NETWORK).state_dict() for _ in range(2))
    training = {f"model.{name}": value for name, value in model.items()} | {"counter.step": torch.tensor(step)}
    description = describe(step, **changes)
    return checkpoint.save(
        directory / "checkpoints", ema=ema, training=training, description=description, keep_last=keep_last
    )


def test_what_is_saved_comes_back(tmp_path: Path):
    path = write(tmp_path)
    assert path == tmp_path / "checkpoints" / "step_00000005"
    ema, description = checkpoint.load_ema(path)
    training, again = checkpoint.load_training(path)
    assert description == again == describe(5)
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
    assert isinstance(found.ddpm.variance, partial)
    assert found.ddpm.variance.func is fixed_large
    assert not found.ddpm.training
    for name, value in load_file(path / "ema.safetensors").items():
        assert torch.equal(found.ddpm.model.state_dict()[name], value)


def test_an_ema_file_alone_is_enough(tmp_path: Path):
    alone = tmp_path / "shared.safetensors"
    (write(tmp_path) / "ema.safetensors").rename(alone)
    assert load(alone).ddpm.sample(2, 8, 1, show_progress=False).shape == (2, 1, 8, 8)
    with pytest.raises(CheckpointError, match="EMA weights alone"):
        load(alone, weights="model")


def test_the_networks_own_weights_can_be_asked_for(tmp_path: Path):
    path = write(tmp_path)
    saved = load_file(path / "training.safetensors")
    for name, value in load(path, weights="model").ddpm.model.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])
    with pytest.raises(ValueError, match="weights must be 'ema' or 'model'"):
        load(path, weights="emma")


def test_the_newest_are_kept_and_the_newest_is_found(tmp_path: Path):
    for step in (2, 10, 9, 11):
        write(tmp_path, step, keep_last=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000010", "step_00000011"]
    assert checkpoint.newest(tmp_path).name == "step_00000011"


def test_the_same_step_can_be_saved_again(tmp_path: Path):
    write(tmp_path, 5)
    write(tmp_path, 5, image_shape=(3, 8, 8))
    assert checkpoint.load_ema(checkpoint.newest(tmp_path))[1].image_shape == (3, 8, 8)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_save_that_fails_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path: Path, monkeypatch):
    write(tmp_path, 5)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 6)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]
    checkpoint.verify(checkpoint.newest(tmp_path), *("ema.safetensors", "training.safetensors", "checkpoint.json"))


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
        "foreign.safetensors": "is no EMA file of ddpm-cli",
        "garbage.safetensors": "is no EMA file of ddpm-cli",
        "empty": "holds no checkpoint",
    }.items():
        with pytest.raises(CheckpointError, match=says):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "another checkpoint format; this version reads format 1"),
        ({"step": "abc"}, "its description cannot be: ValueError: step 'abc'"),
        ({"step": -1}, "step -1"),
        ({"step": True}, "step True"),
        ({"images": None}, "images None"),
        ({"image_shape": ["a", "b", "c"]}, "image_shape"),
        ({"image_shape": [1, -5, 8]}, "image_shape"),
        ({"image_shape": [1, 60000, 60000]}, "too large"),
        ({"image_shape": 3}, "its description cannot be"),
        ({"config": []}, "config and versions must be objects"),
        ({"config": {}}, "its configuration has no 'model'"),
        ({"surprise": 1}, "its description cannot be: TypeError"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(tmp_path: Path, change: dict, says: str):
    file = tmp_path / "x.safetensors"
    description = json.loads(describe(1).as_json()) | change
    save_file(UNet(**NETWORK).state_dict(), file, {"ddpm_cli": json.dumps(description)})
    with pytest.raises(CheckpointError, match=says):
        load(file)


@pytest.mark.parametrize("text", ["[]", "{", "null", "[" * 200_000])
def test_headers_that_are_no_description_are_refused(tmp_path: Path, text: str):
    file = tmp_path / "x.safetensors"
    save_file(UNet(**NETWORK).state_dict(), file, {"ddpm_cli": text})
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load(file)


def test_images_the_network_does_not_take_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="model: cannot take images of shape"):
        load(write(tmp_path, image_shape=(3, 8, 8)))


@pytest.mark.parametrize(
    ("group", "node"),
    [
        ("model", {"_target_": "os.system", "command": "touch canary"}),
        ("model", {"_target_": "ddpm_cli.data.folder.folder", "path": "/"}),
        ("schedule", {"_target_": "ddpm_cli.models.unet.os.system", "command": "touch canary"}),
        ("schedule", {"_target_": "ddpm_cli.diffusion.schedule.linear", "timesteps": {"_target_": "os.getpid"}}),
        ("variance", {"_target_": "builtins.exec", "_partial_": True}),
        ("weighting", "ddpm_cli.diffusion.weighting.simple"),
        ("prediction", {"_target_": ["os.system"]}),
        ("weighting", SIMPLE | {"log_snr": [{"_target_": "os.system", "command": "touch canary"}]}),
        ("model", CONFIG["model"] | {"image_size": [{"_target_": "os.system", "command": "touch canary"}, 8]}),
        ("weighting", {"_target_": SIMPLE["_target_"], "log_snr": 3}),
        ("prediction", CONFIG["prediction"] | {"_partial_": True}),
        ("schedule", CONFIG["schedule"] | {"timesteps": 10**13}),
        ("model", CONFIG["model"] | {"base_channels": 10**9}),
    ],
)
def test_a_checkpoint_builds_only_what_is_on_the_list(tmp_path: Path, monkeypatch, group: str, node: object):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, config=CONFIG | {group: node})
    with pytest.raises(ConfigError, match=r"not on the list|expected|no such option|cannot be|model: |schedule: "):
        load(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("group", ["model", "optimizer", "data", "trainer", "surprise"])
def test_resuming_builds_only_what_is_on_the_list_whatever_the_checkpoint_trusts(tmp_path: Path, group: str):
    hostile = {group: {"_target_": "os.system", "command": f"touch {tmp_path}/canary"}, "trust": ["os.system"]}
    write(tmp_path, config=CONFIG | hostile)
    with pytest.raises(ConfigError, match=rf"{group}._target_: os\.system is not on the list"):
        train.start({}, Call(resume=str(tmp_path), changes={"resume": str(tmp_path)}, sweep_directory=None))
    assert not (tmp_path / "canary").exists()


def test_a_class_of_the_users_own_needs_their_word(tmp_path: Path):
    """`torch.nn.Identity` stands for a network of the user's own; it has no weights to fit the ones saved here."""
    path = write(tmp_path, config=CONFIG | {"model": {"_target_": "torch.nn.Identity"}})
    with pytest.raises(ConfigError, match=r"torch\.nn\.Identity is not on the list"):
        load(path)
    with pytest.raises(CheckpointError, match="do not fit the network"):
        load(path, trust=["torch.nn.Identity"])
