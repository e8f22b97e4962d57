"""Post-hoc EMA: averages of any length out of snapshots of two lengths, compared with those followed all along."""

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY_RUN, only, sample, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_ema import make_trainer
from torch import Tensor, nn

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import CheckpointError
from ddpm_cli.checkpoint.pretrained import load
from ddpm_cli.checkpoint.validate import check_node
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.ema import posthoc
from ddpm_cli.ema.ema import EMA
from ddpm_cli.ema.posthoc import LONGEST, check_length, coefficients, exponent, inner_product, newest_weight
from ddpm_cli.io import run_dir as run_directory
from ddpm_cli.training.checks import check_space
from ddpm_cli.training.train_state import capture

KEPT = (0.05, 0.10)


# The mathematics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.001, 0.05, 0.1, 0.2, 0.288])
def test_the_exponent_gives_a_profile_of_that_length(length: float):
    """It is the standard deviation of tau^gamma on [0, 1], which its moments say."""
    gamma = exponent(length)
    first, second = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert second - first**2 == pytest.approx(length**2, rel=1e-7)
    assert gamma > 0


def test_exponents_of_the_paper():
    assert [round(exponent(length), 2) for length in KEPT] == [16.97, 6.94]  # section 3.1


@pytest.mark.parametrize("length", [0, -0.1, LONGEST, 0.3, float("nan"), 1e-9])
def test_averages_cannot_be_of_every_length(length: float):
    with pytest.raises(ValueError, match=r"must be at least 0\.001 and below 0\.2887"):
        check_length(length)


def test_the_weight_of_the_newest_is_exact_where_t_is_large():
    gamma = exponent(0.05)
    assert newest_weight(1, gamma) == 1
    assert newest_weight(10, gamma) == pytest.approx(1 - 0.9 ** (gamma + 1))
    assert newest_weight(10**12, gamma) == pytest.approx((gamma + 1) / 10**12, rel=1e-9)


def test_inner_products_are_the_integrals():
    tau = (np.arange(200_000) + 0.5) / 200_000 * 8

    def profile(t: float, gamma: float) -> np.ndarray:
        return np.where(tau < t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0)

    for a in ((3.0, 16.97), (8.0, 6.94), (3.0, 0.5)):
        for b in ((8.0, 16.97), (3.0, 2.0), (1.5, 6.94)):
            assert float(inner_product(*a, *b)) == pytest.approx((profile(*a) * profile(*b)).mean() * 8, rel=1e-3)


def test_coefficients_of_one_that_is_there_and_of_others():
    times, lengths = [100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1]
    assert coefficients(times, lengths, t=200, length=0.05).tolist() == [0, 0, 1, 0]
    near = coefficients(times, lengths, t=200, length=0.05 + 1e-9)
    np.testing.assert_allclose(near, [0, 0, 1, 0], atol=1e-5)
    assert coefficients(times, lengths, t=200, length=0.07).sum() == pytest.approx(1, abs=1e-14)
    assert coefficients([7], [0.1], t=7, length=0.101).tolist() == [1]


def off(snapshots: int, length: float) -> float:
    """L2 distance of the profile that is made from the one of that length, over the latter's norm, by summation."""
    times, lengths = [100 * i for i in range(1, snapshots + 1) for _ in KEPT], [*KEPT] * snapshots
    t = times[-1]
    tau = (np.arange(400_000) + 0.5) / 400_000 * t
    made = np.zeros_like(tau)
    x = coefficients(times, lengths, t=t, length=length)
    for end, kept, count in zip(times, lengths, x, strict=True):
        gamma = exponent(kept)
        made += np.where(tau < end, count * (gamma + 1) * (tau / end) ** gamma / end, 0)
    gamma = exponent(length)
    right = (gamma + 1) * (tau / t) ** gamma / t
    return float(np.linalg.norm(made - right) / np.linalg.norm(right))


@pytest.mark.parametrize(
    ("snapshots", "length", "expected"),
    [(1, 0.08, 0.047), (4, 0.07, 0.0347), (20, 0.07, 0.00246), (20, 0.02, 0.087)],
)
def test_what_is_made_is_near_to_what_was_asked_for(snapshots: int, length: float, expected: float):
    assert off(snapshots, length) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("snapshots", "length", "says"),
    [
        (4, 0.001, "0.001 cannot be made from 4 snapshots of lengths 0.05, 0.1: .* 95% off; they make 0.036 to 0.14"),
        (4, 0.01, "59% off; they make 0.036 to 0.14$"),
        (4, 0.2, "22% off; they make 0.036 to 0.14$"),
        (4, 0.28, "59% off; they make 0.036 to 0.14$"),
        (20, 0.01, "30% off; they make 0.019 to 0.26$"),
        (160, 0.001, "47% off; they make 0.0034 to 0.28$"),
    ],
)
def test_lengths_that_the_snapshots_cannot_make_are_refused(snapshots: int, length: float, says: str):
    with pytest.raises(ValueError, match=says):
        off(snapshots, length)


