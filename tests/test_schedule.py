"""The schedules against diffusers, closed forms and the limits of float32."""

import copy
import math
import pickle

import pytest
import torch
from oracles import two_schedules
from torch import nn

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.schedule import cosine, custom, linear, scaled_linear, sigmoid

MAKERS = [linear, cosine, sigmoid, scaled_linear]
SCHEDULES = [maker(timesteps) for maker in MAKERS for timesteps in (1000, 10, 1)]
IDS = [f"{maker.__name__}-{timesteps}" for maker in MAKERS for timesteps in (1000, 10, 1)]


@pytest.fixture(params=SCHEDULES, ids=IDS)
def schedule(request) -> NoiseSchedule:
    return request.param


def test_linear_is_diffusers_linear():
    ours, theirs = two_schedules("linear")
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-8)


def test_cosine_is_diffusers_cosine_with_improved_ddpms_clamp():
    ours, theirs = two_schedules("cosine")
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-8)


def test_cosine_follows_its_formula_where_nothing_is_clamped():
    t = torch.arange(1, 999, dtype=torch.float64)

    def f(u: torch.Tensor) -> torch.Tensor:
        return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = f((t + 1) / 1000) / f(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(
        cosine(beta_min=0.0, beta_max=0.9999).alphas_cumprod[1:999], expected, rtol=1e-9, atol=0.0
    )


def test_cosine_clamps_to_the_bounds_it_is_given():
    betas = cosine(beta_min=1e-3, beta_max=0.5).betas
    assert betas.min().item() == pytest.approx(1e-3)
    assert betas.max().item() == pytest.approx(0.5)


def test_tables_satisfy_their_definitions(schedule: NoiseSchedule):
    """Each table again from betas alone, by the textbook's product in float64."""
    betas, alphas = schedule.betas, 1 - schedule.betas
    alpha_bar = torch.cumprod(alphas, 0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    expected = {
        "alphas": alphas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "sqrt_recip_alphas": alphas.rsqrt(),
        "posterior_variance": betas * (1 - previous) / (1 - alpha_bar),
        "log_snr": (alpha_bar / (1 - alpha_bar)).log(),
    }
    for name, table in expected.items():
        assert getattr(schedule, name).shape == (schedule.timesteps,), name
        torch.testing.assert_close(getattr(schedule, name), table, rtol=1e-9, atol=1e-12, msg=name)


def test_tables_are_finite_and_noise_grows(schedule: NoiseSchedule):
    for name in ("betas", "alphas", "sqrt_recip_alphas", "posterior_variance", "log_snr", "log_alpha_bar"):
        assert torch.isfinite(getattr(schedule, name)).all(), name
    assert (torch.diff(schedule.log_snr) < 0).all()
    assert schedule.alphas_cumprod_prev[0] == 1
    assert schedule.posterior_variance[0] == 0


def test_betas_survive_the_log_domain():
    betas = torch.tensor([1e-12, 1e-5, 0.5, 0.999999], dtype=torch.float64)
    torch.testing.assert_close(NoiseSchedule(betas).betas, betas, rtol=1e-4, atol=0.0)


def test_get_broadcasts_in_float32_also_under_autocast():
    schedule = linear()
    t = torch.tensor([0, 500, 999])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = schedule.get(schedule.sqrt_one_minus_alphas_cumprod, t, torch.Size([3, 1, 8, 8]))
        _, sigma = schedule.alpha_sigma(t, torch.Size([3, 1, 8, 8]))
    assert values.shape == (3, 1, 1, 1)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[0].item(), math.sqrt(1e-4), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(sigma, values)


@pytest.mark.parametrize("t", [-1, 1000])
def test_get_refuses_steps_that_are_none(t: int):
    with pytest.raises((IndexError, RuntimeError)):
        linear().get(linear().betas, torch.tensor([t]), torch.Size([1, 1, 1, 1]))


def test_posterior_of_one_step_is_eq_7(schedule: NoiseSchedule):
    t = torch.arange(schedule.timesteps)
    found = schedule.posterior(t, t - 1, torch.Size([len(t), 1, 1, 1]))
    alpha_bar, previous, betas = schedule.alphas_cumprod, schedule.alphas_cumprod_prev, schedule.betas
    x_0 = previous.sqrt() * betas / (1 - alpha_bar)
    x_t = schedule.alphas.sqrt() * (1 - previous) / (1 - alpha_bar)
    torch.testing.assert_close(found.x_0_factor.flatten(), x_0.float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.x_t_factor.flatten(), x_t.float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.variance.flatten(), schedule.posterior_variance.float(), rtol=1e-5, atol=1e-9)


def test_posterior_of_a_jump_is_bayes_rule():
    """q(x_s | x_t, x_0) by the product of the two Gaussians q(x_s | x_0) and q(x_t | x_s), for distant s and t."""
    schedule = cosine()
    for t, s in [(999, 500), (700, 20), (3, 0), (999, 0)]:
        alpha_bar_t, alpha_bar_s = schedule.alphas_cumprod[t], schedule.alphas_cumprod[s]
        ratio = alpha_bar_t / alpha_bar_s
        precision = 1 / (1 - alpha_bar_s) + ratio / (1 - ratio)
        found = schedule.posterior(torch.tensor([t]), torch.tensor([s]), torch.Size([1, 1, 1, 1]))
        expected = (alpha_bar_s.sqrt() / (1 - alpha_bar_s), ratio.sqrt() / (1 - ratio), torch.ones(()))
        for value, numerator in zip(found, expected, strict=True):
            torch.testing.assert_close(value.flatten()[0], (numerator / precision).float(), rtol=1e-5, atol=1e-8)


def test_posterior_at_clean_data_is_x_0():
    found = linear().posterior(torch.tensor([0, 400]), torch.tensor([-1, -1]), torch.Size([2, 1, 1, 1]))
    assert found.x_0_factor.flatten().tolist() == [1, 1]
    assert found.x_t_factor.flatten().tolist() == [0, 0]
    assert found.variance.flatten().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: linear(0), "timesteps must be at least 1, got 0"),
        (lambda: cosine(-3), "timesteps must be at least 1, got -3"),
        (lambda: linear(beta_end=1.0), r"beta_end must lie in \(0, 1\), got 1"),
        (lambda: linear(beta_start=0.0), r"beta_start must lie in \(0, 1\), got 0"),
        (lambda: cosine(beta_max=1.0), "beta_max 1"),
        (lambda: cosine(s=-1.0), "s must not be negative"),
        (lambda: NoiseSchedule(torch.tensor([0.1, float("nan")])), r"every beta must lie in \(0, 1\), got nan"),
        (lambda: NoiseSchedule(torch.tensor([])), "at least one"),
    ],
)
def test_impossible_schedules_are_refused(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()


# The rest of the family --------------------------------------------------------------------------------------------


def test_scaled_linear_is_diffusers_scaled_linear():
    ours, theirs = two_schedules("scaled_linear")
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)


