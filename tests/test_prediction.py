"""eps, x0 and v: one and the same picture of x_t, whichever is predicted."""

import itertools

import pytest
import torch
from ids import named
from torch import Tensor

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.prediction import X0, Epsilon, Preconditioned, Prediction, Velocity, noise_of
from ddpm_cli.diffusion.schedule import cosine, linear, scaled_linear, sigmoid

PREDICTIONS = [Epsilon(), X0(), Velocity(), Preconditioned(sigma_data=0.5)]
MAKERS = [linear, cosine, sigmoid, scaled_linear]
SCHEDULES = [maker(zero_terminal_snr=zero) for maker in MAKERS for zero in (False, True)]
IDS = [f"{maker.__name__}{' to zero' if zero else ''}" for maker in MAKERS for zero in (False, True)]


def example(schedule: NoiseSchedule, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x_0, eps, x_t, alpha and sigma at every t."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, schedule.timesteps, 1, 4, 4, generator=generator, dtype=dtype).unbind()
    points = schedule.points(range(schedule.timesteps))
    alpha, sigma = (torch.tensor([p[i] for p in points], dtype=dtype).view(-1, 1, 1, 1) for i in (0, 1))
    return x_0, eps, alpha * x_0 + sigma * eps, alpha, sigma


def works(prediction: Prediction, schedule: NoiseSchedule) -> bool:
    return not (isinstance(prediction, Epsilon) and schedule.ends_in_noise)


# What can work together; that the rest is refused is tested below.
WORKS = [
    pytest.param(prediction, schedule, id=f"{named(prediction)}, {name}")
    for prediction, (schedule, name) in itertools.product(PREDICTIONS, zip(SCHEDULES, IDS, strict=True))
    if works(prediction, schedule)
]
BOTH_WORK = [
    pytest.param(one, other, schedule, id=f"{named(one)}, {named(other)}, {name}")
    for one, other, (schedule, name) in itertools.product(PREDICTIONS, PREDICTIONS, zip(SCHEDULES, IDS, strict=True))
    if works(one, schedule) and works(other, schedule)
]


def size(*images: Tensor) -> Tensor:
    """The largest number in any of them, at every t: what 1e-6 is relative to."""
    return torch.stack(images).abs().amax((0, 2, 3, 4))


@pytest.mark.parametrize(("one", "other", "schedule"), BOTH_WORK)
def test_every_prediction_converts_into_every_other_and_back(one, other, schedule):
    """In float32 at every t: the network's output -> x_0 and eps -> another output -> x_0 and eps -> the output."""
    x_0, eps, x_t, alpha, sigma = example(schedule, torch.float32)
    output = one.target(x_0, eps, alpha, sigma)
    pair = one.x_0(output, x_t, alpha, sigma), one.eps(output, x_t, alpha, sigma)
    across = other.target(*pair, alpha, sigma)
    back = one.target(other.x_0(across, x_t, alpha, sigma), other.eps(across, x_t, alpha, sigma), alpha, sigma)
    # A plain 1e-6 where nothing is divided by a small number, as with v in the middle: its way back has factors of at
    # most 1, which undo what one division did on the way there. Only with eps in the middle, x_0 is found again as
    # (x_t - sigma eps) / alpha, and x_t's own rounding counts 1 / alpha times; so it does 1 / sigma times in
    # (x_t - alpha x_0) / sigma, with x_0 in the middle.
    factor = 1.0
    if type(one) is not type(other):
        factor = {Epsilon: alpha, X0: sigma, Velocity: 1.0, Preconditioned: 0.5}[type(other)]
    assert ((factor * (back - output)).abs().amax((1, 2, 3)) <= 1e-6 * size(x_t, output)).all()


@pytest.mark.parametrize(("prediction", "schedule"), WORKS)
def test_in_single_precision_x_0_and_eps_are_as_exact_as_the_prediction_lets_them(prediction, schedule):
    """v gives both to 1e-6 at every t; eps gives x_0, and x_0 gives eps, only by a division, as above."""
    x_0, eps, x_t, alpha, sigma = example(schedule, torch.float32)
    target = prediction.target(x_0, eps, alpha, sigma)
    of_x_0 = alpha if isinstance(prediction, Epsilon) else 1.0
    of_eps = sigma if isinstance(prediction, X0) else 1.0
    allowed = 1e-6 * size(x_t, x_0, eps)
    x_0_error = of_x_0 * (prediction.x_0(target, x_t, alpha, sigma) - x_0)
    eps_error = of_eps * (prediction.eps(target, x_t, alpha, sigma) - eps)
    assert (x_0_error.abs().amax((1, 2, 3)) <= allowed).all()
    assert (eps_error.abs().amax((1, 2, 3)) <= allowed).all()


@pytest.mark.parametrize(("one", "other", "schedule"), BOTH_WORK)
def test_in_double_precision_the_way_there_and_back_is_plainly_exact(one, other, schedule):
    x_0, eps, x_t, alpha, sigma = example(schedule, torch.float64)
    output = one.target(x_0, eps, alpha, sigma)
    across = other.target(one.x_0(output, x_t, alpha, sigma), one.eps(output, x_t, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(across, other.target(x_0, eps, alpha, sigma), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("prediction", "schedule"), WORKS)
def test_targets_give_back_what_they_were_made_of(prediction, schedule):
    x_0, eps, x_t, alpha, sigma = example(schedule, torch.float64)
    target = prediction.target(x_0, eps, alpha, sigma)
    torch.testing.assert_close(prediction.eps(target, x_t, alpha, sigma), eps, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(prediction.x_0(target, x_t, alpha, sigma), x_0, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(noise_of(x_0, x_t, alpha, sigma), eps, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=named)
def test_log_scale_is_the_ratio_of_the_two_errors(prediction):
    schedule = linear()
    x_0, _, x_t, alpha, sigma = example(schedule, torch.float64)
    output = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = output + 0.1
    apart = prediction.x_0(output, x_t, alpha, sigma) - prediction.x_0(other, x_t, alpha, sigma)
    ratio = (0.01 / apart.square()).mean((1, 2, 3))
    torch.testing.assert_close(prediction.log_scale(schedule.log_snr), ratio.log(), rtol=1e-6, atol=1e-6)


def test_eps_says_nothing_of_an_image_in_pure_noise():
    with pytest.raises(ValueError, match=r"prediction=eps cannot work .* choose prediction=v or prediction=x0"):
        Epsilon().check(cosine(zero_terminal_snr=True))
    Epsilon().check(cosine())
    for prediction in (X0(), Velocity(), Preconditioned()):
        prediction.check(cosine(zero_terminal_snr=True))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_with_images_of_unit_variance_edm_is_v(schedule: NoiseSchedule):
    x_0, eps, x_t, alpha, sigma = example(schedule, torch.float64)
    edm, v, output = Preconditioned(sigma_data=1.0), Velocity(), torch.randn_like(x_0)
    assert (edm.input(x_t, alpha, sigma) - x_t).abs().max() < 1e-12
    for ours, theirs in (
        (edm.target(x_0, eps, alpha, sigma), v.target(x_0, eps, alpha, sigma)),
        (edm.x_0(output, x_t, alpha, sigma), v.x_0(output, x_t, alpha, sigma)),
        (edm.eps(output, x_t, alpha, sigma), v.eps(output, x_t, alpha, sigma)),
        (edm.log_scale(schedule.log_snr), v.log_scale(schedule.log_snr)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [0.25, 0.5, 2.0])
def test_edm_is_the_papers(d: float):
    """Karras et al. 2022, table 1, with x = x_t / alpha and s = sigma / alpha; the network answers -F."""
    x_0, eps, x_t, alpha, sigma = example(cosine(), torch.float64)
    s, x, edm = sigma / alpha, x_t / alpha, Preconditioned(sigma_data=d)
    c_skip, c_out, c_in = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt(), 1 / (s**2 + d**2).sqrt()
    torch.testing.assert_close(edm.input(x_t, alpha, sigma), c_in * x, rtol=1e-9, atol=1e-9)
    target = (x_0 - c_skip * x) / c_out
    torch.testing.assert_close(edm.target(x_0, eps, alpha, sigma), -target, rtol=1e-6, atol=1e-9)
    f = torch.randn_like(x_0)
    torch.testing.assert_close(edm.x_0(-f, x_t, alpha, sigma), c_skip * x + c_out * f, rtol=1e-6, atol=1e-9)


def test_input_and_target_of_edm_have_unit_variance_at_every_t():
    schedule, generator = cosine(20), torch.Generator().manual_seed(0)
    x_0 = 0.5 * torch.randn(20, 1, 128, 128, generator=generator, dtype=torch.float64)
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    alpha, sigma = (part.double() for part in schedule.alpha_sigma(torch.arange(20), x_0.shape))
    edm = Preconditioned(sigma_data=0.5)
    for images in (edm.input(alpha * x_0 + sigma * eps, alpha, sigma), edm.target(x_0, eps, alpha, sigma)):
        assert (images.std(dim=(1, 2, 3)) - 1).abs().max() < 0.03


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_images_have_some_variance(wrong: float):
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        Preconditioned(sigma_data=wrong)
