"""Whatever reads a checkpoint, of however many processes: each file is compared with its SHA-256 once."""

import hashlib
import pickle
import shutil
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from commands import run_ranks
from torch import Tensor

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import EMA_FILE, MANIFEST_FILE, TRAINING_FILE, CheckpointError, Metadata
from ddpm_cli.checkpoint.metadata import DESCRIPTION_FILE
from ddpm_cli.checkpoint.pretrained import load, rebuild, select
from ddpm_cli.checkpoint.training_state import load_state
from ddpm_cli.ema.ema import EMA
from ddpm_cli.models.unet import UNet

KEPT = Path(__file__).parent / "kept" / "format_3"
NETWORK = {"image_size": 8, "in_channels": 1, "base_channels": 4, "channel_mults": [1], "num_res_blocks": 1}
NETWORK |= {"attention_resolutions": [], "dropout": 0.0, "norm_groups": 4}
CONFIG = {
    "model": {"_target_": "ddpm_cli.models.unet.UNet", **NETWORK},
    "schedule": {"_target_": "ddpm_cli.diffusion.schedule.linear", "timesteps": 10},
    "prediction": {"_target_": "ddpm_cli.diffusion.prediction.Epsilon"},
    "weighting": {"_target_": "ddpm_cli.diffusion.weighting.Uniform"},
    "variance": {"_target_": "ddpm_cli.diffusion.variance.FixedLarge"},
    "loss": {"_target_": "ddpm_cli.diffusion.loss.Simple"},
    "ema": {"_target_": "ddpm_cli.ema.ema.EMA", "_partial_": True, "decays": [0.9, 0.99], "posthoc": [0.05, 0.1]},
}
STEPS = (1, 2, 3)
SNAPSHOTS = [f"step_0000000{step}.safetensors" for step in STEPS]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three steps, with a checkpoint and a snapshot of each."""
    torch.manual_seed(0)
    model = UNet(**NETWORK)
    ema = EMA(model, decays=CONFIG["ema"]["decays"], posthoc=CONFIG["ema"]["posthoc"])
    for step in STEPS:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(model)
        known = Metadata(step=step, image_shape=(1, 8, 8), images=9, config=CONFIG, versions={})
        state = {f"model.{name}": value for name, value in model.state_dict().items()} | ema.state_dict()
        state["counter.step"] = torch.tensor(step)
        checkpoint.save_snapshot(tmp_path / "averages", ema.snapshot(), known, updates=step)
        checkpoint.save(tmp_path / "checkpoints", ema=ema.model.state_dict(), training=state, description=known)
    return tmp_path


@pytest.fixture
def hashed(monkeypatch) -> Counter[str]:
    """How often each file has been hashed, by name; empty again at every look at it would be too much."""
    counts: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counting(stream, *arguments, **options):
        counts[Path(stream.name).name] += 1
        return digest(stream, *arguments, **options)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return counts


@pytest.fixture
def networks(monkeypatch) -> list[str]:
    """The device of every network that is built."""
    devices = []
    build = UNet.__init__

    def recording(self, *arguments, **options):
        devices.append(torch.empty(0).device.type)
        build(self, *arguments, **options)

    monkeypatch.setattr(UNet, "__init__", recording)
    return devices


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step_00000003"


WAYS = [
    ({}, [EMA_FILE]),
    ({"weights": "model"}, [TRAINING_FILE, DESCRIPTION_FILE]),
    ({"weights": "ema_0.9"}, [DESCRIPTION_FILE, EMA_FILE]),  # which file holds it, the description says
    ({"weights": "ema_0.99"}, [DESCRIPTION_FILE, TRAINING_FILE]),
    ({"ema_length": 0.05}, [EMA_FILE, SNAPSHOTS[-1]]),  # which is there
    ({"ema_length": 0.07}, [EMA_FILE, *SNAPSHOTS]),
    ({"sha256": True}, [EMA_FILE]),
    ({"sha256": True, "weights": "model"}, [TRAINING_FILE, DESCRIPTION_FILE]),
    ({"sha256": True, "weights": "ema_0.9"}, [DESCRIPTION_FILE, EMA_FILE]),
    ({"sha256": True, "weights": "ema_0.99"}, [DESCRIPTION_FILE, TRAINING_FILE]),
]


@pytest.mark.parametrize(("options", "files"), WAYS)
@pytest.mark.parametrize(
    "place", [".", "checkpoints", "checkpoints/step_00000003", f"checkpoints/step_00000003/{EMA_FILE}"]
)
def test_loading_hashes_each_file_that_it_reads_once(
    run: Path, hashed: Counter[str], networks: list[str], options: dict, files: list[str], place: str
):
    if "sha256" in options:
        options = options | {"sha256": hashlib.sha256((newest(run) / MANIFEST_FILE).read_bytes()).hexdigest()}
    load(run / place, **options)
    assert hashed == Counter(files)
    assert networks == ["meta", "cpu"], "once to compare shapes with, and once"


def test_an_ema_file_alone_is_hashed_if_it_is_pinned(run: Path, hashed: Counter[str]):
    alone = shutil.copy(newest(run) / EMA_FILE, run / "alone.safetensors")
    load(alone)
    load(alone, weights="ema_0.9")
    assert hashed == {}, "there is nothing to compare with"
    pin = hashlib.sha256(Path(alone).read_bytes()).hexdigest()
    for weights in ("ema", "ema_0.9"):
        load(alone, weights=weights, sha256=pin)
        assert hashed.pop("alone.safetensors") == 1


def test_resuming_hashes_each_file_once(run: Path, hashed: Counter[str], networks: list[str]):
    found, damaged = checkpoint.newest_whole(run)
    assert damaged == {}
    state = load_state(found)
    assert hashed == Counter(checkpoint.FILES)
    assert networks == ["meta"]
    assert state.training["counter.step"].item() == 3
    assert {f"model.{name}" for name in state.ema} <= state.training.keys()


def test_a_damaged_one_is_hashed_once_and_so_is_the_one_before(run: Path, hashed: Counter[str]):
    file = newest(run) / EMA_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found, damaged = checkpoint.newest_whole(run)
    assert (found.path.name, list(damaged)) == ("step_00000002", [newest(run)])
    assert hashed == Counter({EMA_FILE: 2, TRAINING_FILE: 1, DESCRIPTION_FILE: 1})
    load_state(found)
    assert hashed[EMA_FILE] == 2


# Handed on ------------------------------------------------------------------------------------------------------------


def test_what_has_been_verified_is_handed_on_and_stays_as_it_is(run: Path):
    found, _ = checkpoint.newest_whole(run)
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    with pytest.raises(FrozenInstanceError):
        again.path = run
    with pytest.raises(AssertionError, match="has not been verified"):
        checkpoint.load_training(checkpoint.verify(newest(run), EMA_FILE))


@pytest.mark.parametrize(("options", "files"), WAYS[:6])
def test_others_rebuild_what_one_has_selected_and_hash_nothing(
    run: Path, hashed: Counter[str], networks: list[str], options: dict, files: list[str]
):
    selection = select(run, **options)
    assert hashed == Counter(files)
    assert networks == []
    told = pickle.dumps(selection)
    assert len(told) < 20_000
    models = [rebuild(pickle.loads(told)).ddpm.model.state_dict() for _ in range(2)]
    assert hashed == Counter(files)
    assert networks == ["meta", "cpu"] * 2
    assert_equal(models[0], models[1])
    assert_equal(models[0], load(run, **options).ddpm.model.state_dict())


def test_what_others_are_told_fits_the_checkpoint_that_they_read(run: Path):
    """Files that have changed since are not verified again, but shapes are compared before any memory is taken."""
    selection = select(run, ema_length=0.07)
    (run / "averages" / SNAPSHOTS[0]).write_bytes((newest(run) / EMA_FILE).read_bytes())
    with pytest.raises(CheckpointError, match=r"step_00000001\.safetensors does not fit the checkpoint: .* is missing"):
        rebuild(selection)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# Several processes ---------------------------------------------------------------------------------------------------

# Each process notes what it hashes, then does what the command does.
COUNTING = """
import hashlib, os, sys
from importlib import import_module

