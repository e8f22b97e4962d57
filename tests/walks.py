"""The same steps and whole walks by us and by diffusers' schedulers: ours are `found`, theirs `expected`."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from oracles import in_float64, same_schedule, timesteps_in_float64
from torch import Tensor, nn

from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.loss import Hybrid, Simple
from ddpm_cli.diffusion.noise_schedule import CLEAN, NoiseSchedule
from ddpm_cli.diffusion.prediction import X0, Epsilon, Prediction, Velocity
from ddpm_cli.diffusion.samplers import DDIM, DPMSolverPP2M, DPMSolverPP2MSDE, Heun, UniPC
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall, LearnedRange, Variance

SHAPE = (4, 3, 8, 8)
SCHEDULES = ("linear", "squaredcos_cap_v2")
PREDICTIONS: dict[str, Prediction] = {"epsilon": Epsilon(), "v_prediction": Velocity(), "sample": X0()}
ETAS = (0.0, 0.5, 1.0)
VARIANCES: dict[str, Variance] = {
    "fixed_small": FixedSmall(),
    "fixed_large": FixedLarge(),
    "learned_range": LearnedRange(),
}
MULTISTEP = {
    # Both end on clean data in a step of first order, as ours do, if told to end at sigma = 0.
    "dpmpp_2m": (
        DPMSolverPP2M,
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"},
    ),
    "dpmpp_2m_sde": (DPMSolverPP2MSDE, DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (UniPC, UniPCMultistepScheduler, {"solver_type": "bh2", "predict_x0": True}),
}


class Walk(NamedTuple):
    """Every state that two walks from the same noise come through."""

    steps: int
    spacing: str
    found: list[Tensor]
    expected: list[Tensor]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest deviation in any state, relative to the largest number in that state; NaN if there is one."""
    relative = [(a - b).abs().max() / b.abs().max().clamp(min=1) for a, b in zip(found, expected, strict=True)]
    return torch.stack(relative).max().item()  # Python's max() would pass over a NaN


def draw(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


# Single steps, in float32 as they are taken ---------------------------------------------------------------------------


class Fixed(nn.Module):
    """A network that answers the same whatever it is asked."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output


def ddpm_steps(
    schedule: str, variance: str, prediction: str, *, clip: bool
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Ancestral steps from t to t - 1: t, ours without noise, ours with noise, and theirs with the same noise."""
    theirs = of_diffusers(DDPMScheduler, schedule, prediction, variance_type=variance, clip_sample=clip)
    learned = variance == "learned_range"
    generator = torch.Generator().manual_seed(7)
    for t in (0, 1, 57, 500, 998, 999):
        x_t, output = (torch.randn((1, *SHAPE[1:]), generator=generator) for _ in range(2))
        if learned:
            output = torch.cat([output, 2 * torch.rand(x_t.shape, generator=generator) - 1], dim=1)
        ddpm = DDPM(
            Fixed(output),
            same_schedule(schedule),
            prediction=PREDICTIONS[prediction],
            variance=VARIANCES[variance],
            loss=Hybrid() if learned else Simple(),
        )
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(t))
        mean, found = (
            ddpm.p_sample(x_t, torch.tensor([t]), clip_denoised=clip, noise=given)
            for given in (torch.zeros_like(x_t), noise)
        )
        expected = theirs.step(output, t, x_t, generator=torch.Generator().manual_seed(t)).prev_sample.float()
        yield t, mean, found, expected


