"""RePaint: what is known stays, and what is painted follows from it as it does in the data."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from diffusers import RePaintScheduler
from gaussian import Gaussian
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.repaint import RePaint
from ddpm_cli.diffusion.samplers import Ancestral
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall

SHAPE = (4, 3, 8, 8)


def grey(x: Tensor, t: int) -> Denoised:
    return Denoised(torch.full_like(x, 0.25), x)


def a_mask(batch: int = 4) -> Tensor:
    mask = torch.zeros(batch, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 2:5, 3:] = True
    return mask


def paint(
    schedule: NoiseSchedule,
    *,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    steps: int | Sequence[int] | None = None,
    denoise: Denoiser = grey,
    **options,
) -> list[Tensor]:
    torch.manual_seed(0)
    given = {"image": torch.rand(SHAPE) * 2 - 1 if image is None else image, "mask": a_mask() if mask is None else mask}
    times = Ancestral(steps=steps).times(schedule)
    repaint = RePaint(variance=FixedSmall(), **options)
    return list(repaint.paint(denoise, schedule, times, lambda: torch.randn(SHAPE), **given))


@pytest.mark.parametrize("mask", [a_mask(1), a_mask()], ids=["one for all", "bool"])
@pytest.mark.parametrize("schedule", [linear(30), cosine(30, zero_terminal_snr=True)], ids=["linear", "zero snr"])
def test_known_pixels_are_kept_exactly(schedule: NoiseSchedule, mask: Tensor):
    image = torch.rand(SHAPE) * 2 - 1
    states = paint(schedule, image=image, mask=mask, resamplings=3)
    painted = mask.expand(SHAPE)
    assert torch.equal(states[-1][~painted], image[~painted])
    torch.testing.assert_close(states[-1][painted], torch.full(SHAPE, 0.25)[painted])
    assert all(x.isfinite().all() for x in states)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resamplings": 1}, 30),
        ({"resamplings": 4, "jump_length": 10}, 30 + 2 * 3 * 10),
        ({"resamplings": 2, "jump_length": 1}, 30 + 29),
        ({"steps": 12, "resamplings": 3, "jump_length": 5}, 12 + 2 * 2 * 5),
        ({"steps": [29, 10, 5], "resamplings": 2, "jump_length": 2}, 3 + 2),
        ({"steps": 1, "resamplings": 1}, 1),
    ],
)
def test_states_are_counted(options: dict, expected: int):
    """So often the network is called, too, and RePaint knows it before."""
    asked = []

    def denoise(x: Tensor, t: int) -> Denoised:
        asked.append(t)
        return grey(x, t)

    states = paint(linear(30), denoise=denoise, **options)
    times = Ancestral(steps=options.get("steps")).times(linear(30))
    repaint = RePaint(variance=FixedSmall(), **{name: value for name, value in options.items() if name != "steps"})
    assert len(states) == expected
    assert asked == [times[level] for level in repaint.steps_down(len(times))]
    assert set(asked) == set(times)


@pytest.mark.parametrize(
    ("steps", "jump_length", "resamplings"), [(250, 10, 10), (50, 7, 3), (11, 10, 2), (10, 1, 4), (30, 10, 1)]
)
def test_the_walk_is_diffusers(steps: int, jump_length: int, resamplings: int):
    """Theirs lists every level passed, one by one on the way up as well, and stops before clean data."""
    theirs = RePaintScheduler(1000)
    theirs.set_timesteps(steps, jump_length, jump_n_sample=resamplings)
    expected = (theirs.timesteps // (1000 // steps)).tolist()
    found = [steps - 1]
    repaint = RePaint(variance=FixedSmall(), jump_length=jump_length, resamplings=resamplings)
    for here, there in pairwise(repaint.levels(steps)[:-1]):
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

    def painted(resamplings: int) -> Tensor:
        repaint = RePaint(variance=FixedLarge(), jump_length=3, resamplings=resamplings)
        mask = torch.tensor([False, True, True]).view(1, 1, 1, 3)
        times = Ancestral().times(schedule)
        *_, last = repaint.paint(data.denoiser(schedule), schedule, times, noise, image=image, mask=mask)
        return last[:, 0, 0, 1:]

    once, resampled = painted(1), painted(11)
    error = (covariance.diagonal().max() / n).sqrt()  # of the mean
    assert (once.mean(0) - mean).abs().max() > 0.15
    assert (resampled.mean(0) - mean).abs().max() < 0.02 + 4 * error
    assert (resampled.T.cov() - covariance).abs().max() < 0.05


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image": torch.zeros(1, 3, 8, 8)}, r"image must have the shape of the samples, \[4, 3, 8, 8\], got \[1, 3"),
        ({"mask": a_mask().expand(4, 3, 8, 8)}, r"mask must be \[4 or 1, 1, 8, 8\], got \[4, 3, 8, 8\]"),
        ({"mask": a_mask()[0, 0]}, r"mask must be \[4 or 1, 1, 8, 8\], got \[8, 8\]"),
        ({"mask": torch.full((1, 1, 8, 8), 0.5)}, "mask must be bool, True where to paint .*, got torch.float32"),
        ({"mask": a_mask().float()}, "mask must be bool, True where to paint and False where to keep, got torch.float"),
        ({"resamplings": 0}, "resamplings must be at least 1, got 0"),
        ({"jump_length": 0}, "jump_length must be between 1 and 29, one less than the steps, got 0"),
        ({"steps": 10}, "jump_length must be between 1 and 9, one less than the steps, got 10"),
        ({"steps": 31}, "steps must be between 1 and the schedule's 30 timesteps, got 31"),
    ],
)
def test_impossible_options_are_refused(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        paint(linear(30), **options)