def test_sigmoid_follows_its_papers_formula():
    """diffusers' is another one: there the betas follow a sigmoid, here alpha_bar does."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000

    def g(u: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-(-3 + 6 * u)))

    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    expected = (g(one) - g(t)) / (g(one) - g(zero))
    torch.testing.assert_close(sigmoid().alphas_cumprod[:-1], expected[:-1], rtol=1e-9, atol=0.0)
    assert sigmoid().betas[-1].item() == pytest.approx(0.9999)
    narrow = sigmoid(tau=0.3).alphas_cumprod
    assert narrow[300] > sigmoid().alphas_cumprod[300]
    assert narrow[700] < sigmoid().alphas_cumprod[700]


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr_is_diffusers_rescaling(name: str):
    ours, theirs = two_schedules(name, zero_terminal_snr=True)
    without, _ = two_schedules(name)
    # Theirs comes back through betas in float32, whose rounding grows along the product.
    torch.testing.assert_close(ours.sqrt_alphas_cumprod.float(), theirs.alphas_cumprod.sqrt(), rtol=0, atol=2e-5)
    assert ours.alphas_cumprod[-1] == 0
    assert ours.ends_in_noise
    assert not without.ends_in_noise
    first = without.alphas_cumprod[0]
    assert ours.alphas_cumprod[0].item() == pytest.approx(first.item(), rel=1e-9), "the first step stays"


def test_custom_is_what_it_is_given():
    betas = [0.1, 0.5, 0.25]
    torch.testing.assert_close(custom(betas).betas, torch.tensor(betas, dtype=torch.float64))
    assert custom([0.1, 1.0]).ends_in_noise, "a last beta of 1 is pure noise"


EVERY = [maker(timesteps, zero_terminal_snr=zero) for maker in MAKERS for timesteps in (2, 10, 1000) for zero in (0, 1)]


@pytest.mark.parametrize("schedule", EVERY, ids=[f"{i // 6}-{i % 6}" for i in range(len(EVERY))])
def test_no_schedule_gives_a_coefficient_that_is_not_finite(schedule: NoiseSchedule):
    t = torch.arange(schedule.timesteps)
    for s in (t - 1, torch.full_like(t, -1)):
        found = [
            *schedule.alpha_sigma(t, (1, 1)), *schedule.posterior(t, s, (1, 1)), schedule.step_variance(t, s, (1, 1)),
            schedule.log_step_variance(t, s, (1, 1)), schedule.log_posterior_variance(t, s, (1, 1)),
            *schedule.ddim_factors(t, s, 0.0, (1, 1)), *schedule.ddim_factors(t, s, 1.0, (1, 1)),
        ]  # fmt: skip
        assert all(torch.isfinite(values).all() for values in found)
        # Where the posterior is a Gaussian and not the data itself, its logarithm is the logarithm of its variance.
        inner = s >= 0
        torch.testing.assert_close(
            found[7][inner].exp(), found[4][inner], rtol=1e-4, atol=0.0, msg="log posterior variance"
        )
    assert schedule.log_posterior_variance(t, t - 1, (1, 1))[0] == schedule.log_posterior_variance(t, t - 1, (1, 1))[1]


@pytest.mark.parametrize("schedule", EVERY[4::6], ids=[maker.__name__ for maker in MAKERS])
def test_autocast_changes_no_coefficient(schedule: NoiseSchedule):
    t = torch.arange(schedule.timesteps)

    def coefficients() -> list[torch.Tensor]:
        return [
            *schedule.alpha_sigma(t, (1, 1)), *schedule.posterior(t, t - 1, (1, 1)),
            schedule.log_posterior_variance(t, t - 1, (1, 1)), schedule.get(schedule.log_snr, t, (1, 1)),
            *schedule.ddim_factors(t, t - 1, 0.5, (1, 1)), schedule.log_step_variance(t, t - 1, (1, 1)),
        ]  # fmt: skip

    expected = coefficients()
    with torch.autocast("cpu", torch.bfloat16):
        found = coefficients()
    for one, other in zip(expected, found, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


def test_points_are_the_tables_in_double_precision():
    schedule = cosine(50, zero_terminal_snr=True)
    points = schedule.points([49, 20, 0, -1])
    assert points[0] == (0.0, 1.0, -math.inf)
    assert points[-1] == (1.0, 0.0, math.inf)
    for point, t in ((points[1], 20), (points[2], 0)):
        alpha_bar = schedule.alphas_cumprod[t].item()
        assert point.alpha == pytest.approx(alpha_bar**0.5, rel=1e-12)
        assert point.sigma == pytest.approx((1 - alpha_bar) ** 0.5, rel=1e-9)
        assert point.half_log_snr == pytest.approx(math.log(point.alpha / point.sigma), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sigmoid(start=3.0, end=-3.0), "start must be below end"),
        (lambda: sigmoid(tau=0.0), "tau must be positive, got 0"),
        (lambda: sigmoid(tau=1e-4), "raise tau"),
        (lambda: scaled_linear(beta_end=1.0), r"beta_end must lie in \(0, 1\), got 1"),
        (lambda: custom([]), "at least one"),
        (lambda: custom([0.1, 1.0, 0.1]), r"every beta must lie in \(0, 1\), got 1"),
        (lambda: linear(1, zero_terminal_snr=True), "zero_terminal_snr needs at least 2 timesteps"),
    ],
)
def test_impossible_schedules_of_the_family_are_refused(call, says: str):
    with pytest.raises(ValueError, match=says):
        call()


# As a module ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ddpm() -> DDPM:
    return DDPM(nn.Conv2d(1, 1, 1), cosine(50))


def assert_exact(schedule: NoiseSchedule) -> None:
    """To the bit what it is made as, in double precision."""
    assert schedule.log_alpha_bar.dtype == torch.float64
    assert torch.equal(schedule.log_alpha_bar.cpu(), cosine(50).log_alpha_bar)


def test_a_schedule_is_listed_as_a_buffer_of_its_model_and_stands_in_no_state_dict(ddpm: DDPM):
    ((name, buffer),) = ddpm.named_buffers()
    assert name.startswith("schedule.")
    assert buffer.shape == (51,)
    assert [name for name, _ in ddpm.named_parameters()] == ["model.weight", "model.bias"]
    assert list(ddpm.state_dict()) == ["model.weight", "model.bias"]
    assert ddpm.schedule.state_dict() == {}
    other = DDPM(nn.Conv2d(1, 1, 1), cosine(50))
    assert str(other.load_state_dict(ddpm.state_dict())) == "<All keys matched successfully>"
    assert_exact(other.schedule)


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda module: module.half(), torch.float16),
        (lambda module: module.bfloat16(), torch.bfloat16),
        (lambda module: module.float(), torch.float32),
        (lambda module: module.double(), torch.float64),
        (lambda module: module.to(torch.bfloat16), torch.bfloat16),
        (lambda module: module.to("cpu", torch.float16), torch.float16),
        (lambda module: module.type(torch.float16), torch.float16),
        (lambda module: module.half().float(), torch.float32),
    ],
    ids=["half", "bfloat16", "float", "double", "to dtype", "to device and dtype", "type", "there and back"],
)
def test_a_schedule_stays_exact_in_whatever_precision_its_model_is(ddpm: DDPM, convert, dtype: torch.dtype):
    assert convert(ddpm) is ddpm
    assert {parameter.dtype for parameter in ddpm.parameters()} == {dtype}
    assert [buffer.dtype for buffer in ddpm.buffers()] == [torch.float64]
    assert_exact(ddpm.schedule)
    assert convert(ddpm.schedule) is ddpm.schedule, "alone, too"
    assert_exact(ddpm.schedule)


def test_a_model_that_moves_takes_its_schedule_along(ddpm: DDPM):
    ddpm.to("meta")
    assert ddpm.device == ddpm.schedule.device == torch.device("meta")
    t = torch.zeros(3, dtype=torch.int64, device="meta")
    assert all(factor.device.type == "meta" for factor in ddpm.schedule.alpha_sigma(t, (3, 1, 1, 1)))
    assert ddpm.schedule.log_alpha_bar.dtype == torch.float64
    alone = cosine(50)
    assert alone.to("meta") is alone
    assert alone.device.type == "meta"


def test_memory_that_is_made_anew_does_not_cost_a_model_its_schedule(ddpm: DDPM):
    ddpm.to_empty(device="cpu")
    assert_exact(ddpm.schedule)
    ddpm.to_empty(device="meta")
    assert ddpm.schedule.device.type == "meta"


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["copy", "pickle"]
)
def test_copies_of_a_schedule_are_exact_and_go_their_own_ways(ddpm: DDPM, copied):
    other = copied(ddpm)
    assert_exact(other.schedule)
    assert other.half().state_dict().keys() == ddpm.state_dict().keys()
    assert_exact(other.schedule)
    other.to("meta")
    assert_exact(ddpm.schedule)
    assert ddpm.schedule.device.type == "cpu"
    alone = copied(ddpm.schedule)
    assert isinstance(alone, NoiseSchedule)
    assert alone is not ddpm.schedule
    assert_exact(alone)


def test_the_same_diffusion_around_another_network_has_the_same_schedule(ddpm: DDPM):
    other = ddpm.with_model(nn.Conv2d(1, 1, 1))
    assert other.schedule is ddpm.schedule
    other.to("meta")
    assert ddpm.schedule.device.type == "meta"
    assert ddpm.device.type == "cpu", "the network stays where it was"