def test_every_length_of_the_ranges_that_are_named_is_made():
    times, lengths = [10, 10, 10], [0.004, 0.05, 0.2]
    with pytest.raises(ValueError, match=r"they make .+ to .+, .+ to .+, .+ to .+") as refused:
        coefficients(times, lengths, t=10, length=0.001)
    ranges = str(refused.value).partition("they make ")[2].split(", ")
    assert len(ranges) == 3
    for ends in ranges:
        for end in ends.split(" to "):
            coefficients(times, lengths, t=10, length=float(end))
    with pytest.raises(ValueError, match=r"1 snapshot of .*; they make none$"):
        coefficients(times, lengths, t=10**6, length=0.001)


def random_walk(steps: int) -> Tensor:
    """A parameter of 500 numbers on its way: drift that slows down, and noise; `[steps, 500]`."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(steps, 500, generator=generator).cumsum(0) * 0.05
    return noise + torch.linspace(0, 1, steps).sqrt()[:, None] * torch.randn(500, generator=generator) * 5


@pytest.mark.parametrize(("length", "within"), [(0.06, 1e-3), (0.07, 1e-3), (0.08, 1e-3), (0.12, 1e-3), (0.2, 0.03)])
def test_a_length_that_was_not_kept_is_reconstructed(length: float, within: float):
    """In parts of what lies between the averages of 0.05 and 0.10, from 20 snapshots in 2,000 steps."""
    model = nn.ParameterDict({"x": torch.zeros(500)})
    ema = EMA(model, posthoc=[*KEPT, length])
    times, lengths, snapshots = [], [], []
    for step, value in enumerate(random_walk(2000), start=1):
        model["x"].data.copy_(value)
        ema.update(model)
        if step % 100 == 0:
            for kept in KEPT:
                times.append(step)
                lengths.append(kept)
                snapshots.append(ema.state_dict()[f"posthoc.{kept}.x"].double().clone())
    weights = torch.from_numpy(coefficients(times, lengths, t=2000, length=length))
    error = weights @ torch.stack(snapshots) - ema.state_dict()[f"posthoc.{length}.x"]
    scale = (snapshots[-1] - snapshots[-2]).norm()
    assert error.norm() < within * scale


# A run and its snapshots ---------------------------------------------------------------------------------------------


OPTIONS = [*TINY_RUN, "ema=posthoc", "ema.decays=[0.9,0.99]", "trainer.checkpoint_every=1"]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("posthoc")
    done = train(*OPTIONS, "name=run", cwd=place)
    assert done.returncode == 0, done.stderr
    return only(place / "outputs" / "run")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / run_directory.AVERAGES).iterdir())


def parameters(run: Path, **options) -> dict[str, Tensor]:
    return dict(load(run, **options).ddpm.model.named_parameters())


def test_every_checkpoint_leaves_a_snapshot_and_the_last_is_the_training_state(run: Path):
    assert names(run) == [f"step_0000000{step}.safetensors" for step in (1, 2, 3, 4)]
    assert len(list((run / "checkpoints").iterdir())) == 3, "of which older ones are removed"
    state = load_file(run / "checkpoints" / "step_00000004" / "training.safetensors")
    snapshot = load_file(run / "averages" / "step_00000004.safetensors")
    assert {name for name in state if name.startswith("posthoc.")} == snapshot.keys()
    for name, value in snapshot.items():
        assert torch.equal(value, state[name])


def test_a_length_that_was_kept_is_its_snapshot_and_others_lie_beyond_and_between(run: Path):
    snapshot = load_file(run / "averages" / "step_00000004.safetensors")
    for length in KEPT:
        for name, value in parameters(run, ema_length=length).items():
            assert torch.equal(value, snapshot[f"posthoc.{length}.{name}"])
    name = "conv_out.bias"
    between = parameters(run, ema_length=0.07)[name]
    assert not torch.equal(between, snapshot[f"posthoc.0.05.{name}"])
    early = parameters(run / "checkpoints" / "step_00000002", ema_length=0.05)[name]
    assert torch.equal(early, load_file(run / "averages" / "step_00000002.safetensors")[f"posthoc.0.05.{name}"])


def test_the_further_decay_is_what_the_training_state_holds(run: Path):
    state = load_file(run / "checkpoints" / "step_00000004" / "training.safetensors")
    for name, value in parameters(run, weights="ema_0.99").items():
        assert torch.equal(value, state[f"ema.0.99.{name}"])
    listed = r"ema, ema_0\.9 \(the same\), ema_0\.99, model"
    for wrong in ("ema_0.5", "ema_", "emma", "0.9", "posthoc", "optimizer", ""):
        with pytest.raises(ConfigError, match=rf"^weights: this checkpoint has {listed}, not '{wrong}'$"):
            load(run, weights=wrong)
    with pytest.raises(CheckpointError, match="holds only EMA weights"):
        load(shutil.copy(next(run.rglob("ema.safetensors")), run / "x.safetensors"), weights="ema_0.99")


def test_the_main_average_has_the_name_of_its_decay_too(run: Path):
    lone = shutil.copy(run / "checkpoints" / "step_00000004" / "ema.safetensors", run / "x.safetensors")
    main = parameters(run)
    for path in (run, lone):
        for name, value in parameters(path, weights="ema_0.9").items():
            assert torch.equal(value, main[name])


def test_the_command_samples_both(run: Path, tmp_path: Path):
    for argument, says in (("ema_length=0.08", "ema weights of length 0.08"), ("weights=ema_0.99", "ema_0.99 weights")):
        done = sample(f"ckpt={run}", "n=4", "sampler.steps=2", argument, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
    for length, says in (
        ("0.3", "ema_length: must be at least 0.001 and below 0.2887"),
        ("0.2", "ema_length: 0.2 cannot be made from 4 snapshots of lengths 0.05, 0.1: the nearest profile is 22% off"),
    ):
        done = sample(f"ckpt={run}", f"ema_length={length}", cwd=tmp_path)
        assert done.returncode == 2
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_was_snapped_beyond_the_checkpoint_is_made_again_bit_for_bit(run: Path, tmp_path: Path):
    directory = run / "averages"
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step_0000000{step}")
    (directory / ".step_00000003.safetensors.tmp").write_bytes(b"half")
    (directory / "step_00000009.safetensors").write_bytes(b"of a future that was killed")
    done = train(f"resume={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed  at step 2" in done.stdout
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ema_length": 0.0}, "ema_length: must be at least 0.001"),
        ({"ema_length": LONGEST}, "ema_length: must be at least 0.001 and below 0.2887"),
        (
            {"ema_length": 0.08, "weights": "model"},
            "ema_length: reconstructs an average, and cannot be combined with weights",
        ),
        ({"ema_length": 0.08, "sha256": "0" * 64}, "ema_length: cannot be combined with a SHA-256"),
    ],
)
def test_lengths_that_cannot_be_are_refused(run: Path, options: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        load(run, **options)


def test_a_lone_file_and_a_run_without_snapshots_have_no_lengths(run: Path, trained, tmp_path: Path):
    lone = shutil.copy(run / "checkpoints" / "step_00000004" / "ema.safetensors", tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"x\.safetensors is a single average; give the run directory"):
        load(lone, ema_length=0.08)
    elsewhere = shutil.copytree(run / "checkpoints" / "step_00000004", tmp_path / "step_00000004")
    for place in (elsewhere, trained[0]):
        with pytest.raises(ConfigError, match="has no averages to start from; a run with ema=posthoc keeps them"):
            load(place, ema_length=0.08)


# What is not as it was written ---------------------------------------------------------------------------------------


def rewrite(file: Path, change, **metadata: str) -> None:
    with safe_open(file, "pt") as opened:
        known = opened.metadata()
    save_file(change(load_file(file)), file, {**known, **metadata})


def test_damage_is_found(run: Path):
    file = run / "averages" / "step_00000003.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_00000003\.safetensors is damaged: its SHA-256 is not"):
        load(run, ema_length=0.08)
    file.write_bytes(content[:-3])
    with pytest.raises(CheckpointError, match=r"step_00000003\.safetensors is damaged"):
        load(run, ema_length=0.08)
    file.unlink()
    load(run, ema_length=0.08)  # one that is not there at all makes the others count for more
    (run / "averages" / "step_00000004.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the snapshot of step 4 is missing"):
        load(run, ema_length=0.08)


@pytest.mark.parametrize("what", ["averages", "averages/step_00000002.safetensors"])
def test_links_are_not_followed(run: Path, tmp_path: Path, what: str):
    inside = run / what
    inside.rename(tmp_path / "elsewhere")
    inside.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is a link|not a plain file"):
        load(run, ema_length=0.08)
    done = train(f"resume={run}", "trainer.steps=5", cwd=tmp_path)
    assert done.returncode == 2
    assert "is a link" in done.stderr


def test_a_pipe_is_no_trap(run: Path):
    os.mkfifo(run / "averages" / "step_00000000.safetensors")
    with pytest.raises(CheckpointError, match="not a plain file"):
        load(run, ema_length=0.08)


def _renamed(run: Path, file: Path) -> None:
    file.rename(file.with_name("step_00000001.safetensors"))


def _of_another_network(run: Path, file: Path) -> None:
    description = json.loads(safe_open(file, "pt").metadata()["ddpm_cli"])
    description["config"]["model"]["base_channels"] = 4096
    rewrite(file, lambda tensors: tensors, ddpm_cli=json.dumps(description))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_renamed, "is damaged: it says step 3, 3 updates"),
        (_of_another_network, "is of another run: its model or ema is not the checkpoint's"),
        (lambda _, file: rewrite(file, lambda t: t, updates="9"), "it says step 3, 9 updates"),
        (lambda _, file: rewrite(file, lambda t: t, updates="1"), "step_00000003.*it says step 3, 1 updates"),
        (lambda _, file: rewrite(file, lambda t: t, updates="-1"), "its header says '-1' updates"),
        (lambda _, file: rewrite(file, lambda t: t, updates="9" * 5000), "its header says"),
        (lambda _, file: rewrite(file, lambda t: t, sha256="0"), "its SHA-256 is not"),
        (lambda _, file: save_file(load_file(file), file), "is not a snapshot of ddpm-cli"),
        (
            lambda _, file: rewrite(file, lambda t: {**t, "surprise": torch.zeros(1)}),
            r"does not fit the checkpoint: surprise is \[1\], should be missing",
        ),
        (
            lambda _, file: rewrite(file, lambda t: {**t, "posthoc.0.05.conv_out.bias": torch.zeros(2**20)}),
            r"conv_out\.bias is \[1048576\], should be \[1\]",
        ),
        (lambda _, file: rewrite(file, lambda t: {name: value.half() for name, value in t.items()}), "SHA-256|float32"),
    ],
)
def test_foreign_snapshots_are_refused(run: Path, spoil, says: str):
    spoil(run, run / "averages" / "step_00000003.safetensors")
    with pytest.raises(CheckpointError, match=says):
        load(run, ema_length=0.08)


def test_many_averages_take_no_memory_out_of_proportion(run: Path, monkeypatch):
    """What a foreign run says is compared with its files before it is computed with, and that is bounded."""
    monkeypatch.setattr(np.linalg, "lstsq", lambda *_: pytest.fail("computed with before all were compared"))
    file = run / "averages" / "step_00000001.safetensors"
    rewrite(file, lambda tensors: {name: value[:0] for name, value in tensors.items()})
    with pytest.raises(CheckpointError, match=r"step_00000001\.safetensors does not fit the checkpoint"):
        load(run, ema_length=0.08)
    with pytest.raises(ConfigError, match=r"ema\.posthoc: no checkpoint may hold this: 64 entries"):
        check_node("ema", {"_target_": "ddpm_cli.ema.ema.EMA", "posthoc": [0.05 + 0.001 * i for i in range(64)]})


def test_many_snapshots_are_thinned_evenly_to_the_newest(run: Path, monkeypatch):
    times = []

    def count(found: list[int], *_, t: int, **__) -> np.ndarray:
        times.append((found, t))
        return np.eye(len(found))[-1]

    monkeypatch.setattr(posthoc, "coefficients", count)
    for most in (8, 7, 4):
        monkeypatch.setattr(posthoc, "MOST_TERMS", most)
        load(run, ema_length=0.08)
    assert times == [([1, 1, 2, 2, 3, 3, 4, 4], 4), ([1, 1, 2, 2, 4, 4], 4), ([1, 1, 4, 4], 4)]


def test_names_that_are_none_of_ours_are_not_looked_at(run: Path):
    expected = parameters(run, ema_length=0.08)["conv_out.bias"]
    for name in ("step_3.safetensors", "step_x.safetensors", "step_-0000001.safetensors", "notes.txt"):
        (run / "averages" / name).write_text("not ours")
    assert torch.equal(parameters(run, ema_length=0.08)["conv_out.bias"], expected)


def test_room_for_all_snapshots_is_asked_for_before_the_run(tmp_path: Path, monkeypatch):
    trainer = make_trainer(steps=1000)
    trainer.config = replace(trainer.config, checkpoint_every=1, keep_last=1)
    snapshots = 1000 * checkpoint.size(trainer.ema.snapshot(), {})
    checkpoints = 3 * checkpoint.size(trainer.ema.model.state_dict(), capture(trainer))
    for free, enough in ((snapshots, False), (snapshots + 2 * checkpoints, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        with nullcontext() if enough else pytest.raises(OSError, match="MB free, the run's checkpoints take"):
            check_space(tmp_path, trainer)


def test_a_snapshot_that_cannot_be_written_leaves_no_rubbish(run: Path, monkeypatch):
    directory = run / "averages"
    description = checkpoint.verify(run / "checkpoints" / "step_00000004", checkpoint.EMA_FILE).metadata
    before = names(run)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_snapshot(directory, {"x": torch.zeros(3)}, description, updates=4)
    assert names(run) == before
