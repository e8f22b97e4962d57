"""Guidance and thresholds: what is put around a denoiser."""

import pytest
import torch
from torch import Tensor, nn

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.guidance import Guidance, guided
from ddpm_cli.diffusion.loss import Hybrid
from ddpm_cli.diffusion.prediction import Velocity
from ddpm_cli.diffusion.samplers import DDIM
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.threshold import Dynamic, Static, Unbounded, thresholded
from ddpm_cli.diffusion.variance import LearnedRange
from ddpm_cli.models.unet import UNet

LABELS = torch.tensor([0, 2, 1])
SHAPE = (3, 1, 8, 8)


class Counting(nn.Module):
    """A network with labels that counts how often it is asked, and with which labels."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet(8, 1, 8, (1, 2), 1, (), 0.0, norm_groups=4, num_classes=3, **options)
        for parameter in self.unet.parameters():  # some of them start at zero
            nn.init.normal_(parameter, std=0.2)
        self.num_classes = 3
        self.asked: list[Tensor | None] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.asked.append(labels)
        return self.unet(x, t, labels)


@pytest.fixture
def ddpm() -> DDPM:
    return DDPM(Counting(), linear(20), prediction=Velocity()).eval()


@pytest.fixture
def x_t() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


T = 7
TIMES = torch.tensor([T, T, T])


@torch.no_grad()
def test_scale_one_is_the_conditional_model_bit_for_bit_with_one_call(ddpm: DDPM, x_t: Tensor):
    guided = ddpm.denoiser(LABELS, guidance=Guidance(scale=1.0), threshold=Unbounded())(x_t, T)
    assert len(ddpm.model.asked) == 1
    output = ddpm.model.unet(x_t, TIMES, LABELS)
    alpha, sigma = ddpm.schedule.alpha_sigma(TIMES, SHAPE)
    assert torch.equal(guided.x_0, ddpm.prediction.x_0(output, x_t, alpha, sigma))
    assert torch.equal(guided.eps, ddpm.prediction.eps(output, x_t, alpha, sigma))


@torch.no_grad()
def test_guidance_goes_from_the_unconditional_through_the_conditional(ddpm: DDPM, x_t: Tensor):
    labelled = ddpm.denoiser(LABELS, threshold=Unbounded())(x_t, T)
    without = ddpm.denoiser(threshold=Unbounded())(x_t, T)
    assert not torch.allclose(labelled.eps, without.eps)
    ddpm.model.asked.clear()
    guided = ddpm.denoiser(LABELS, guidance=Guidance(scale=3.0), threshold=Unbounded())(x_t, T)
    assert len(ddpm.model.asked) == 2
    # Ho & Salimans 2022, eq. 6 with w = scale - 1, on eps.
    torch.testing.assert_close(guided.eps, 3 * labelled.eps - 2 * without.eps)
    alpha, sigma = ddpm.schedule.alpha_sigma(TIMES, SHAPE)
    torch.testing.assert_close(alpha * guided.x_0 + sigma * guided.eps, x_t, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_guidance_of_scale_zero_is_the_unconditional_model_bit_for_bit_with_one_call(x_t: Tensor):
    network = Counting(learn_variance=True)
    ddpm = DDPM(network, linear(20), prediction=Velocity(), variance=LearnedRange(), loss=Hybrid()).eval()
    zero = ddpm.denoiser(LABELS, guidance=Guidance(scale=0.0))(x_t, T)
    assert network.asked == [None]
    for one, other in zip(zero, ddpm.denoiser()(x_t, T), strict=True):
        assert torch.equal(one, other), "the variance too"


@torch.no_grad()
def test_rescaling_a_blank_image_leaves_it_finite():
    blank = Denoised(torch.zeros(SHAPE), torch.ones(SHAPE))
    denoise = guided(lambda *_: blank, lambda *_: blank, linear(20), Guidance(scale=2.0, rescale=0.5))
    assert all(torch.isfinite(tensor).all() for tensor in denoise(torch.ones(SHAPE), T)[:2])


@torch.no_grad()
def test_outside_its_interval_guidance_costs_nothing_and_does_nothing(ddpm: DDPM, x_t: Tensor):
    guidance = Guidance(scale=3.0, interval=(5, 6))
    plain = ddpm.denoiser(LABELS)(x_t, T)
    ddpm.model.asked.clear()
    found = ddpm.denoiser(LABELS, guidance=guidance)(x_t, T)
    assert torch.equal(found.x_0, plain.x_0)
    assert len(ddpm.model.asked) == 1
    ddpm.denoiser(LABELS, guidance=guidance)(x_t, 6)
    assert len(ddpm.model.asked) == 3


@torch.no_grad()
def test_rescaling_brings_back_the_contrast(ddpm: DDPM, x_t: Tensor):
    def contrast(rescale: float) -> Tensor:
        guidance = Guidance(scale=5.0, rescale=rescale)
        denoised = ddpm.denoiser(LABELS, guidance=guidance, threshold=Unbounded())(x_t, T)
        alpha, sigma = ddpm.schedule.alpha_sigma(TIMES, SHAPE)
        torch.testing.assert_close(alpha * denoised.x_0 + sigma * denoised.eps, x_t, rtol=1e-5, atol=1e-5)
        return denoised.x_0.std((1, 2, 3))

    plain = ddpm.denoiser(LABELS, threshold=Unbounded())(x_t, T).x_0.std((1, 2, 3))
    torch.testing.assert_close(contrast(1.0), plain)
    torch.testing.assert_close(contrast(0.5), 0.5 * (plain + contrast(0.0)))
    assert not torch.allclose(contrast(0.0), plain)


def test_a_sampler_calls_the_network_once_per_step_at_scale_one_and_twice_beyond(ddpm: DDPM):
    for scale, calls in ((1.0, 5), (2.0, 10)):
        ddpm.model.asked.clear()
        sampler = DDIM(steps=5)
        ddpm.sample(3, 8, 1, show_progress=False, sampler=sampler, labels=LABELS, guidance=Guidance(scale=scale))
        assert len(ddpm.model.asked) == calls


def test_guidance_without_labels_is_refused(ddpm: DDPM):
    with pytest.raises(ValueError, match="scale 2 has no effect without labels"):
        ddpm.denoiser(guidance=Guidance(scale=2.0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": -1.0}, "scale must not be negative, got -1"),
        ({"scale": 2.0, "interval": (5, 2)}, r"interval must be \[lowest t, highest t\], got \[5, 2\]"),
        ({"scale": 2.0, "rescale": 1.5}, r"rescale must lie in \[0, 1\], got 1.5"),
        ({"rescale": 0.5}, "have no effect with scale 1"),
        ({"interval": (0, 5)}, "have no effect with scale 1"),
    ],
)
def test_impossible_guidance_is_refused(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        Guidance(**options)


def test_the_network_without_labels_is_what_no_labels_compute(ddpm: DDPM, x_t: Tensor):
    """Label -1, no labels at all, and the same network built without classes: one function, bit for bit."""
    unet = ddpm.model.unet
    plain = UNet(8, 1, 8, (1, 2), 1, (), 0.0, norm_groups=4).eval()
    plain.load_state_dict({k: v for k, v in unet.state_dict().items() if not k.startswith("label")})
    with torch.no_grad():
        expected = plain(x_t, TIMES)
        assert torch.equal(unet(x_t, TIMES), expected)
        assert torch.equal(unet(x_t, TIMES, torch.full((3,), -1)), expected)
        mixed = unet(x_t, TIMES, torch.tensor([-1, 2, -1]))
    torch.testing.assert_close(mixed[[0, 2]], expected[[0, 2]])
    assert not torch.allclose(mixed[1], expected[1])
    with pytest.raises(ValueError, match="takes no labels"):
        plain(x_t, TIMES, LABELS)


# Thresholds ----------------------------------------------------------------------------------------------------------


def test_static_clips_and_dynamic_scales_each_image_by_its_own_quantile():
    x_0 = torch.linspace(-3, 3, 1001).repeat(2, 1).view(2, 1, 1, 1001) * torch.tensor([1.0, 0.2]).view(2, 1, 1, 1)
    assert torch.equal(Static()(x_0), x_0.clamp(-1, 1))
    found = Dynamic(quantile=0.9)(x_0)
    torch.testing.assert_close(found[0], (x_0[0] / 2.7).clamp(-1, 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], x_0[1]), "an image within [-1, 1] stays as it is"
    assert torch.equal(Unbounded()(x_0), x_0)
    with pytest.raises(ValueError, match=r"quantile must lie in \(0, 1\], got 0"):
        Dynamic(quantile=0.0)


@pytest.mark.parametrize("bounds", [Static(), Dynamic(quantile=0.9)], ids=["static", "dynamic"])
def test_after_a_threshold_eps_belongs_to_the_new_x_0(bounds):
    schedule = cosine(20)
    x_t = 3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def denoise(x: Tensor, t: int) -> Denoised:
        return Denoised(2 * x, -x, x + 1)

    found = thresholded(denoise, schedule, bounds)(x_t, T)
    alpha, sigma = schedule.alpha_sigma(TIMES, SHAPE)
    assert found.x_0.abs().max() <= 1
    torch.testing.assert_close(alpha * found.x_0 + sigma * found.eps, x_t)
    assert torch.equal(found.variance, x_t + 1)
    seen = denoise(x_t, T)
    assert thresholded(lambda x, t: seen, schedule, Unbounded())(x_t, T) is seen


# Autoguidance: away from another model -------------------------------------------------------------------------------


def other(**options) -> DDPM:
    """A smaller network, which predicts something else."""
    torch.manual_seed(1)
    unet = UNet(8, 1, 4, (1, 2), 1, (), 0.0, norm_groups=2, **options)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.2)
    return DDPM(unet, linear(20)).eval()


@torch.no_grad()
@pytest.mark.parametrize("knows_labels", [True, False])
def test_away_from_a_guide_is_the_line_through_both(knows_labels: bool, ddpm: DDPM, x_t: Tensor):
    """Karras et al. 2024, eq. 5, on x_0 and eps, which are linear in each other."""
    guide = other(num_classes=3 if knows_labels else None)
    found = ddpm.denoiser(LABELS, guidance=Guidance(scale=2.5), threshold=Unbounded(), guide=guide)(x_t, T)
    better = ddpm.denoise(x_t, TIMES, clip_denoised=False, labels=LABELS)
    worse = guide.denoise(x_t, TIMES, clip_denoised=False, labels=LABELS if knows_labels else None)
    torch.testing.assert_close(found.x_0, 2.5 * better.x_0 - 1.5 * worse.x_0, rtol=1e-4, atol=1e-4)
    alpha, sigma = ddpm.schedule.alpha_sigma(TIMES, SHAPE)
    torch.testing.assert_close(alpha * found.x_0 + sigma * found.eps, x_t, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_model_that_guides_itself_changes_nothing(ddpm: DDPM, x_t: Tensor):
    for labels in (LABELS, None):
        plain = ddpm.denoiser(labels)(x_t, T)
        by_itself = ddpm.denoiser(labels, guidance=Guidance(scale=3.0), guide=ddpm)(x_t, T)
        torch.testing.assert_close(by_itself.x_0, plain.x_0, rtol=1e-5, atol=1e-5)


def test_the_labels_free_network_that_guides_is_classifier_free_guidance(ddpm: DDPM, x_t: Tensor):
    """Its own network without labels as a guide that knows none: a second route to the same."""

    class WithoutLabels(nn.Module):
        num_classes = None

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return ddpm.model(x, t)

    guide = ddpm.with_model(WithoutLabels())
    with torch.no_grad():
        found = ddpm.denoiser(LABELS, guidance=Guidance(scale=3.0, rescale=0.5), guide=guide)(x_t, T)
        expected = ddpm.denoiser(LABELS, guidance=Guidance(scale=3.0, rescale=0.5))(x_t, T)
    assert torch.equal(found.x_0, expected.x_0)
    assert torch.equal(found.eps, expected.eps)


@pytest.mark.parametrize(
    ("guide", "said"),
    [
        (lambda: DDPM(UNet(8, 1, 8, (1, 2), 1, (), norm_groups=4), linear(21)), "its schedule has 21 timesteps"),
        (lambda: DDPM(UNet(8, 1, 8, (1, 2), 1, (), norm_groups=4), cosine(20)), "its schedule differs"),
        (lambda: other(num_classes=4), "it was trained on 4 labels, and this model on 3"),
    ],
)
def test_a_guide_knows_the_same_images_and_labels(guide, said: str, ddpm: DDPM):
    ddpm.check_guide(ddpm)
    with pytest.raises(ValueError, match=said):
        ddpm.check_guide(guide())