def ddim_steps(schedule: str, eta: float, prediction: str, *, clip: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Steps of a walk of 50."""
    theirs = of_diffusers(DDIMScheduler, schedule, prediction, clip_sample=clip)
    theirs.set_timesteps(50)
    generator = torch.Generator().manual_seed(3)
    for t in (980, 500, 20, 0):
        x_t, output, noise = (torch.randn(SHAPE, generator=generator) for _ in range(3))
        expected = theirs.step(
            output, t, x_t, eta=eta, use_clipped_model_output=True, variance_noise=noise if eta > 0 else None
        ).prev_sample.float()
        ddpm = DDPM(Fixed(output), same_schedule(schedule), prediction=PREDICTIONS[prediction])
        t_batch, s_batch = torch.full((4,), t), torch.full((4,), max(t - 20, -1))
        denoised = ddpm.denoise(x_t, t_batch, clip_denoised=clip)
        if eta > 0:
            found = samplers.ddim_step(ddpm.schedule, t_batch, s_batch, denoised, noise, eta=eta)
        else:
            found = samplers.ddim_mean(ddpm.schedule, s_batch, denoised)
        yield found, expected


# Whole walks, in float64 ----------------------------------------------------------------------------------------------


def network(x: Tensor, t: float, prediction: str) -> Tensor:
    """Something bent that depends on x and on t; for eps near x where there is little but noise, as networks are."""
    bent = torch.tanh(1.3 * x + math.cos(t / 90))
    return x * t / 1000 + (1 - t / 1000) * bent if prediction == "epsilon" else bent


def denoiser(schedule: NoiseSchedule, prediction: str) -> Denoiser:
    """What our samplers make of the same network, in float64 (a DDPM asks in float32)."""
    asked = PREDICTIONS[prediction]

    def denoise(x: Tensor, t: int) -> Denoised:
        [(alpha, sigma, _)] = schedule.points([t])
        factors = (torch.tensor(factor, dtype=torch.float64) for factor in (alpha, sigma))
        seen = network(x, t, prediction), x, *factors
        return Denoised(asked.x_0(*seen), asked.eps(*seen))

    return denoise


def of_diffusers(scheduler, schedule: str, prediction: str, **options):
    common = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": schedule}
    return in_float64(scheduler(1000, prediction_type=prediction, **common, **options))


def multistep_walks(name: str, schedule: str, prediction: str) -> Iterator[Walk]:
    """Their linspace stops short of t = 0, so our solver is given their timesteps."""
    ours, (sampler, scheduler, options) = same_schedule(schedule), MULTISTEP[name]
    for steps, spacing in ((1, "trailing"), (2, "linspace"), (7, "linspace"), (20, "leading"), (33, "trailing")):
        theirs = of_diffusers(scheduler, schedule, prediction, timestep_spacing=spacing, solver_order=2, **options)
        times = timesteps_in_float64(theirs, steps)
        x, noise, expected = draw(0)(), draw(1), []
        for t in times:
            extra = {"variance_noise": noise()} if name == "dpmpp_2m_sde" else {}
            x = theirs.step(network(x, t, prediction), t, x, **extra).prev_sample
            expected.append(x)
        found = sampler().solve(denoiser(ours, prediction), ours, times, draw(0)(), draw(1))
        yield Walk(steps, spacing, list(found), expected)


def heun_walks(schedule: str, prediction: str) -> Iterator[Walk]:
    """Their x is x / alpha. Their linspace is rounded to no timestep: it agrees where steps - 1 divides T - 1."""
    ours = same_schedule(schedule)
    for steps, spacing in ((1, "trailing"), (4, "linspace"), (10, "linspace"), (25, "leading"), (33, "trailing")):
        theirs = of_diffusers(HeunDiscreteScheduler, schedule, prediction, timestep_spacing=spacing)
        times = timesteps_in_float64(theirs, steps)
        heun = Heun(steps=steps, spacing=spacing)
        assert times == heun.times(ours)
        alphas = [point.alpha for point in ours.points([*times, CLEAN])]
        x, expected = draw(0)() / alphas[0], []
        for i, t in enumerate(theirs.timesteps):
            output = network(theirs.scale_model_input(x, t), t.item(), prediction)
            x = theirs.step(output, t, x).prev_sample
            if i % 2 == 1 or i == 2 * steps - 2:  # a second call, which ends the step; the last step has but one
                expected.append(x * alphas[i // 2 + 1])
        found = heun.solve(denoiser(ours, prediction), ours, times, draw(0)(), draw(1))
        yield Walk(steps, spacing, list(found), expected)


def ddim_walks(schedule: str, eta: float, prediction: str) -> Iterator[Walk]:
    """Theirs steps from t to t - T // steps, which is the next timestep visited in leading and, if steps divides T,
    trailing, but not in linspace.
    """
    ours = same_schedule(schedule)
    for steps, spacing in ((1, "trailing"), (7, "leading"), (50, "leading"), (40, "trailing")):
        theirs = of_diffusers(DDIMScheduler, schedule, prediction, timestep_spacing=spacing, clip_sample=False)
        theirs.set_timesteps(steps)
        x, noise, expected = draw(0)(), draw(1), []
        for t in theirs.timesteps.tolist():
            extra = {"variance_noise": noise()} if eta > 0 else {}
            x = theirs.step(network(x, t, prediction), t, x, eta=eta, **extra).prev_sample
            expected.append(x)
        ddim = DDIM(steps=steps, spacing=spacing, eta=eta)
        found = ddim.solve(denoiser(ours, prediction), ours, ddim.times(ours), draw(0)(), draw(1))
        yield Walk(steps, spacing, list(found), expected)
