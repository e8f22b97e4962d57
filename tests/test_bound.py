"""The variational bound: against the known entropy of Gaussian data, and what its losses move."""

import math

import mpmath
import pytest
import torch
from entropy import EXACT, measured, rounded
from torch import Tensor, nn

from ddpm_cli.diffusion import bound
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.loss import Hybrid, Simple, VariationalBound
from ddpm_cli.diffusion.prediction import Velocity
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall, LearnedRange, Variance
from ddpm_cli.diffusion.weighting import MinSNR
from ddpm_cli.models.unet import UNet

SHAPE = (4, 2, 6, 6)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    tensors = {name: torch.randn(SHAPE, generator=generator) for name in ("x_0", "x_t", "output")}
    tensors["x_0"] = rounded(0.3 * tensors["x_0"])
    return tensors | {"t": torch.tensor([0, 1, 500, 999]), "range": 2 * torch.rand(SHAPE, generator=generator) - 1}


def test_the_terms_are_kl_divergences_of_torchs_own(batch):
    """Where t > 0, against torch.distributions."""
    schedule = cosine(1000)
    for variance in (FixedSmall(), FixedLarge(), LearnedRange()):
        t = batch["t"]
        seen = {"predicted_x_0": batch["output"], "variance_output": batch["range"]}
        found = bound.term(schedule, variance, batch["x_0"], t, **seen)
        posterior = schedule.posterior(t, t - 1, SHAPE)
        true = torch.distributions.Normal(
            posterior.x_0_factor * batch["x_0"] + posterior.x_t_factor * batch["x_t"],
            posterior.variance.sqrt().clamp(min=1e-9),
        )
        model = torch.distributions.Normal(
            posterior.x_0_factor * batch["output"] + posterior.x_t_factor * batch["x_t"],
            (0.5 * variance.log_variance(schedule, t, t - 1, torch.Size(SHAPE), batch["range"])).exp(),
        )
        expected = torch.distributions.kl_divergence(true, model).mean((1, 2, 3)) / math.log(2)
        torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-6)


def test_the_decoders_bins_share_out_all_probability():
    levels = torch.arange(256) / 127.5 - 1
    for mean in (-1.2, -0.3, 0.0, 1.0):
        for log_variance in (-9.0, -4.0, 0.0):
            args = levels, torch.full_like(levels, mean), torch.full_like(levels, log_variance)
            assert bound.log_likelihood(*args).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("log_variance", [-9.7, -4.0, 0.0])
def test_the_decoder_is_exact_far_from_its_mean_and_has_a_gradient_there(log_variance: float):
    """Against mpmath's integral of the density over the bin."""
    sigma = math.exp(0.5 * log_variance)
    for level, mean in ((100, -0.2), (100, 0.4), (0, 0.3), (255, -0.9), (255, 0.99), (7, 1.5)):
        x_0 = torch.tensor([level / 127.5 - 1])
        at = torch.tensor([mean], requires_grad=True)
        found = bound.log_likelihood(x_0, at, torch.tensor([log_variance]))
        found.sum().backward()
        low = -mpmath.inf if level == 0 else (level - 0.5) / 127.5 - 1
        high = mpmath.inf if level == 255 else (level + 0.5) / 127.5 - 1
        with mpmath.workdps(50):
            edges = [(mpmath.mpf(edge) - mean) / sigma for edge in (low, high)]
            if edges[0] > 0:
                edges = [-edges[1], -edges[0]]
            expected = float(mpmath.log(mpmath.ncdf(edges[1]) - mpmath.ncdf(edges[0])))
        assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert torch.isfinite(at.grad).all()
        assert expected > -20 or at.grad.abs() > 1, "an improbable value pulls"


def test_the_prior_term_is_a_kl_divergence(batch):
    schedule = linear(50)
    alpha, sigma = schedule.alpha_sigma(torch.tensor([49]), SHAPE)
    q = torch.distributions.Normal(alpha * batch["x_0"], sigma.expand(SHAPE))
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean((1, 2, 3)) / math.log(2)
    torch.testing.assert_close(bound.prior(schedule, batch["x_0"]), expected)