digest = hashlib.file_digest


def counting(stream, *arguments, **options):
    with open(os.environ["HASHED"], "a") as file:
        print(os.environ["RANK"], os.path.basename(stream.name), file=file)
    return digest(stream, *arguments, **options)


hashlib.file_digest = counting
program = sys.argv.pop(1)
import_module(f"ddpm_cli.{program}").main()
"""


def two_processes(program: str, *arguments: str, cwd: Path) -> Counter[str]:
    """How often each file is hashed by two processes together; by name, with the rank before it."""
    done = run_ranks(program, program, *arguments, cwd=cwd, code=COUNTING, HASHED=str(cwd / "hashed"))
    assert done.returncode == 0, done.stderr
    return Counter((cwd / "hashed").read_text().splitlines())


@pytest.mark.parametrize(
    ("option", "files"),
    [
        ("weights=ema_0.99", [DESCRIPTION_FILE, TRAINING_FILE]),
        ("ema_length=0.07", [EMA_FILE, *SNAPSHOTS]),
    ],
)
def test_of_two_processes_that_sample_one_verifies(run: Path, option: str, files: list[str], tmp_path: Path):
    found = two_processes("sample", f"ckpt={run}", option, "n=2", "batch_size=1", "out=out", cwd=tmp_path)
    assert found == Counter(f"0 {name}" for name in files)


def test_of_two_processes_that_resume_one_verifies(tmp_path: Path):
    run = shutil.copytree(KEPT, tmp_path / "run")
    found = two_processes("train", f"resume={run}", cwd=tmp_path)
    assert found == Counter(f"0 {name}" for name in checkpoint.FILES)
