"""What diffusers' schedulers say of a model: the same noise, the same target, the same walk."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from other_networks import ours, saved
from torch import Tensor, nn

from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.conversion.diffusers_scheduler import to_groups
from ddpm_cli.conversion.imported import ConversionError
from ddpm_cli.conversion.read import read_source
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.loss import Hybrid, Simple
from ddpm_cli.diffusion.samplers import DDIM
from ddpm_cli.diffusion.threshold import Dynamic, Static, Unbounded

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "linear, other ends": {"beta_start": 0.001, "beta_end": 0.01, "num_train_timesteps": 100},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "betas": {"trained_betas": [0.01, 0.02, 0.05, 0.1, 0.3]},
    "zero terminal SNR": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "cosine, zero terminal SNR": {
        "beta_schedule": "squaredcos_cap_v2",
        "rescale_betas_zero_snr": True,
        "prediction_type": "sample",
    },
}


def file_of(scheduler: Any) -> dict[str, Any]:
    """What scheduler_config.json then holds."""
    return json.loads(scheduler.to_json_string())


@pytest.mark.parametrize("case", SCHEDULES)
def test_the_noise_is_the_same_at_every_t(case: str):
    theirs = DDPMScheduler(**SCHEDULES[case])
    schedule = instantiate(to_groups(file_of(theirs)).groups["schedule"], "schedule")
    # Theirs is computed in float32, where 1 - alpha_bar has lost four digits at t = 0.
    torch.testing.assert_close(schedule.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=2e-4, atol=2e-7)
    assert schedule.ends_in_noise is ("zero" in case)


@pytest.mark.parametrize(
    "name",
    [
        *("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"),
        *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler"),
        *("KDPM2DiscreteScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler"),
    ],
)
def test_every_solver_of_theirs_says_the_same_of_the_model(name: str):
    theirs = getattr(diffusers, name)(beta_start=0.0002, beta_end=0.03, prediction_type="v_prediction")
    found = to_groups(file_of(theirs)).groups
    assert found["schedule"]["beta_end"] == 0.03
    assert found["prediction"]["_target_"].endswith(".Velocity")
    bare = getattr(diffusers, name)()
    short = to_groups({"_class_name": name}).groups
    assert short["schedule"] == to_groups(file_of(bare)).groups["schedule"], "what a file leaves out is what they take"


@pytest.mark.parametrize(
    ("said", "variance"),
    [
        ("fixed_small", "FixedSmall"),
        ("fixed_small_log", "FixedSmall"),
        ("fixed_large", "FixedLarge"),
        ("fixed_large_log", "FixedLarge"),
        ("learned_range", "LearnedRange"),
    ],
)
def test_the_variance_comes_along(said: str, variance: str):
    found = to_groups(file_of(DDPMScheduler(variance_type=said))).groups["variance"]
    assert found["_target_"] == f"ddpm_cli.diffusion.variance.{variance}"
    assert "variance" not in to_groups(file_of(DDIMScheduler())).groups


@pytest.mark.parametrize(
    ("said", "threshold"),
    [
        ({}, Static()),
        ({"clip_sample": False}, Unbounded()),
        ({"thresholding": True, "sample_max_value": 4.0, "dynamic_thresholding_ratio": 0.9}, Dynamic(quantile=0.9)),
        ({"thresholding": True}, Static()),  # with its cap at 1
    ],
)
def test_how_x_0_is_kept_in_bounds_comes_along(said: dict, threshold: object):
    found = to_groups(file_of(DDPMScheduler(**said)))
    assert instantiate(found.groups["threshold"], "threshold") == threshold
    assert any("sample_max_value 4" in remark for remark in found.remarks) is isinstance(threshold, Dynamic)
    assert "threshold" not in to_groups({"_class_name": "PNDMScheduler"}).groups


def test_what_is_the_solvers_own_is_said():
    found = to_groups(file_of(DDIMScheduler(timestep_spacing="trailing", steps_offset=1))).remarks
    assert found == (
        "with fewer steps than T DDIMScheduler visits timesteps by 'trailing', which is sampler.spacing of ddpm-sample",
        "the solver's own options are not imported: steps_offset, set_alpha_to_one",
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, '_class_name is "ScoreSdeVeScheduler": expected one of DDIM'),
        ({"_class_name": None}, "_class_name is null"),
        ({"beta_schedule": "laplace"}, 'beta_schedule is "laplace"'),
        ({"beta_schedule": ["linear"]}, r'beta_schedule is \["linear"\]'),
        ({"variance_type": "learned"}, 'variance_type is "learned": here it can be null or "fixed_small"'),
        ({"prediction_type": "flow_prediction"}, 'prediction_type is "flow_prediction"'),
        ({"clip_sample_range": 2.0}, "clip_sample_range is 2.0: here it is 1"),
        ({"clip_sample": "yes"}, 'clip_sample is "yes": expected true or false'),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is true: its forward process is not DDPM's"),
        ({"trained_betas": ["0.1"]}, "trained_betas is .*expected a list of numbers"),
        ({"trained_betas": [0.1] * 9000}, 'trained_betas is "9000 numbers": a checkpoint holds up to 8,192'),
        ({"beta_end": float("inf")}, "beta_end is Infinity: expected a number"),
        ({"num_train_timesteps": 1e3}, "num_train_timesteps is 1000.0: expected a whole number"),
        ({"beta_schedule": "sigmoid", "num_train_timesteps": 1}, "num_train_timesteps is 1: expected 2 to 8,192"),
    ],
)
def test_another_diffusion_is_refused_by_its_key_and_value(change: dict, says: str):
    with pytest.raises(ConversionError, match=f"^scheduler_config.json: {says}"):
        to_groups(file_of(DDPMScheduler()) | change)


def test_what_is_chosen_instead_is_not_looked_at():
    strange = {"beta_schedule": "laplace", "clip_sample_range": 2.0, "prediction_type": "flow_prediction"}
    found = to_groups(file_of(DDPMScheduler()) | strange, chosen={"schedule", "threshold", "prediction"})
    assert set(found.groups) == {"variance"}
    assert not any("clip" in remark or "beta" in remark for remark in found.remarks)


# Whole walks ---------------------------------------------------------------------------------------------------------


def _model(place: Path, scheduler: Any, **options: Any) -> tuple[nn.Module, DDPM]:
    """A model of theirs, and the same one as it comes in."""
    theirs = saved(place, scheduler=scheduler, **options)
    found = read_source(place)
    parts = {group: instantiate(node, group) for group, node in found.groups.items() if group != "threshold"}
    learned = found.unet["learn_variance"]
    return theirs, DDPM(ours(found.unet, found.tensors), loss=Hybrid() if learned else Simple(), **parts).eval()


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_walk_of_ddim_is_theirs(schedule: str, prediction: str, tmp_path: Path):
    scheduler = DDIMScheduler(beta_schedule=schedule, prediction_type=prediction, clip_sample=True)
    theirs, ddpm = _model(tmp_path, scheduler)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    sampler = DDIM(steps=10, spacing="leading")
    times = sampler.times(ddpm.schedule)
    found = list(sampler.solve(ddpm.denoiser(threshold=Static()), ddpm.schedule, times, x, lambda: x))
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == times
    expected = []
    for t in scheduler.timesteps:
        x = scheduler.step(theirs(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
        expected.append(x)
    assert expected[-1].std() > 0.1
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)  # their tables are rounded to float32


@torch.no_grad()
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ancestral_steps_are_theirs(variance: str, tmp_path: Path):
    learned = {"out_channels": 6} if variance == "learned_range" else {}
    scheduler = DDPMScheduler(variance_type=variance)
    theirs, ddpm = _model(tmp_path, scheduler, **learned)
    x: Tensor = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    for t in (999, 998, 500, 57, 1, 0):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
        found = ddpm.p_sample(x, torch.tensor([t]), clip_denoised=True, noise=noise)
        step = scheduler.step(theirs(x, t).sample, t, x, generator=torch.Generator().manual_seed(t))
        torch.testing.assert_close(found, step.prev_sample, rtol=0, atol=1e-4)
        x = found
