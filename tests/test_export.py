"""A model of ours as diffusers reads it: the same answers, the same walks, the same weights when it comes back."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from exports import LINEAR, OURS, export, saved_run
from safetensors.torch import load_file
from torch import Tensor

from ddpm_cli import load
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.conversion.diffusers_unet import to_options, to_ours, with_null_label
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, Sampler, UniPC
from ddpm_cli.diffusion.threshold import Dynamic, Static, Unbounded
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall

T = 50
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": LINEAR,
    "linear with zero terminal SNR": LINEAR | {"zero_terminal_snr": True},
    "scaled linear": {
        "_target_": f"{OURS}.schedule.scaled_linear",
        "timesteps": T,
        "beta_start": 0.01,
        "beta_end": 0.2,
    },
    "cosine": {"_target_": f"{OURS}.schedule.cosine", "timesteps": T},
    "cosine as in the paper": {
        "_target_": f"{OURS}.schedule.cosine",
        "timesteps": T,
        "beta_min": 0,
        "beta_max": 0.999,
    },
    "cosine with zero terminal SNR": {
        "_target_": f"{OURS}.schedule.cosine",
        "timesteps": T,
        "zero_terminal_snr": True,
    },
    "sigmoid": {"_target_": f"{OURS}.schedule.sigmoid", "timesteps": T},
    "DDPM's own": {"_target_": f"{OURS}.schedule.linear", "timesteps": 1000},
    "cosine of 1,000 steps": {"_target_": f"{OURS}.schedule.cosine", "timesteps": 1000},
    "custom": {"_target_": f"{OURS}.schedule.custom", "betas": [0.01 + 0.003 * (i % 7) for i in range(T)]},
    "custom that ends in noise": {"_target_": f"{OURS}.schedule.custom", "betas": [0.02] * (T - 1) + [1.0]},
}
NAMED = {
    "linear": "linear",
    "linear with zero terminal SNR": "linear",
    "scaled linear": "scaled_linear",
    "DDPM's own": "linear",
    "cosine as in the paper": "squaredcos_cap_v2",
}
IN_NOISE = [name for name in SCHEDULES if "zero" in name or "ends" in name]
PREDICTIONS = ("Epsilon", "X0", "Velocity")
EXACT = {"rtol": 0, "atol": 1e-5}


def ours(run: Path) -> DDPM:
    return load(run).ddpm


def with_labels(model: torch.nn.Module, labels: list[int] | None) -> tuple[Tensor, ...]:
    return () if labels is None else (torch.tensor(labels),)


def answers(run: Path, out: Path, *, labels: list[int] | None = None, theirs: list[int] | None = None) -> tuple:
    """Ours and theirs to the same question, four images at their own t each."""
    ddpm, (channels, height, width), _, _ = load(run)
    x = torch.randn(4, channels, height, width, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 1, T // 2, T - 1])
    unet = UNet2DModel.from_pretrained(out, subfolder="unet").eval()
    with torch.no_grad():
        found = unet(x, t, *with_labels(unet, labels if theirs is None else theirs)).sample
        return ddpm.model(x, t, *with_labels(ddpm.model, labels)), found


def images_of(ddpm: DDPM, shape: tuple[int, ...], sampler: Sampler, **options: Any) -> Tensor:
    """Ours, in [-1, 1]."""
    count, channels, *size = shape
    generator = torch.Generator().manual_seed(3)
    return ddpm.sample(
        count, tuple(size), channels, show_progress=False, sampler=sampler, generator=generator, **options
    )


def ddim(ddpm: DDPM, shape: tuple[int, ...], steps: int, **options: Any) -> Tensor:
    """Ours, in [0, 1]."""
    return (images_of(ddpm, shape, DDIM(steps=steps, spacing="trailing"), **options) + 1) / 2


def their_ddim(out: Path, count: int, steps: int, *, clipped: bool = True) -> Tensor:
    pipeline = DDIMPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        count,
        torch.Generator().manual_seed(3),
        num_inference_steps=steps,
        use_clipped_model_output=clipped,
        output_type="pt",
    ).images
    assert isinstance(images, Tensor)
    return images


def scheduler_config(out: Path) -> dict[str, Any]:
    return json.loads((out / "scheduler" / "scheduler_config.json").read_text())


# An eps network says nothing of an image in pure noise: there is no such model.
TRAINABLE = [(n, p) for n in SCHEDULES for p in PREDICTIONS if not (p == "Epsilon" and n in IN_NOISE)]


# Every schedule and every prediction, in the default run not all pairs.
@pytest.mark.parametrize(
    ("name", "prediction"),
    [pytest.param(n, p, marks=[pytest.mark.slow] if p == "X0" and n != "cosine" else []) for n, p in TRAINABLE],
)
def test_the_same_answers_and_the_same_ddim_walk(name: str, prediction: str, tmp_path: Path):
    run = saved_run(tmp_path / "run", schedule=SCHEDULES[name], prediction=prediction)
    out = export(run, tmp_path / "out")
    expected, found = answers(run, out)
    torch.testing.assert_close(found, expected, **EXACT)
    said = scheduler_config(out)
    assert said.get("beta_schedule") == NAMED.get(name)
    assert ("trained_betas" in said) == (name not in NAMED)
    torch.testing.assert_close(their_ddim(out, 4, 10), ddim(ours(run), (4, 1, 8, 8), 10), **EXACT)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, [8, 16], [16, 8]], ids=str)
def test_grey_and_colour_square_and_not(channels: int, size: Any, tmp_path: Path):
    sides = [size, size] if isinstance(size, int) else size
    run = saved_run(tmp_path / "run", image_size=size, in_channels=channels, attention_resolutions=[min(sides) // 2])
    out = export(run, tmp_path / "out")
    expected, found = answers(run, out)
    torch.testing.assert_close(found, expected, **EXACT)
    assert json.loads((out / "unet" / "config.json").read_text())["sample_size"] == size
    torch.testing.assert_close(their_ddim(out, 2, 10), ddim(ours(run), (2, channels, *sides), 10), **EXACT)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_eps": 1e-5, "time_cos_first": True, "time_freq_shift": 0, "downsample_padding": "symmetric"},
        {"head_channels": 4, "attention_resolutions": [8, 4]},
        {"num_heads": 2, "attention_resolutions": [4]},
        {"scale_shift_norm": True},
        {"resblock_updown": True, "scale_shift_norm": True, "channel_mults": [1, 1, 2]},
    ],
    ids=str,
)
def test_the_networks_of_others_go_out_too(options: dict[str, Any], tmp_path: Path):
    run = saved_run(tmp_path / "run", **options)
    expected, found = answers(run, export(run, tmp_path / "out"))
    torch.testing.assert_close(found, expected, **EXACT)


# Labels ---------------------------------------------------------------------------------------------------------------


def test_labels_are_kept_with_one_more_for_none(tmp_path: Path):
    run = saved_run(tmp_path / "run", num_classes=3, label_dropout=0.1)
    out = export(run, tmp_path / "out")
    expected, found = answers(run, out, labels=[0, 1, 2, -1], theirs=[0, 1, 2, 3])
    torch.testing.assert_close(found, expected, **EXACT)
    table = UNet2DModel.from_pretrained(out, subfolder="unet").get_parameter("class_embedding.weight")
    assert table.shape[0] == 4
    assert not table[3].any()
    assert table[:3].any(dim=1).all()


def test_labels_are_left_out(tmp_path: Path):
    """The network without labels is the one that a label -1, or none, asks; the pipelines can draw from it."""
    run = saved_run(tmp_path / "run", num_classes=3, label_dropout=0.1)
    out = export(run, tmp_path / "out", labels="none")
    expected, found = answers(run, out)
    torch.testing.assert_close(found, expected, **EXACT)
    assert UNet2DModel.from_pretrained(out, subfolder="unet").class_embedding is None
    torch.testing.assert_close(their_ddim(out, 2, 10), ddim(ours(run), (2, 1, 8, 8), 10), **EXACT)


def test_a_network_that_needs_labels_has_no_label_for_none(tmp_path: Path):
    run = saved_run(tmp_path / "run", num_classes=3, null_label=False)
    out = export(run, tmp_path / "out")
    expected, found = answers(run, out, labels=[0, 1, 2, 0])
    torch.testing.assert_close(found, expected, **EXACT)
    assert len(UNet2DModel.from_pretrained(out, subfolder="unet").class_embedding.weight) == 3
    with pytest.raises(
        ConfigError, match=r"^labels=none: the network was trained with every label \(model\.null_label"
    ):
        export(run, tmp_path / "other", labels="none")


# Variances, thresholds, solvers ---------------------------------------------------------------------------------------


def walks(run: Path, out: Path, channels: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Ours and theirs by all T steps, with the same noise."""
    pipeline = DDPMPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(3, torch.Generator().manual_seed(5), num_inference_steps=T, output_type="pt").images
    generator = torch.Generator().manual_seed(5)
    assert isinstance(theirs, Tensor)
    images = ours(run).sample(3, 8, channels, show_progress=False, generator=generator, **options)
    return (images + 1) / 2, theirs


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("variance", ["FixedSmall", "FixedLarge", "LearnedRange"])
def test_the_pipeline_takes_the_same_ancestral_walk(variance: str, channels: int, tmp_path: Path):
    run = saved_run(tmp_path / "run", variance=variance, prediction="Velocity", in_channels=channels)
    expected, found = walks(run, export(run, tmp_path / "out"), channels)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("chosen", [FixedSmall(), FixedLarge()])