@pytest.mark.parametrize("variance", [EXACT, FixedSmall(), FixedLarge()], ids=["exact", "fixed_small", "fixed_large"])
def test_with_the_exact_denoiser_the_bound_is_the_known_entropy(variance: Variance):
    bounds, error, entropy, gap = measured(variance)
    assert (gap == 0) == (variance is EXACT)
    assert error < 0.02
    assert bounds.mean().item() == pytest.approx(entropy + gap, abs=4 * error)


def network(**options) -> UNet:
    torch.manual_seed(0)
    unet = UNet(6, 2, 8, (1,), 1, (), 0.0, norm_groups=4, **options)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    return unet


def test_vlb_is_the_bound_and_its_mean_over_t_the_sum_of_its_terms(batch):
    schedule = cosine(30)
    ddpm = DDPM(network(), schedule, prediction=Velocity(), loss=VariationalBound())
    x_0, noise = batch["x_0"][:1].expand(30, -1, -1, -1), torch.randn(30, *SHAPE[1:])
    losses = ddpm.losses(x_0, torch.arange(30), noise)
    total = 0.0
    for t in range(30):
        x_t, _ = ddpm.q_sample(x_0[:1], torch.tensor([t]), noise[t : t + 1])
        predicted = ddpm.denoise(x_t, torch.tensor([t]), clip_denoised=False).x_0
        options = {"predicted_x_0": predicted, "variance_output": None}
        total += bound.term(schedule, FixedSmall(), x_0[:1], torch.tensor([t]), **options).item()
    assert losses.mean().item() == pytest.approx(total, rel=1e-4)


def test_hybrid_is_the_simple_loss_and_a_thousandth_of_the_bound_that_moves_the_variance_alone(batch):
    unet = network(learn_variance=True)
    schedule = cosine(1000)
    options = {"variance": LearnedRange()}
    hybrid = DDPM(unet, schedule, **options, loss=Hybrid())
    both = DDPM(unet, schedule, **options, loss=VariationalBound())
    simple = DDPM(unet, schedule, variance=FixedSmall(), loss=Simple())
    args = batch["x_0"], batch["t"], batch["x_t"]
    expected = simple.losses(*args) + 0.001 * both.losses(*args)
    torch.testing.assert_close(hybrid.losses(*args), expected)

    def gradient(ddpm: DDPM) -> Tensor:
        (found,) = torch.autograd.grad(ddpm.losses(*args).sum(), [unet.conv_out.weight])
        return found

    of_mean, of_variance = slice(0, 2), slice(2, 4)
    torch.testing.assert_close(gradient(hybrid)[of_mean], gradient(simple)[of_mean])
    assert gradient(simple)[of_variance].abs().max() == 0
    torch.testing.assert_close(gradient(hybrid)[of_variance], 0.001 * gradient(both)[of_variance])
    assert gradient(both)[of_variance].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"variance": LearnedRange()}, "choose loss=hybrid or loss=vlb"),
        ({"loss": Hybrid()}, "choose variance=learned_range, or loss=simple or loss=vlb"),
        ({"loss": VariationalBound(), "weighting": MinSNR()}, "choose weighting=uniform"),
    ],
)
def test_losses_that_would_train_nothing_are_refused(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        DDPM(network(), cosine(10), **options)


def test_a_network_without_the_channels_for_its_variance_is_refused():
    ddpm = DDPM(network(), cosine(10), variance=LearnedRange(), loss=Hybrid())
    with pytest.raises(ValueError, match="set learn_variance=true"):
        ddpm.check_images((2, 6, 6))
    DDPM(network(learn_variance=True), cosine(10), variance=LearnedRange(), loss=Hybrid()).check_images((2, 6, 6))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("loss", [Simple(), VariationalBound()])
def test_losses_are_finite_at_every_t(loss, zero: bool):
    schedule = cosine(200, zero_terminal_snr=zero)
    ddpm = DDPM(network(), schedule, prediction=Velocity(), loss=loss)
    x_0 = rounded(0.5 * torch.randn(200, *SHAPE[1:]))
    assert torch.isfinite(ddpm.losses(x_0, torch.arange(200))).all()
