"""RePaint: what is known stays, and what is painted follows from it as it does in the data."""

from itertools import pairwise

import pytest
import torch
from diffusers import RePaintScheduler
from gaussian import Gaussian
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.repaint import _walk, repaint
from ddpm_cli.diffusion.samplers import State
from ddpm_cli.diffusion.schedule import NoiseSchedule, cosine, linear
from ddpm_cli.diffusion.variance import fixed_large, fixed_small

SHAPE = (4, 3, 8, 8)


def grey(x: Tensor, t: Tensor) -> Denoised:
    return Denoised(torch.full_like(x, 0.25), x)


def a_mask(batch: int = 4) -> Tensor:
    mask = torch.zeros(batch, 1, 8, 8)
    mask[:, :, 2:5, 3:] = 1
    return mask


def paint(schedule: NoiseSchedule, **options) -> list[State]:
    torch.manual_seed(0)
    image = torch.rand(SHAPE) * 2 - 1
    options = {"image": image, "mask": a_mask(), "variance": fixed_small} | options
    return list(repaint(grey, schedule, torch.randn(SHAPE), lambda: torch.randn(SHAPE), **options))


@pytest.mark.parametrize("mask", [a_mask(), a_mask(1), a_mask().bool()], ids=["float", "one for all", "bool"])
@pytest.mark.parametrize("schedule", [linear(30), cosine(30, zero_terminal_snr=True)], ids=["linear", "zero snr"])
def test_known_pixels_are_kept_exactly(schedule: NoiseSchedule, mask: Tensor):
    image = torch.rand(SHAPE) * 2 - 1
    states = paint(schedule, image=image, mask=mask, jumps=2)
    painted = mask.bool().expand(SHAPE)
    assert torch.equal(states[-1].x[~painted], image[~painted])
    torch.testing.assert_close(states[-1].x[painted], torch.full(SHAPE, 0.25)[painted])
    assert all(state.x.isfinite().all() for state in states)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"jumps": 0}, 30),
        ({"jumps": 3, "jump_length": 10}, 30 + 2 * 3 * 10),
        ({"jumps": 1, "jump_length": 1}, 30 + 29),
        ({"steps": 12, "jumps": 2, "jump_length": 5}, 12 + 2 * 2 * 5),
        ({"steps": [29, 10, 5], "jumps": 1, "jump_length": 2}, 3 + 2),
        ({"steps": 1, "jumps": 0}, 1),
    ],
)
def test_states_are_counted(options: dict, expected: int):
    states = paint(linear(30), **options)
    assert [(state.step, state.steps) for state in states] == [(i + 1, expected) for i in range(expected)]


@pytest.mark.parametrize(("steps", "jump_length", "jumps"), [(250, 10, 9), (50, 7, 2), (11, 10, 1), (10, 1, 3)])
def test_the_walk_is_diffusers(steps: int, jump_length: int, jumps: int):
    """Theirs lists every level passed, one by one on the way up as well, and stops before clean data."""
    theirs = RePaintScheduler(1000)
    theirs.set_timesteps(steps, jump_length, jump_n_sample=jumps + 1)
    expected = (theirs.timesteps // (1000 // steps)).tolist()
    found = [steps - 1]
    for here, there in pairwise(_walk(steps, jump_length, jumps)[:-1]):
        passed = range(here + 1, there + 1) if there > here else range(here - 1, there - 1, -1)
        found += [steps - 1 - level for level in passed]
    assert found == expected


def test_what_is_painted_has_the_conditional_distribution():
    """For Gaussian data E[x_b | x_a] = m_b + S_ba / S_aa (x_a - m_a). Without resampling it is missed by far.

    What is known comes with fresh noise at every level, so that the painted part leans on it too little. How much too
    little depends on the noise where the last jump turns round: 0.02 in the mean here.
    """
    data = Gaussian([0.3, -0.2, 0.1], [[0.5, 0.3, 0.2], [0.3, 0.4, 0.0], [0.2, 0.0, 0.3]])
    schedule, n, known = linear(100, beta_start=1e-3, beta_end=0.2), 2000, 1.2
    image = torch.tensor([known, 0.0, 0.0]).expand(n, 1, 1, 3)
    ratio = data.covariance[1:, 0] / data.covariance[0, 0]
    mean = data.mean[1:] + ratio * (known - data.mean[0])
    covariance = data.covariance[1:, 1:] - torch.outer(ratio, data.covariance[0, 1:])
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn((n, 1, 1, 3), generator=generator, dtype=torch.float64)

    def painted(jumps: int) -> Tensor:
        options = {"variance": fixed_large, "jump_length": 3, "jumps": jumps}
        mask = torch.tensor([0, 1, 1]).view(1, 1, 1, 3)
        *_, last = repaint(data.denoiser(schedule), schedule, noise(), noise, image=image, mask=mask, **options)
        return last.x[:, 0, 0, 1:]

    once, resampled = painted(0), painted(10)
    error = (covariance.diagonal().max() / n).sqrt()  # of the mean
    assert (once.mean(0) - mean).abs().max() > 0.15
    assert (resampled.mean(0) - mean).abs().max() < 0.02 + 4 * error
    assert (resampled.T.cov() - covariance).abs().max() < 0.05


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image": torch.zeros(1, 3, 8, 8)}, r"image must have the shape of what is drawn, \[4, 3, 8, 8\], got \[1, 3"),
        ({"mask": torch.zeros(4, 3, 8, 8)}, r"mask must be \[4 or 1, 1, 8, 8\], got \[4, 3, 8, 8\]"),
        ({"mask": torch.zeros(8, 8)}, r"mask must be \[4 or 1, 1, 8, 8\], got \[8, 8\]"),
        ({"mask": torch.full((1, 1, 8, 8), 0.5)}, "mask must be 1 where to paint and 0 where to keep"),
        ({"jumps": -1}, "jumps must not be negative, got -1"),
        ({"jump_length": 0}, "jump_length must be between 1 and 29, one less than the steps, got 0"),
        ({"steps": 10}, "jump_length must be between 1 and 9, one less than the steps, got 10"),
        ({"steps": 31}, "steps must be between 1 and the schedule's 30 timesteps, got 31"),
    ],
)
def test_impossible_options_are_refused(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        paint(linear(30), **options)