def test_another_variance_leaves_out_the_channels_of_a_learned_one(chosen: Any, tmp_path: Path):
    run = saved_run(tmp_path / "run", variance="LearnedRange", prediction="Velocity")
    name = type(chosen).__name__
    out = export(run, tmp_path / "out", variance={"_target_": f"{OURS}.variance.{name}"})
    expected, found = walks(run, out, 1, sampler=Ancestral(variance=chosen))
    torch.testing.assert_close(found, expected, **EXACT)
    assert UNet2DModel.from_pretrained(out, subfolder="unet").config.out_channels == 1
    torch.testing.assert_close(their_ddim(out, 2, 10), ddim(ours(run), (2, 1, 8, 8), 10), **EXACT)


@pytest.mark.parametrize(
    ("node", "threshold"),
    [
        ({"_target_": f"{OURS}.threshold.Dynamic", "quantile": 0.9}, Dynamic(quantile=0.9)),
        ({"_target_": f"{OURS}.threshold.Unbounded"}, Unbounded()),
    ],
    ids=["dynamic", "none"],
)
def test_thresholds_come_along(node: dict, threshold: Any, tmp_path: Path):
    run = saved_run(tmp_path / "run", prediction="X0")
    out = export(run, tmp_path / "out", threshold=node)
    found, expected = their_ddim(out, 2, 10), ddim(ours(run), (2, 1, 8, 8), 10, threshold=threshold)
    torch.testing.assert_close(found, expected, **EXACT)
    static = ddim(ours(run), (2, 1, 8, 8), 10)
    assert (static - expected).abs().max() > 0.05, "it has an effect here"


SOLVERS = {DPMSolverPP2M: DPMSolverMultistepScheduler, UniPC: UniPCMultistepScheduler}


@pytest.mark.slow
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["linear", "cosine", "linear with zero terminal SNR", "custom that ends in noise"])
def test_other_solvers_are_made_of_the_same_configuration(name: str, solver: Any, clips: bool, tmp_path: Path):
    """They clip x_0 only if told to, as in the card. Where a schedule ends in noise, theirs leaves a trace of x_0."""
    run = saved_run(tmp_path / "run", schedule=SCHEDULES[name], prediction="Velocity", variance="LearnedRange")
    out = export(run, tmp_path / "out", variance={"_target_": f"{OURS}.variance.FixedSmall"})
    unet = UNet2DModel.from_pretrained(out, subfolder="unet").eval()
    told = {"thresholding": True, "sample_max_value": 1.0} if clips else {}
    theirs = SOLVERS[solver].from_config(DDPMScheduler.from_pretrained(out, subfolder="scheduler").config, **told)
    theirs.set_timesteps(10)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    for t in theirs.timesteps:
        with torch.no_grad():
            output = unet(x, t).sample
        x = theirs.step(output, t, x).prev_sample
    sampler, threshold = solver(steps=10, spacing="trailing"), Static() if clips else Unbounded()
    expected = images_of(ours(run), (2, 1, 8, 8), sampler, threshold=threshold)
    torch.testing.assert_close(x.clamp(-1, 1), expected, rtol=0, atol=5e-3 if name in IN_NOISE else 1e-5)


def test_what_32_bits_cannot_hold_is_refused(tmp_path: Path):
    schedule = {"_target_": f"{OURS}.schedule.custom", "betas": [1e-9] + [0.02] * (T - 1)}
    run = saved_run(tmp_path / "run", schedule=schedule)
    with pytest.raises(ConfigError, match=r"^schedule: its first beta, 1e-09, vanishes in diffusers' 32 bits"):
        export(run, tmp_path / "out")
    schedule = {"_target_": f"{OURS}.schedule.custom", "betas": [0.02] + [0.99] * (T - 1)}
    run = saved_run(tmp_path / "other", schedule=schedule, prediction="Velocity")
    with pytest.raises(ConfigError, match=r"^schedule: its last 27 steps are pure noise in diffusers' 32 bits"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Coming back ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 3, "label_dropout": 0.1},
        {"num_classes": 3, "null_label": False},
        {"variance": "LearnedRange", "head_channels": 4, "scale_shift_norm": True, "resblock_updown": True},
    ],
    ids=str,
)
def test_the_weights_come_back_bit_for_bit(options: dict[str, Any], tmp_path: Path):
    run = saved_run(tmp_path / "run", **options)
    unet = export(run, tmp_path / "out") / "unet"
    theirs = load_file(unet / "diffusion_pytorch_model.safetensors")
    network = with_null_label(to_options(json.loads((unet / "config.json").read_text())), theirs)
    back = to_ours(theirs, network)
    expected = load(run).ddpm.model.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in expected.items())


def test_diffusers_has_nothing_to_remark(tmp_path: Path, caplog, capsys):
    """No key that it does not know, no weight that is missing or left over."""
    out = export(saved_run(tmp_path / "run"), tmp_path / "out")
    capsys.readouterr()
    DDPMScheduler.from_pretrained(out, subfolder="scheduler")
    DDIMScheduler.from_pretrained(out, subfolder="scheduler")
    loaded: Any = UNet2DModel.from_pretrained(out, subfolder="unet", output_loading_info=True)
    unet, told = loaded
    assert not any(told.values())
    assert unet.dtype == torch.float32
    DDPMPipeline.from_pretrained(out)
    captured = capsys.readouterr()
    assert not re.search("not expected|ignored|deprecated", captured.err + captured.out + caplog.text)
